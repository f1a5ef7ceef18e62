"""Embeddings of class names: read, refused, and what a model that gives embeddings is judged by with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitedge.bench import accuracy, records
from vitedge.data.texts import Texts, read_texts
from vitedge.errors import VitedgeError

NAMES = ["cat", "dog", "a \u00e9"]


def test_names_prompts_and_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 8)).astype(np.float32)
    np.savez(tmp_path / "one.npz", names=NAMES, embeddings=rows)
    found = read_texts(tmp_path / "one.npz")
    assert found.names == tuple(NAMES) and found.scale == 100
    assert np.allclose(found.embeddings, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    images = rng.normal(size=(5, 8))
    cosine = images @ rows.T / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    assert np.allclose(found.logits(images), 100 * cosine)
    # Prompts of any length count alike.
    prompts = np.stack([rows, 3 * rows[[1, 2, 0]]], 1)
    np.savez(tmp_path / "many.npz", names=NAMES, embeddings=prompts, scale=np.float32(7))
    many = read_texts(tmp_path / "many.npz")
    unit = found.embeddings + found.embeddings[[1, 2, 0]]
    assert many.scale == 7 and np.allclose(many.embeddings, unit / np.linalg.norm(unit, axis=1, keepdims=True))
    with pytest.raises(VitedgeError, match="have 8 dims"):
        found.logits(images[:, :4])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"names": NAMES}, "no array embeddings"),
        ({"names": NAMES, "embeddings": np.ones((2, 4))}, r"embeddings must be floats \[3, dims\]"),
        ({"names": NAMES, "embeddings": np.ones((3, 4), int)}, "must be floats"),
        ({"names": [1, 2, 3], "embeddings": np.ones((3, 4))}, "list of text"),
        ({"names": ["a", "b", "a"], "embeddings": np.ones((3, 4))}, "'a' is there twice"),
        ({"names": NAMES, "embeddings": np.full((3, 4), np.nan)}, "not finite"),
        ({"names": np.array(NAMES, object), "embeddings": np.ones((3, 4))}, "holds no text embeddings"),
    ],
)
def test_wrong_files(tmp_path: Path, arrays: dict, told: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(VitedgeError, match=told):
        read_texts(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(b"nothing of the kind")
    for name in ("y.npz", "z.npz"):
        with pytest.raises(VitedgeError, match=r"numpy\.savez"):
            read_texts(tmp_path / name)


def embeddings(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Sixty images of three classes near three directions; what compression changed."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 3
    clean = 2 * np.eye(3, 16)[labels] + rng.normal(size=(60, 16)) * 0.6
    return clean + noise * rng.normal(size=clean.shape), labels


def test_zero_shot_figures_are_those_of_the_classes() -> None:
    before, labels = embeddings(0, 0.0)
    after, _ = embeddings(0, 0.8)
    texts = Texts(("a", "b", "c"), np.eye(3, 16))
    made = records.make(np.arange(60), after, None, before, "none")
    figures, one_by_one = accuracy.zero_shot(made, texts.logits(after), labels, texts.logits(before))
    right = [(texts.logits(x).argmax(1) == labels) for x in (before, after)]
    assert figures["top1"] == pytest.approx(right[1].mean()) and figures["top5"] == 1
    assert figures["delta_top1"] == pytest.approx(right[1].mean() - right[0].mean())
    assert figures["lost"] == int((right[0] & ~right[1]).sum()) and figures["delta_ci95"][0] < 0
    assert "agreement" not in figures and (one_by_one.bits("right") == right[1]).all()


def test_neighbours_and_a_linear_probe() -> None:
    before, labels = embeddings(0, 0.0)
    made = records.make(np.arange(60), before, None, before, "none")
    same = accuracy.embedded(made, before, labels, before)
    assert same.recall_at_5 == same.overlap_at_5 == 1 and same.probe_top1 > 0.9
    other, _ = embeddings(0, 0.8)
    found = accuracy.embedded(made, other, labels, before)
    assert found.overlap_at_5 < found.recall_at_5 < 1
    # The probe was fitted before the change: what turns the embeddings ruins it, though they are as good in themselves.
    turned = before[:, ::-1]
    assert accuracy.linear_probe(turned, labels, before) < 0.6 < 0.9 < accuracy.linear_probe(turned, labels)
    assert accuracy.linear_probe(before, np.arange(60)) is None


def test_the_probe_is_ridge_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = embeddings(1, 0.3)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    folds, hits = np.arange(60) // 3 % 5, 0
    for fold in range(5):
        train, test = folds != fold, folds == fold
        centred = unit[train] - unit[train].mean(0)
        ridge = linear.Ridge(alpha=1e-2 * np.square(centred).sum() / 16).fit(unit[train], np.eye(3)[labels[train]])
        hits += int((ridge.predict(unit[test]).argmax(1) == labels[test]).sum())
    assert accuracy.linear_probe(x, labels) == pytest.approx(hits / 60)
