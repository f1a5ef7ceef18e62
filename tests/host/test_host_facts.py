from __future__ import annotations

import json
import socket
from dataclasses import asdict, replace

from vitedge.host import facts as host
from vitedge.host.clocks import clocks_mhz, temperatures

_ROCK = """processor\t: 0
BogoMIPS\t: 48.00
CPU implementer\t: 0x41
CPU part\t: 0xd05
CPU revision\t: 0

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd0b
CPU revision\t: 0
"""


def _write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def _rock5(root):
    """The files that an RK3588 board has, cut down to two cores."""
    files = {"proc/cpuinfo": _ROCK, "proc/meminfo": "MemTotal:        8131032 kB\nMemFree: 1 kB\n"}
    files |= {"proc/device-tree/model": "Radxa ROCK 5B\0", "proc/sys/kernel/osrelease": "5.10.110-rockchip\n"}
    for cpu, top in ((0, 1800000), (1, 2352000)):
        base = f"sys/devices/system/cpu/cpufreq/policy{cpu}/"
        files |= {base + "affected_cpus": f"{cpu}\n", base + "scaling_governor": "ondemand\n"}
        files |= {base + "scaling_max_freq": f"{top}\n", base + "scaling_cur_freq": "408000\n"}
    files |= {
        "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "41615\n",
    }
    files |= {
        "sys/class/thermal/thermal_zone1/type": "dead\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
    }
    files |= {"proc/driver/nvidia/gpus/0000/information": "Model: \t\t NVIDIA T4\nIRQ: 3\n"}
    files |= {"sys/kernel/debug/rknpu/version": "RKNPU driver: v0.9.6\n"}
    _write(root, files)


def test_an_rk3588_board_is_read_from_its_recorded_files(tmp_path):
    _rock5(tmp_path)
    found = host.facts(tmp_path)
    assert found.board == "Radxa ROCK 5B" and found.cores == 2 and found.ram_mib == 7940
    assert found.cpu == "1x Cortex-A55 + 1x Cortex-A76" and found.machine == "aarch64"
    assert found.governor == "ondemand" and found.kernel == "5.10.110-rockchip"
    little, big = found.clusters
    assert (little.max_mhz, big.max_mhz, big.now_mhz, big.min_mhz) == (1800, 2352, 408, None)
    assert big.core == "Cortex-A76"
    assert temperatures(tmp_path) == {"soc-thermal": 41.615}
    assert found.gpus == ("NVIDIA T4",) and found.npu_driver == "RKNPU driver: v0.9.6"
    assert clocks_mhz(tmp_path) == [408, 408]
    assert host.slug(found) == "radxa-rock-5b"
    assert host.slug(replace(found, name="Lab board #3")) == "lab-board-3"


def test_an_empty_tree_gives_none_for_what_it_can_not_tell(tmp_path):
    found = host.facts(tmp_path)
    assert [getattr(found, key) for key in ("board", "cpu", "cores", "ram_mib", "governor")] == [None] * 5
    assert found.clusters == () and host.slug(found)


def test_this_machine_is_described_without_its_host_name():
    found = host.facts()
    assert found.cores and found.ram_mib and found.kernel and found.libraries["numpy"]
    text = json.dumps(asdict(found))
    assert found.name is None
    if len(socket.gethostname()) > 5:
        assert socket.gethostname() not in text
    assert host.facts(name="bench PC").name == "bench PC"
