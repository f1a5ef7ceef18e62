from dataclasses import asdict

from vitedge.host.npu import npu_facts


def _write(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_clock_and_temperature_of_an_rk3588(tmp_path):
    clock = {"cur_freq": "1000000000", "min_freq": "300000000", "max_freq": "1000000000", "governor": "rknpu_ondemand"}
    _write(tmp_path / "sys/class/devfreq/fdab0000.npu", clock)
    _write(tmp_path / "sys/class/thermal/thermal_zone0", {"type": "soc-thermal", "temp": "99000"})
    _write(tmp_path / "sys/class/thermal/thermal_zone6", {"type": "npu-thermal", "temp": "45307"})
    facts = npu_facts(tmp_path)
    assert facts.celsius == 45.307
    assert asdict(facts.clock) == {
        "now_mhz": 1000,
        "min_mhz": 300,
        "max_mhz": 1000,
        "governor": "rknpu_ondemand",
        "locked": False,
    }


def test_a_machine_without_an_npu_has_no_facts(tmp_path):
    assert npu_facts(tmp_path) is None
