"""Runs an engine: IO-tensor API, one stream, pinned host buffers, times by CUDA events. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.targets.base import Runner, Times
from vitedge.targets.tensorrt import api
from vitedge.targets.tensorrt.cuda import Cuda, Pinned
from vitedge.targets.tensorrt.facts import machine_facts, read_plan, refuse_misfit
from vitedge.targets.tensorrt.options import Profile


class TensorRTRunner(Runner):
    """One engine, one execution context. `last_times` holds the device times of the last pass of `infer`."""

    device = "gpu"

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, *, cuda_graph: bool = False) -> None:
        """Raises VitedgeError where TensorRT does not take the plan."""
        self.trt, self.cuda, self.use_graph = trt, cuda, cuda_graph
        self.logger = api.make_logger(trt, lambda _: None)
        self.last_times: Times | None = None
        self._buffers: tuple[Pinned, Pinned] | None = None
        self._graph: int | None = None
        runtime = trt.Runtime(self.logger)
        # Version-compatible engines carry their runtime as code; vitedge opens only engines of the user's
        # own.
        runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise VitedgeError(
                "TensorRT can't read this engine.",
                " ".join(self.logger.lines[-3:]) or "It is damaged, or of another version or GPU.",
                "Build it here: vitedge build --target tensorrt.",
                exit_code=1,
            )
        context = engine.create_execution_context()
        if context is None:
            raise VitedgeError(
                "There is not enough GPU memory to run this engine.",
                " ".join(self.logger.lines[-3:]),
                "Stop other programs, or build with a smaller batch.",
                exit_code=1,
            )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.input_name = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.output_name = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        shape = tuple(engine.get_tensor_shape(self.input_name))
        self.image_shape = shape[1:]
        self.classes = tuple(engine.get_tensor_shape(self.output_name))[-1]
        self.batch = shape[0] if shape[0] > 0 else None
        self.profiles = [Profile(shape[0], shape[0], shape[0])]
        if self.batch is None:
            bounds = [
                engine.get_tensor_profile_shape(self.input_name, index)
                for index in range(engine.num_optimization_profiles)
            ]
            self.profiles = [Profile(*(int(next(iter(dims))) for dims in each)) for each in bounds]
        self.runtime, self.engine, self.context = runtime, engine, context
        self._profile = 0
        self._prepared: int | None = None
        self.stream = cuda.stream()
        self.events = [cuda.event() for _ in range(4)]

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, classes]. Any N: larger ones run in pieces."""
        if tuple(pixels.shape[1:]) != tuple(self.image_shape):
            raise VitedgeError(f"The images are {pixels.shape[1:]}, the engine takes {tuple(self.image_shape)}.")
        logits = [self._pass(pixels[start:end], size) for start, end, size in self.pieces(len(pixels))]
        return np.concatenate(logits) if len(logits) != 1 else logits[0]

    def pieces(self, n: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, batch that is run) of each pass for `n` images; a short last piece is padded."""
        largest = max(p.hi for p in self.profiles)
        for start in range(0, n, largest):
            end = min(start + largest, n)
            wanted = end - start
            # The smallest batch that some profile takes and that holds the piece.
            yield start, end, min(max(p.lo, wanted) for p in self.profiles if p.hi >= wanted)

    def _pass(self, pixels: np.ndarray, size: int) -> np.ndarray:
        self._prepare(size)
        assert self._buffers is not None
        inputs, outputs = self._buffers
        inputs.array[: len(pixels)] = pixels
        inputs.array[len(pixels) : size] = pixels[-1]
        cuda, stream, (begin, copied, computed, done) = self.cuda, self.stream, self.events
        in_bytes, out_bytes = inputs.size // self._capacity * size, outputs.size // self._capacity * size
        cuda("cudaEventRecord", begin, stream)
        cuda.to_device(inputs.device, inputs.host, in_bytes, stream)
        cuda("cudaEventRecord", copied, stream)
        self._compute()
        cuda("cudaEventRecord", computed, stream)
        cuda.to_host(outputs.host, outputs.device, out_bytes, stream)
        cuda("cudaEventRecord", done, stream)
        cuda("cudaStreamSynchronize", stream)
        self.last_times = Times(
            cuda.elapsed_ms(begin, copied), cuda.elapsed_ms(copied, computed), cuda.elapsed_ms(computed, done)
        )
        return outputs.array[: len(pixels)].copy()

    def _prepare(self, size: int) -> None:
        """Shapes, profile, addresses and graph for this batch; nothing where they stand already."""
        if self._prepared == size:
            return
        context = self.context
        if self._buffers is None:
            self._capacity = max(p.hi for p in self.profiles)
            self._buffers = (
                Pinned(self.cuda, (self._capacity, *self.image_shape), np.uint8),
                Pinned(self.cuda, (self._capacity, self.classes), np.float32),
            )
        fitting = [i for i, p in enumerate(self.profiles) if p.lo <= size <= p.hi]
        index = min(fitting, key=lambda i: abs(self.profiles[i].best - size))
        if index != self._profile:
            self._check(context.set_optimization_profile_async(index, self.stream), "choose a profile")
            self.cuda("cudaStreamSynchronize", self.stream)
            self._profile = index
        if self.batch is None:
            self._check(context.set_input_shape(self.input_name, (size, *self.image_shape)), "set the batch")
        for name, buffer in zip((self.input_name, self.output_name), self._buffers, strict=True):
            self._check(context.set_tensor_address(name, buffer.device), "bind a tensor")
        self._drop_graph()
        if self.use_graph:
            # The first pass after a change of shape does work that can't be captured.
            self._check(context.execute_async_v3(self.stream), "run")
            self.cuda("cudaStreamSynchronize", self.stream)
            self.cuda.begin_capture(self.stream)
            captured = context.execute_async_v3(self.stream)
            self._graph = self.cuda.end_capture(self.stream)
            self._check(captured, "run in a CUDA graph")
        self._prepared = size

    def _compute(self) -> None:
        if self._graph is not None:
            self.cuda("cudaGraphLaunch", self._graph, self.stream)
        else:
            context = self.context
            self._check(context.execute_async_v3(self.stream), "run")

    def _check(self, fine: bool, what: str) -> None:
        if not fine:
            words = " ".join(self.logger.lines[-3:])
            raise VitedgeError(f"TensorRT could not {what}.", words, "", exit_code=1)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self.cuda("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def close(self) -> None:
        """Frees the device's memory. A closed runner can't be used again."""
        if self.stream:
            self._drop_graph()
            for buffer in self._buffers or ():
                buffer.close()
            for event in self.events:
                self.cuda("cudaEventDestroy", event)
            self.cuda("cudaStreamDestroy", self.stream)
            self.stream, self._buffers = 0, None
            # In this order: a context outlives neither its engine nor its runtime.
            self.context = self.engine = self.runtime = None


def open_engine(artifact: Path, metadata: Mapping[str, Any]) -> TensorRTRunner:
    """The runner of a built artifact. Raises VitedgeError where the engine is broken or does not fit."""
    from vitedge.targets.tensorrt import cuda

    trt = api.load()
    plan = read_plan(artifact, metadata)
    device = cuda.load()
    refuse_misfit(metadata, machine_facts(trt))
    return TensorRTRunner(trt, device, plan, cuda_graph=bool(metadata.get("cuda_graph")))
