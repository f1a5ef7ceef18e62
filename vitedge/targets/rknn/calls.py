"""The builds of one graph: quantised once, assembled with many assignments, measured in the simulator."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.targets.base import CostTable
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.cost import make_table, parse_layers, parse_memory

# What the simulator needs to come up again from a folder: it can't load a .rknn.
SIMULATOR = "simulator"


# The output stays 4-D, as the NPU has it: its Reshape would run on the CPU. The runners flatten it.
CONFIG = {"remove_reshape": True}


class Compiler:
    """One worker and the graph that it has. Paths are absolute; the toolkit works in the worker's folder."""

    def __init__(self, worker: Worker, graph: Path, platform: str, channels: int, limit: float) -> None:
        self.worker, self.graph, self.limit = worker, graph, limit
        self.fields = {"onnx": str(graph), "platform": platform, "channels": channels}
        self.log_start = 0
        self.precision = "fp16"

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request, within the time limit."""
        return self.worker.request(op, limit=self.limit, **fields)

    def build_float(self) -> None:
        """The model in float16."""
        self._mark()
        self.call("build_float", **self.fields, config=CONFIG)

    def quantize(self, dataset: Path, algorithm: str) -> list[str]:
        """INT8 ranges on the data set; the names of the compiler's tensors."""
        self.precision = "int8"
        config = CONFIG | {"quantized_algorithm": algorithm, "quantized_dtype": "w8a8"}
        answer = self.call("quantize", **self.fields, dataset=str(dataset), config=config)
        return list(answer["tensors"])

    def assemble(self, float16: Sequence[str]) -> None:
        """The quantised model with these tensors in float16."""
        self._mark()
        self.call("assemble", float16=list(float16))

    def cost(self) -> CostTable:
        """The compiler's table of the last build; an empty one where it printed none."""
        return parse_layers(self.worker.text(self.log_start)) or make_table([])

    def memory(self) -> dict[str, float]:
        """Weights and internal tensors in KiB, of the last build."""
        return parse_memory(self.worker.text(self.log_start))

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """The simulator's logits, float32 [N, classes], of uint8 [N, H, W, C]."""
        return simulate(self.worker, pixels, self.limit)

    def export(self, path: Path) -> None:
        """Writes the .rknn."""
        self.call("export", path=str(path))

    def keep_simulator(self, folder: Path) -> None:
        """Copies what the simulator of the last build starts from."""
        folder.mkdir(parents=True)
        if self.precision == "fp16":
            shutil.copyfile(self.graph, folder / "model.onnx")
            return
        base = self.worker.folder / self.graph.stem
        for suffix, name in ((".model", "model.model"), (".data", "model.data"), (".assembled.cfg", "model.cfg")):
            shutil.copyfile(f"{base}{suffix}", folder / name)

    def _mark(self) -> None:
        self.log_start = self.worker.log.stat().st_size


def simulate(worker: Worker, pixels: np.ndarray, limit: float) -> np.ndarray:
    """Runs the simulator of what the worker has built; files go through the worker's folder."""
    source, target = worker.folder / "pixels.npy", worker.folder / "logits.npy"
    np.save(source, pixels)
    # The limit is for one call of the compiler; simulating takes as long as there are images.
    worker.request("infer", limit=limit + 30.0 * len(pixels), pixels=str(source), logits=str(target))
    return np.load(target)
