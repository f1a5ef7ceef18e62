"""A build is judged by the float model that it was built from, and says too how near it is to the model as it came."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vitedge.steps.build import check_artifact
from vitedge.targets.base import Probe

IMAGES = np.zeros((8, 4, 4, 3), np.uint8)


@dataclass
class Fixed:
    """A target whose artifact gives these logits."""

    logits: np.ndarray
    device = "cpu"

    def probe(self) -> Probe:
        return Probe("fixed", True, True)

    def open(self, artifact: Path, metadata: dict) -> Fixed:
        return self

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        return self.logits[: len(pixels)]

    def close(self) -> None:
        pass


def _checked(logits: np.ndarray, reference: np.ndarray, **more) -> dict:
    return check_artifact(Fixed(logits), Path("x"), {"precision": "fp32"}, IMAGES, reference, "images", **more)


def test_a_pruned_model_agrees_with_itself_and_not_with_the_source():
    pruned = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    source = np.eye(4)[[0, 1, 2, 3, 1, 2, 2, 3]]
    found = _checked(pruned, pruned, source=source)
    assert found["accepted"] and found["agreement"] == 1 and found["sqnr_db"] is None
    assert found["reference"] == "the float model that it was built from"
    assert found["source_agreement"] == 0.75
    assert found["source_sqnr_db"] == pytest.approx(10 * np.log10(8 / 4), abs=0.01)


def test_where_nothing_changed_the_function_both_are_the_same():
    logits = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    found = _checked(logits, logits + 0.01)
    assert (found["source_agreement"], found["source_sqnr_db"]) == (found["agreement"], found["sqnr_db"])


def test_a_single_logit_is_judged_by_its_sign():
    logits = np.array([[1.0], [1], [1], [1], [1], [1], [-1], [-1]])
    found = _checked(logits, np.ones((8, 1)))
    assert found["agreement"] == 0.75 and found["accepted"] is False and "0.750" in found["reason"]
