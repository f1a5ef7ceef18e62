"""A build whose logits are no numbers says where FP16 ends and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.steps.build import check_artifact
from vitedge.targets.base import Probe


@dataclass
class Overflowing:
    """A target whose artifact gives `logits`."""

    logits: np.ndarray
    device = "simulator"

    def probe(self) -> Probe:
        return Probe("npu", True, True)

    def open(self, artifact: Path, metadata: dict) -> Overflowing:
        return self

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        return self.logits[: len(pixels)]

    def close(self) -> None:
        pass


def checked(logits: np.ndarray, graph: Path | None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(logits), 32, 32, 3), np.uint8)
    metadata = {"precision": "fp16"}
    check_artifact(Overflowing(logits), Path("x"), metadata, images, np.ones_like(logits), "images", graph)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_block_that_overflows_is_named(value: float, tiny_model, tiny_config, tmp_path: Path) -> None:
    with torch.no_grad():  # the second block's MLP carries its stream beyond 65504
        tiny_model.blocks[1].mlp.fc2.bias[3] = 1e6
    weights = {k: v.numpy() for k, v in tiny_model.state_dict().items()}
    onnx.save(export_vit(tiny_config, weights, Preprocess(32, 32), 1), tmp_path / "float32.onnx")
    logits = np.ones((4, 10), np.float32)
    logits[2, 3] = value
    with pytest.raises(VitedgeError, match="FP16 overflows at block 1") as error:
        checked(logits, tmp_path / "float32.onnx")
    assert "65504" in error.value.why and "--precision int8" in error.value.todo and error.value.exit_code == 1
    with pytest.raises(VitedgeError, match="computes no numbers"):
        checked(logits, None)
