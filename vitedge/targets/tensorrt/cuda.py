"""Memory, streams, events and graphs of CUDA, straight from the system's libcudart through ctypes.

JetPack brings libcudart but not cuda-python; these twenty functions are the same in CUDA 12 and 13. Imported
and opened only where an engine is built or run.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError

_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, Minor
_OUT_OF_MEMORY = 2
_NO_DRIVER = (35, 100, 999)

_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES: dict[str, list[Any]] = {
    "cudaGetDeviceCount": [ctypes.POINTER(_INT)],
    "cudaRuntimeGetVersion": [ctypes.POINTER(_INT)],
    "cudaDriverGetVersion": [ctypes.POINTER(_INT)],
    "cudaDeviceGetAttribute": [ctypes.POINTER(_INT), _INT, _INT],
    "cudaMalloc": [ctypes.POINTER(_POINTER), _SIZE],
    "cudaFree": [_POINTER],
    "cudaMallocHost": [ctypes.POINTER(_POINTER), _SIZE],
    "cudaFreeHost": [_POINTER],
    "cudaMemcpyAsync": [_POINTER, _POINTER, _SIZE, _INT, _POINTER],
    "cudaStreamCreateWithFlags": [ctypes.POINTER(_POINTER), ctypes.c_uint],
    "cudaStreamSynchronize": [_POINTER],
    "cudaStreamDestroy": [_POINTER],
    "cudaEventCreate": [ctypes.POINTER(_POINTER)],
    "cudaEventRecord": [_POINTER, _POINTER],
    "cudaEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER],
    "cudaEventDestroy": [_POINTER],
    "cudaStreamBeginCapture": [_POINTER, _INT],
    "cudaStreamEndCapture": [_POINTER, ctypes.POINTER(_POINTER)],
    "cudaGraphInstantiateWithFlags": [ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong],
    "cudaGraphLaunch": [_POINTER, _POINTER],
    "cudaGraphExecDestroy": [_POINTER],
    "cudaGraphDestroy": [_POINTER],
}


def candidates() -> Iterator[str]:
    """Where libcudart may lie: the loader's path, CUDA's folder, NVIDIA's Python packages."""
    for major in (13, 12):
        yield f"libcudart.so.{major}"
    if found := ctypes.util.find_library("cudart"):
        yield found
    yield from sorted(glob.glob("/usr/local/cuda*/lib64/libcudart.so.1[23]"), reverse=True)
    for folder in sys.path:
        yield from glob.glob(f"{folder}/nvidia/*/lib/libcudart.so.1[23]")


class Cuda:
    """libcudart with checked calls. Raises VitedgeError with CUDA's own words."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p
        library.cudaGetErrorString.argtypes = [_INT]
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls `name` and raises where it returns an error."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self._error(name, code)

    def _error(self, name: str, code: int) -> VitedgeError:
        why = f"{name}: {(self._library.cudaGetErrorString(code) or b'unknown error').decode()} ({code})."
        if code == _OUT_OF_MEMORY:
            return VitedgeError(
                "The GPU's memory is full.",
                why,
                "Stop other programs, use a smaller batch, lower --workspace-mib; on a Jetson add swap, "
                "and build without a desktop (sudo systemctl isolate multi-user.target).",
                exit_code=1,
            )
        if code in _NO_DRIVER:
            return VitedgeError(
                "No NVIDIA GPU can be used here.",
                why,
                "Build and run TensorRT engines on the machine with the GPU (copy the run folder there); "
                "nvidia-smi, or tegrastats on a Jetson, shows whether its driver works.",
            )
        return VitedgeError("A call to CUDA failed.", why, "", exit_code=1)

    def new(self, name: str, *arguments: Any) -> int:
        """Calls `name(&handle, *arguments)` and returns the handle."""
        handle = _POINTER()
        self(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def integer(self, name: str, *arguments: Any) -> int:
        """Calls `name(&int, *arguments)` and returns the number."""
        number = _INT()
        self(name, ctypes.byref(number), *arguments)
        return number.value

    def stream(self) -> int:
        return self.new("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def event(self) -> int:
        return self.new("cudaEventCreate")

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events that have passed."""
        value = ctypes.c_float()
        self("cudaEventElapsedTime", ctypes.byref(value), start, end)
        return value.value

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self("cudaMemcpyAsync", device, host, size, _TO_DEVICE, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self("cudaMemcpyAsync", host, device, size, _TO_HOST, stream)

    def begin_capture(self, stream: int) -> None:
        self("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The executable graph of what was captured since `begin_capture`."""
        graph = _POINTER()
        self("cudaStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return self.new("cudaGraphInstantiateWithFlags", graph.value, 0)
        finally:
            self("cudaGraphDestroy", graph.value)


class Pinned:
    """A page-locked host buffer and its device twin, with the host side as a numpy array."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self.cuda = cuda
        self.size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.host = cuda.new("cudaMallocHost", self.size)
        try:
            self.device = cuda.new("cudaMalloc", self.size)
        except VitedgeError:
            cuda("cudaFreeHost", self.host)
            raise
        raw = (ctypes.c_uint8 * self.size).from_address(self.host)
        self.array: np.ndarray = np.frombuffer(memoryview(raw), dtype).reshape(shape)

    def close(self) -> None:
        self.cuda("cudaFree", self.device)
        self.cuda("cudaFreeHost", self.host)


@cache
def load() -> Cuda:
    """CUDA's runtime library, with at least one GPU behind it. Raises VitedgeError."""
    errors = []
    for path in candidates():
        try:
            cuda = Cuda(ctypes.CDLL(path))
        except (OSError, AttributeError) as error:
            errors.append(str(error))
            continue
        if cuda.integer("cudaGetDeviceCount") < 1:
            raise cuda._error("cudaGetDeviceCount", 100)
        return cuda
    raise VitedgeError(
        "CUDA's runtime library (libcudart, version 12 or newer) was not found.",
        errors[0] if errors else "",
        "On a Jetson: sudo apt install nvidia-jetpack. On a PC: NVIDIA's driver, and pip install "
        "nvidia-cuda-runtime-cu12.",
    )


def gpu_facts(cuda: Cuda) -> dict[str, str]:
    """Name and compute capability of GPU 0, CUDA's version, and the one that the driver serves."""

    def dotted(number: int) -> str:
        return f"{number // 1000}.{number % 1000 // 10}"

    major, minor = (cuda.integer("cudaDeviceGetAttribute", which, 0) for which in (_MAJOR, _MINOR))
    return {
        "gpu": _gpu_name(),
        "compute_capability": f"{major}.{minor}",
        "cuda": dotted(cuda.integer("cudaRuntimeGetVersion")),
        "driver_cuda": dotted(cuda.integer("cudaDriverGetVersion")),
    }


def _gpu_name() -> str:
    # The driver's call: the layout of cudaDeviceProp differs between versions of CUDA.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(256)
    device = _INT()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    if failed or driver.cuDeviceGetName(text, 256, device):
        return "unknown"
    return text.value.decode()
