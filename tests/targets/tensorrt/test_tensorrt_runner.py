"""The runner's control flow, on a stand-in with the vendor's signatures and CUDA in host memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from vitedge.errors import VitedgeError
from vitedge.targets.base import Runner
from vitedge.targets.tensorrt import cuda
from vitedge.targets.tensorrt.options import Profile
from vitedge.targets.tensorrt.runner import TensorRTRunner

SHAPE, CLASSES = (4, 4, 3), 5


class Engine:
    """Scripts the stand-in as an engine whose logit c is the mean pixel plus c."""

    def __init__(self, trt, batch: int, profiles: tuple[Profile, ...] = ()) -> None:
        self.trt, self.batch, self.profiles = trt, batch, profiles
        self.size, self.addresses, self.ran, self.chosen = max(batch, 0), {}, [], [0]
        trt.script.update(
            {
                "ICudaEngine.num_io_tensors": lambda _: 2,
                "ICudaEngine.num_optimization_profiles": lambda _: len(profiles),
                "ICudaEngine.get_tensor_name": lambda _, i: ("logits", "pixels")[i],
                "ICudaEngine.get_tensor_mode": lambda _, n: trt.TensorIOMode["INPUT" if n == "pixels" else "OUTPUT"],
                "ICudaEngine.get_tensor_shape": lambda _, n: (batch, *SHAPE) if n == "pixels" else (batch, CLASSES),
                "ICudaEngine.get_tensor_profile_shape": lambda _, n, i: [
                    (b, *SHAPE) for b in (profiles[i].lo, profiles[i].best, profiles[i].hi)
                ],
                "IExecutionContext.set_input_shape": self.set_shape,
                "IExecutionContext.set_tensor_address": self.set_address,
                "IExecutionContext.set_optimization_profile_async": self.choose,
                "IExecutionContext.execute_async_v3": self.execute,
            }
        )

    def set_shape(self, _, name, shape):
        self.size = shape[0]
        return name == "pixels" and shape[1:] == SHAPE

    def set_address(self, _, name, address):
        self.addresses[name] = address
        return True

    def choose(self, _, index, stream):
        self.chosen.append(index)
        return bool(stream)

    def execute(self, _, stream):
        self.ran.append(self.size)
        count = self.size * int(np.prod(SHAPE))
        pixels = np.frombuffer((ctypes.c_uint8 * count).from_address(self.addresses["pixels"]), np.uint8)
        out = (ctypes.c_float * (self.size * CLASSES)).from_address(self.addresses["logits"])
        np.frombuffer(out, np.float32).reshape(-1, CLASSES)[:] = expected(pixels.reshape(-1, *SHAPE))
        return bool(stream)


def expected(pixels: np.ndarray) -> np.ndarray:
    return (pixels.mean((1, 2, 3))[:, None] + np.arange(CLASSES)).astype(np.float32)


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *SHAPE), np.uint8)


def count(device, name: str) -> int:
    return ctypes.c_int.in_dll(device, name).value


@pytest.mark.parametrize(("batch", "n", "ran"), [(1, 3, [1, 1, 1]), (4, 4, [4]), (4, 6, [4, 4]), (4, 1, [4])])
def test_a_static_batch_runs_in_pieces_and_pads_the_last(trt, device, batch, n, ran):
    engine = Engine(trt, batch)
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    assert runner.batch == batch and runner.device == "gpu"
    assert np.allclose(runner.infer(images(n)), expected(images(n)))
    assert engine.ran == ran
    runner.close()
    assert count(device, "live") == 0


def test_a_profile_takes_what_it_can(trt, device):
    engine = Engine(trt, -1, (Profile(2, 4, 8),))
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    assert runner.batch is None
    for n, ran in [(1, [2]), (5, [5]), (19, [8, 8, 3])]:
        engine.ran.clear()
        assert np.allclose(runner.infer(images(n)), expected(images(n)))
        assert engine.ran == ran
    runner.close()


def test_a_profile_for_each_size(trt, device):
    engine = Engine(trt, -1, (Profile(1, 1, 1), Profile(8, 8, 8)))
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    for n, ran in [(1, [1]), (3, [8]), (9, [8, 1]), (8, [8])]:
        engine.ran.clear()
        assert np.allclose(runner.infer(images(n)), expected(images(n)))
        assert engine.ran == ran
    # Profile 0 stands from the start; it is changed only where the batch needs it.
    assert engine.chosen == [0, 1, 0, 1]
    runner.close()
    assert count(device, "live") == 0


def test_times_are_kept_apart(trt, device):
    Engine(trt, 1)
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    assert runner.last_times is None
    runner.infer(images(1))
    assert runner.last_times is not None
    assert runner.last_times.compute_ms > 0 and runner.last_times.copy_in_ms >= 0


def test_bench_reads_the_devices_times(trt, device):
    from vitedge.bench.latency import device_times

    Engine(trt, 1)
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    times = device_times(runner, [images(1)], calls=5)
    assert set(times) == {"copy_in_ms", "compute_ms", "copy_out_ms"}
    assert times["compute_ms"].n == 5 and times["compute_ms"].p50 > 0

    class Plain(Runner):
        def infer(self, pixels):
            return pixels

    assert device_times(Plain(), [images(1)], calls=5) is None


def test_a_cuda_graph_is_captured_once_a_shape(trt, device):
    engine = Engine(trt, -1, (Profile(1, 1, 8),))
    runner = TensorRTRunner(trt, cuda.load(), b"plan", cuda_graph=True)
    for n in (2, 2, 2, 3):
        runner.infer(images(n))
    # One warm run and one capture a shape; every pass is a launch.
    assert engine.ran == [2, 2, 3, 3] and count(device, "launches") == 4
    runner.close()
    assert count(device, "live") == 0


def test_failures_say_what_failed(trt, device):
    Engine(trt, 1)
    trt.script["IExecutionContext.execute_async_v3"] = lambda *_: False
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    with pytest.raises(VitedgeError, match="could not run"):
        runner.infer(images(1))
    with pytest.raises(VitedgeError, match=r"the engine takes \(4, 4, 3\)"):
        runner.infer(np.zeros((1, 8, 8, 3), np.uint8))

    def refuse(runtime, plan):
        runner.logger.log(trt.ILogger.ERROR, "magic tag does not match")

    trt.script["Runtime.deserialize_cuda_engine"] = lambda *_: None
    with pytest.raises(VitedgeError, match="can't read this engine"):
        TensorRTRunner(trt, cuda.load(), b"plan")
    del trt.script["Runtime.deserialize_cuda_engine"]
    trt.script["ICudaEngine.create_execution_context"] = lambda *_: None
    with pytest.raises(VitedgeError, match="not enough GPU memory"):
        TensorRTRunner(trt, cuda.load(), b"plan")


def test_a_full_gpu_leaves_no_buffer_behind(trt, device):
    Engine(trt, 1)
    runner = TensorRTRunner(trt, cuda.load(), b"plan")
    before = count(device, "live")
    ctypes.c_int.in_dll(device, "fail_malloc").value = 1
    with pytest.raises(VitedgeError, match="GPU's memory is full"):
        runner.infer(images(1))
    assert count(device, "live") == before
