"""Latencies of plans with random weights, as a target on this machine runs them. Loads torch and onnx."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vitedge.data.preprocess import Preprocess
from vitedge.documents import Json
from vitedge.quant.options import Preset
from vitedge.targets.base import BuildRequest, Runner, Target, TargetOptions
from vitedge.vit.config import ViTConfig

# Calls of one turn: at least so many, and for so long; the first ones are not counted.
WARM_UP, CALLS, SECONDS, ROUNDS = 4, 12, 0.25, 3


def write_plan(
    config: ViTConfig, folder: Path, target: Target, precision: str, preset: Preset, options: TargetOptions
) -> tuple[Path, Json]:
    """Builds the plan's artifact in `folder`, an empty one, and returns it with its metadata.

    The weights are random: they mean nothing for speed. So are INT8 scales.
    """
    import onnx

    from vitedge.export.vit import export_vit
    from vitedge.vit.model import random_weights

    preprocess = Preprocess.centred(config.image_size, config.channels)
    model = random_weights(config)
    graph = export_vit(config, {k: v.numpy() for k, v in model.state_dict().items()}, preprocess)
    onnx.save(graph, folder / "float32.onnx")
    graphs = {"float32": folder / "float32.onnx"}
    if precision == "int8":
        onnx.save(_int8(model, graph, preprocess, preset), folder / "int8.onnx")
        graphs["int8"] = folder / "int8.onnx"
    out = folder / "build"
    out.mkdir()
    request = BuildRequest(graphs["float32"], out, precision, None, options, onnx_by_precision=graphs)
    result = target.build(request)
    return out / result.artifact, {"precision": precision, "platform": None} | result.metadata


def _int8(model: Any, graph: Any, preprocess: Preprocess, preset: Preset) -> Any:
    from vitedge.quant import Activation, QuantOptions, insert_qdq, round_weights
    from vitedge.quant.layout import values
    from vitedge.vit.products import PIXELS

    scales = {name: Activation(1.0 if name == PIXELS else 0.05, 0) for name in values(model.config, preset)}
    scheme = round_weights(model, None, QuantOptions(preset=preset), preprocess)
    return insert_qdq(graph, replace(scheme, preset=preset, activations=scales))


def time_artifacts(
    openers: Sequence[Callable[[], Runner]], config: ViTConfig, told: Callable[[int], None] = lambda n: None
) -> list[float]:
    """The median milliseconds of an image for each artifact, in the order of `openers`.

    One artifact is open at a time, since the waiting threads of one runtime slow another one down, and all have a turn
    in each round, since machines drift.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (1, *config.image_size, config.channels), dtype=np.uint8)
    times: list[list[float]] = [[] for _ in openers]
    for _ in range(ROUNDS):
        for number, opener in enumerate(openers):
            times[number].append(_turn(opener, pixels))
            told(1)
    return [median(values) for values in times]


def _turn(opener: Callable[[], Runner], pixels: np.ndarray) -> float:
    runner = opener()
    try:
        for _ in range(WARM_UP):
            runner.infer(pixels)
        spent: list[float] = []
        while len(spent) < CALLS or (sum(spent) < SECONDS and len(spent) < 400):
            started = time.perf_counter()
            runner.infer(pixels)
            spent.append(time.perf_counter() - started)
    finally:
        runner.close()
    return 1e3 * median(spent)
