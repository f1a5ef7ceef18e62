"""The vendor's simulator on a PC: for accuracy, never for a latency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.targets.base import Runner
from vitedge.targets.rknn.calls import CONFIG, SIMULATOR, simulate
from vitedge.targets.rknn.client import Worker
from vitedge.targets.rknn.toolchain import Toolchain


class SimulatorRunner(Runner):
    """A worker that has rebuilt the artifact's model, and keeps it."""

    device = "simulator"
    batch: int | None = 1

    def __init__(
        self, artifact: Path, metadata: Mapping[str, Any], toolchain: Toolchain, *, limit: float = 600
    ) -> None:
        """Raises VitedgeError where the toolkit is another version than the artifact's, or its files are gone."""
        if toolchain.version != metadata["toolkit"]:
            raise VitedgeError(
                f"'{artifact.name}' was built by rknn-toolkit2 {metadata['toolkit']}.",
                f"The toolchain here is {toolchain.version}: its simulator would run another model.",
                "Build it again with `vitedge build --target rknn`.",
            )
        folder = (artifact.parent / SIMULATOR).absolute()
        if not folder.is_dir():
            raise VitedgeError(
                f"'{artifact}' can't be simulated: '{folder}' is missing.",
                "The simulator can't load a .rknn; it starts from what the build left there.",
                "Build it again with `vitedge build --target rknn`.",
            )
        self.limit = limit
        self.worker = Worker(toolchain)
        try:
            if (graph := folder / "model.onnx").is_file():
                fields = {
                    "onnx": str(graph),
                    "platform": metadata["platform"],
                    "channels": metadata["input"]["shape"][3],
                }
                self.worker.request("build_float", limit=limit, config=CONFIG, **fields)
            else:
                base = str(folder / "model")
                self.worker.request("assemble", limit=limit, base=base, cfg=f"{base}.cfg")
        except BaseException:
            self.worker.close()
            raise

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 logits [N, classes]."""
        return simulate(self.worker, pixels, self.limit)

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs, float32: the logits [N, classes], then the taps, a row an image."""
        source, folder = self.worker.folder / "pixels.npy", str(self.worker.folder)
        np.save(source, pixels)
        limit = self.limit + 30.0 * len(pixels)
        count = self.worker.request("outputs", limit=limit, pixels=str(source), folder=folder)["count"]
        return [np.load(self.worker.folder / f"{number}.npy").reshape(len(pixels), -1) for number in range(count)]

    def close(self) -> None:
        """Ends the worker."""
        self.worker.close()
