"""The builds of one graph: quantised once, assembled with many assignments, measured in the simulator."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from vitedge.targets.base import CostTable
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.cost import make_table, parse_layers, parse_memory
from vitedge.targets.rknn.faults import refuse_overflow
from vitedge.workers import Message

# What the simulator needs to come up again from a folder: it can't load a .rknn.
SIMULATOR = "simulator"


class Settings(TypedDict, total=False):
    """Arguments of the toolkit's `rknn.config`; what is left out is its own default."""

    remove_reshape: bool
    disable_rules: list[str]
    optimization_level: int
    quantized_algorithm: str
    quantized_dtype: str


# The output stays 4-D, as the NPU has it: its Reshape would run on the CPU. The runners flatten it.
CONFIG: Settings = {"remove_reshape": True}
# What makes exSDPAttention of MatMul-Softmax-MatMul. airockchip/rknn-toolkit2#298 switches the first off; toolkit 2.5.0
# then fails in the second, and says to switch that off too.
FUSED_ATTENTION = ["fuse_matmul_softmax_matmul_to_sdpa", "fuse_exmatmul_add_mul_exsoftmax13_exmatmul_to_sdpa"]


def config(attention: str = "fused", level: int | None = None) -> Settings:
    """The toolkit's configuration. attention: "fused" or "parts"; level: of its optimisation, None for its own."""
    found: Settings = {**CONFIG}
    if attention == "parts":
        found["disable_rules"] = FUSED_ATTENTION
    return found if level is None else with_level(found, level)


def with_level(settings: Settings, level: int) -> Settings:
    """The same at that level of optimisation."""
    return {**settings, "optimization_level": level}


class Compiler:
    """One worker and the graph that it has. Paths are absolute; the toolkit works in the worker's folder."""

    def __init__(
        self,
        worker: Worker,
        graph: Path,
        platform: str,
        channels: int,
        limit: float,
        settings: Settings = CONFIG,
    ) -> None:
        self.worker, self.graph, self.limit, self.settings = worker, graph, limit, settings
        self.platform, self.channels = platform, channels
        self.log_start = 0
        self.precision = "fp16"
        self.float16: list[str] = []

    def of(self, graph: Path, settings: Settings | None = None) -> Compiler:
        """The same compiler for another graph, or with other settings; what was built before is gone."""
        return Compiler(self.worker, graph, self.platform, self.channels, self.limit, settings or self.settings)

    def call(self, op: str, **fields: object) -> Message:
        """One request, within the time limit."""
        return self.worker.request(op, limit=self.limit, **fields)

    def build_float(self) -> None:
        """The model in float16."""
        self._mark()
        self.precision = "fp16"
        self._load("build_float", self.settings)
        refuse_overflow(self.log())

    def quantize(self, dataset: Path, algorithm: str) -> list[str]:
        """INT8 ranges on the data set; the names of the compiler's tensors."""
        self.precision = "int8"
        settings: Settings = {**self.settings, "quantized_algorithm": algorithm, "quantized_dtype": "w8a8"}
        return list(self._load("quantize", settings, dataset=str(dataset))["tensors"])

    def assemble(self, float16: Sequence[str]) -> None:
        """The quantised model with these tensors in float16."""
        self._mark()
        self.float16 = list(float16)
        self.call("assemble", float16=self.float16)
        refuse_overflow(self.log())

    def again(self) -> None:
        """The last build once more, after another one in the same worker."""
        if self.precision == "fp16":
            self.build_float()
        else:
            self.assemble(self.float16)

    def log(self) -> str:
        """What the compiler said of the last build."""
        return self.worker.text(self.log_start)

    def cost(self) -> CostTable:
        """The compiler's table of the last build; an empty one where it printed none."""
        return parse_layers(self.log()) or make_table([])

    def memory(self) -> dict[str, float]:
        """Weights and internal tensors in KiB, of the last build."""
        return parse_memory(self.log())

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

    def _load(self, op: str, settings: Settings, **fields: object) -> Message:
        """A request that starts from the graph."""
        graph = {"onnx": str(self.graph), "platform": self.platform, "channels": self.channels}
        return self.call(op, **graph, config=settings, **fields)

    def _mark(self) -> None:
        self.log_start = self.worker.log.stat().st_size


def simulate(worker: Worker, pixels: np.ndarray, limit: float) -> np.ndarray:
    """Runs the simulator of what the worker has built; files go through the worker's folder."""
    source, target = worker.folder / "pixels.npy", worker.folder / "logits.npy"
    np.save(source, pixels)
    # The limit is for one call of the compiler; simulating takes as long as there are images.
    worker.request("infer", limit=limit + 30.0 * len(pixels), pixels=str(source), logits=str(target))
    return np.load(target)
