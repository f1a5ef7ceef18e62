"""A Jetson's facts, on trees of files as an Orin Nano with JetPack 6.2 has them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from vitedge.host import facts as host_facts
from vitedge.host.jetson import gpu_clock, jetpack, jetson_facts, l4t_release, power_mode
from vitedge.host.power import rails_mw

ORIN_NANO = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
    "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48593\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "47375\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5032\n",
    "sys/class/hwmon/hwmon1/curr1_input": "1264\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5024\n",
    "sys/class/hwmon/hwmon1/curr2_input": "304\n",
}


@pytest.fixture
def board(tmp_path: Path) -> Path:
    for name, text in ORIN_NANO.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_an_orin_nano(board: Path) -> None:
    found = jetson_facts(board)
    assert found is not None and asdict(found) == {
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "l4t": "36.4.3",
        "jetpack": "6.2",
        "power_mode": "MAXN_SUPER (2)",
        "gpu_clock": {
            "now_mhz": 1020,
            "min_mhz": 306,
            "max_mhz": 1020,
            "governor": "nvhost_podgov",
            "locked": False,
        },
        "celsius": {"cpu-thermal": 48.593, "gpu-thermal": 47.375},
        "power_rail": "VDD_IN",
        "rails_mw": {"VDD_IN": 6360.448, "VDD_CPU_GPU_CV": 1527.296},
    }


def test_locked_clocks(board: Path) -> None:
    """As `jetson_clocks` leaves them."""
    (board / "sys/class/devfreq/17000000.gpu/min_freq").write_text("1020000000")
    clock = gpu_clock(board)
    assert clock is not None and clock.locked is True


def test_no_jetson(tmp_path: Path) -> None:
    assert jetson_facts(tmp_path) is None
    assert (l4t_release(tmp_path), power_mode(tmp_path), gpu_clock(tmp_path)) == (None, None, None)
    assert rails_mw(tmp_path) == {}


def test_a_jetson_that_tells_little(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R38 (release), REVISION: 9.0, GCID: 1\n")
    facts = jetson_facts(tmp_path)
    assert facts is not None and facts.jetpack == "7.x"
    assert facts.power_mode is None and facts.gpu_clock is None and facts.power_rail is None


def test_a_mode_without_a_table(board: Path) -> None:
    (board / "etc/nvpmodel.conf").unlink()
    assert power_mode(board) == "2"


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ("36.4.4", "6.2.1"),
        ("36.4.3", "6.2"),
        ("36.4.0", "6.1"),
        ("36.3.0", "6.0"),
        ("36.9", "6.x"),
        ("35.4.1", "5.1.2"),
        ("35.1.0", "5.x"),
        ("38.2.0", "7.0"),
        ("32.7.1", "unknown"),
    ],
)
def test_jetpacks(l4t: str, version: str) -> None:
    assert jetpack(l4t) == version


def test_the_host_facts_hold_them(board: Path) -> None:
    assert host_facts.facts(board).jetson == jetson_facts(board)
    assert host_facts.facts(Path("/nowhere")).jetson is None
