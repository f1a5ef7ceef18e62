from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vitedge.bench import accuracy, records


def _logits(n=600, classes=20, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    reference = rng.normal(0, 2, (n, classes)).astype(np.float32)
    reference[np.arange(n), labels] += 4
    return labels, reference, (reference + rng.normal(0, noise, reference.shape)).astype(np.float32)


def test_every_figure_against_its_definition():
    labels, reference, logits = _logits()
    made = records.make(np.arange(600), logits, labels, reference)
    base = records.make(np.arange(600), reference, labels, reference)
    found = accuracy.figures(made, base)
    order = np.argsort(-logits, 1)
    assert found["top1"] == pytest.approx((order[:, 0] == labels).mean())
    assert found["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert found["agreement"] == pytest.approx((logits.argmax(1) == reference.argmax(1)).mean())
    noise = np.square(logits.astype(np.float64) - reference).sum()
    assert found["sqnr_db"] == pytest.approx(10 * math.log10(np.square(reference.astype(np.float64)).sum() / noise))
    special = pytest.importorskip("scipy.special")
    q, p = (special.log_softmax(x.astype(np.float64), axis=1) for x in (reference, logits))
    assert found["kl"] == pytest.approx((np.exp(q) * (q - p)).sum(1).mean(), rel=1e-5)
    change = (logits.argmax(1) == labels).mean() - (reference.argmax(1) == labels).mean()
    assert found["delta_top1"] == pytest.approx(change)
    assert found["delta_ci95"][0] < change < found["delta_ci95"][1] and found["won"] != found["lost"]
    json.dumps(found, allow_nan=False)


def test_calibration_error_by_hand():
    made = np.zeros(4, records.RECORD)
    made["confidence"], made["rank"] = [0.95, 0.95, 0.55, 0.55], [0, 0, 0, 1]
    # Two bins: |0.95 - 1| over half of the images, |0.55 - 0.5| over the other half.
    assert accuracy.calibration_error(made, bins=10) == pytest.approx(0.05, abs=1e-6)


def test_a_model_equal_to_its_reference_has_no_sqnr_and_full_agreement():
    labels, reference, _ = _logits()
    base = records.make(np.arange(600), reference, labels, reference)
    found = accuracy.figures(base, base)
    assert found["sqnr_db"] is None and found["agreement"] == 1 and found["kl"] == 0 and found["mcnemar_p"] == 1


def test_without_labels_or_reference_those_figures_are_none():
    _, reference, logits = _logits()
    found = accuracy.figures(records.make(np.arange(600), logits, None, reference))
    assert found["top1"] is None and found["delta_top1"] is None and found["agreement"] is not None
    assert accuracy.figures(records.make(np.arange(600), logits))["agreement"] is None
    assert accuracy.figures(np.zeros(0, records.RECORD))["top1"] is None


def test_equal_logits_are_no_hit_for_every_class_and_nan_is_counted():
    made = records.make(np.arange(2), np.zeros((2, 8), np.float32), np.array([0, 7]))
    assert made["rank"].tolist() == [0, 7] and made["pred"].tolist() == [0, 0]
    broken = np.full((1, 8), np.nan, np.float32)
    found = accuracy.figures(records.make(np.arange(1), broken, np.array([3]), np.ones((1, 8), np.float32)))
    assert found["not_finite"] == 1 and found["top1"] == 0
    json.dumps(found, allow_nan=False)


def test_records_survive_a_torn_write(tmp_path):
    labels, reference, logits = _logits()
    made = records.make(np.arange(600), logits, labels, reference)
    path = tmp_path / "row.rec"
    assert records.load(path).size == 0
    records.append(path, made[:100])
    with path.open("ab") as file:
        file.write(b"torn")
    assert records.load(path).size == 100
    records.append(path, made[100:])
    assert np.array_equal(records.load(path), made)


def test_other_images_are_no_baseline():
    labels, reference, _ = _logits()
    made = records.make(np.arange(600), reference, labels, reference)
    with pytest.raises(ValueError, match="same images"):
        accuracy.figures(made, made[::-1])


def test_per_class_lists_the_worst_first():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    rows = accuracy.per_class(records.make(np.arange(4), logits, np.array([0, 0, 1, 1])), ["cat", "dog", "eel"])
    assert [(row["name"], row["n"], row["top1"]) for row in rows] == [("dog", 2, 0.5), ("cat", 2, 1.0)]


def test_mean_average_precision_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    targets = rng.random((300, 7)) < 0.2
    scores = np.round(targets + rng.normal(0, 1, targets.shape), 1)  # rounded: many are equal
    expected = metrics.average_precision_score(targets, scores, average="macro")
    assert accuracy.mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    targets[:, 3] = False
    kept = [0, 1, 2, 4, 5, 6]
    expected = metrics.average_precision_score(targets[:, kept], scores[:, kept], average="macro")
    assert accuracy.mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    assert accuracy.mean_average_precision(scores, np.zeros_like(targets)) is None
