from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from vitedge.bench import energy, latency, stats
from vitedge.bench.batching import as_batches
from vitedge.host.memory import peak_rss_mib, rss_mib

INPUT = [np.zeros((1, 2, 2, 3), np.uint8)]


class FakeClock:
    """A clock that only a fake runner moves, so that the times are known exactly."""

    def __init__(self, durations_ns):
        self.now, self.durations = 0, iter(durations_ns)

    def __call__(self):
        return self.now

    def infer(self, pixels):
        self.now += int(next(self.durations))


def test_the_times_of_a_runner_with_a_known_distribution_give_its_percentiles():
    rng = np.random.default_rng(0)
    durations = np.concatenate([(2 + rng.gamma(2.0, 1.0, 50_000)) * 1e6])
    clock = FakeClock(durations)
    times = latency.time_calls(clock.infer, INPUT, len(durations), clock)
    assert np.array_equal(times, durations.astype(np.int64))
    scipy_stats = pytest.importorskip("scipy.stats")
    found = stats.summary(np.array(times) / 1e6)
    for share in (50, 90, 95, 99):
        assert getattr(found, f"p{share}") == pytest.approx(2 + scipy_stats.gamma.ppf(share / 100, 2.0), rel=0.01)


def test_the_garbage_collector_is_off_while_timing_and_on_again_after_a_failure():
    states = []
    latency.time_calls(lambda pixels: states.append(gc.isenabled()), INPUT, 3)
    assert states == [False] * 3 and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        latency.time_calls(lambda pixels: 1 // 0, INPUT, 1)
    assert gc.isenabled()


def test_warm_up_goes_on_until_the_times_are_steady():
    settling = [10e6 * (1 + 2 * 0.98**call) for call in range(2000)]
    clock = FakeClock(settling)
    found = latency.warm_up(clock.infer, INPUT, least_s=0.5, most_s=30, clock=clock)
    assert found.steady and found.median_ns < 13e6 and found.calls > 80
    never = FakeClock([10e6 * 1.05**call for call in range(2000)])
    found = latency.warm_up(never.infer, INPUT, least_s=0.5, most_s=3, clock=never)
    assert not found.steady and found.seconds >= 3


def test_the_drift_of_a_sustained_run_that_throttles():
    clock = FakeClock([10e6] * 300 + [15e6] * 5000)
    starts, spent = latency.sustained(clock.infer, INPUT, 6.0, clock)
    assert starts[-1] < 6e9 <= starts[-1] + spent[-1]
    assert latency.drift(starts, spent) == pytest.approx(0.5)
    assert latency.drift(starts[:3], spent[:3]) is None


def test_a_sustained_run_is_as_long_as_asked_though_time_passes_between_inferences():
    class TickingClock(FakeClock):
        def __call__(self):
            self.now += 60
            return self.now

    # The fifth inference ends 40 ns too early, and the next reading of the clock is past the limit.
    clock = TickingClock([100e6 - 128] * 20)
    starts, spent = latency.sustained(clock.infer, INPUT, 0.5, clock)
    assert starts[4] + spent[4] == 500e6 - 40
    assert len(spent) == 6 and starts[-1] + spent[-1] >= 500e6
    clock = TickingClock([10e6] * 3)
    assert len(latency.sustained(clock.infer, INPUT, 0.0, clock)[1]) == 1


def test_throughput_counts_whole_batches_of_all_contexts_and_tells_of_errors():
    together = threading.Barrier(2, timeout=20)
    seen = set()

    def infer(pixels):
        if threading.get_ident() not in seen:
            together.wait()  # passes only when both contexts run at once
            seen.add(threading.get_ident())

    images, taken = latency.throughput([infer, infer], [np.zeros((4, 2, 2, 3), np.uint8)], 0.1)
    assert images % 4 == 0 and images >= 8 and taken >= 0.1

    def broken(pixels):
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        latency.throughput([broken], INPUT, 0.01)


def test_inputs_for_timing_are_filled_up_to_whole_batches():
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    assert [list(part.ravel()) for part in as_batches(pixels, 2)] == [[0, 1]]
    assert [list(part.ravel()) for part in as_batches(pixels, 5)] == [[0, 1, 2, 0, 1]]


def test_energy_of_rapl_and_of_a_jetsons_rail_from_recorded_trees(tmp_path):
    assert energy.measure(lambda pixels: None, INPUT, 0.01, tmp_path) is None
    rapl = tmp_path / "sys/class/powercap/intel-rapl:0"
    rapl.mkdir(parents=True)
    for name, text in {"energy_uj": "9000000", "max_energy_range_uj": "9999999", "name": "package-0"}.items():
        (rapl / name).write_text(text)
    calls = []

    def infer(pixels):
        calls.append(1)
        (rapl / "energy_uj").write_text("500000")  # the counter has wrapped: 1.5 J were used

    found = energy.measure(infer, INPUT, 0.0, tmp_path)
    assert found.mj_per_image == pytest.approx(1500 / len(calls), rel=1e-3) and found.rail == "RAPL package-0"
    jetson = tmp_path / "jetson"
    monitor = jetson / "sys/class/hwmon/hwmon3"
    monitor.mkdir(parents=True)
    for name, text in {
        "name": "ina3221",
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "2000",
    }.items():
        (monitor / name).write_text(text)
    found = energy.measure(lambda pixels: None, INPUT, 0.2, jetson)
    assert found.rail == "VDD_IN" and found.watts == pytest.approx(10, rel=1e-6)


def test_the_peak_of_memory_is_at_least_what_is_held():
    assert peak_rss_mib() >= rss_mib() > 1
