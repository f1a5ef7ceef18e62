from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from vitedge.bench import accuracy, records
from vitedge.bench.evaluate import RecordFile


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
    assert found.top1 == pytest.approx((order[:, 0] == labels).mean())
    assert found.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert found.agreement == pytest.approx((logits.argmax(1) == reference.argmax(1)).mean())
    noise = np.square(logits.astype(np.float64) - reference).sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(np.square(reference.astype(np.float64)).sum() / noise))
    special = pytest.importorskip("scipy.special")
    q, p = (special.log_softmax(x.astype(np.float64), axis=1) for x in (reference, logits))
    assert found.kl_nats == pytest.approx((np.exp(q) * (q - p)).sum(1).mean(), rel=1e-5)
    change = (logits.argmax(1) == labels).mean() - (reference.argmax(1) == labels).mean()
    assert found.delta_top1 == pytest.approx(change)
    assert found.delta_ci95[0] < change < found.delta_ci95[1] and found.won != found.lost
    json.dumps(asdict(found), allow_nan=False)


def test_calibration_error_by_hand():
    made = np.zeros(4, records.RECORD)
    made["confidence"], made["rank"] = [0.95, 0.95, 0.55, 0.55], [0, 0, 0, 1]
    # Two bins: |0.95 - 1| over half of the images, |0.55 - 0.5| over the other half.
    assert accuracy.calibration_error(made, bins=10) == pytest.approx(0.05, abs=1e-6)


def test_a_model_equal_to_its_reference_has_no_sqnr_and_full_agreement():
    labels, reference, _ = _logits()
    base = records.make(np.arange(600), reference, labels, reference)
    found = accuracy.figures(base, base)
    assert found.sqnr_db is None and found.agreement == 1 and found.kl_nats == 0 and found.mcnemar_p == 1


def test_without_labels_or_reference_those_figures_are_none():
    _, reference, logits = _logits()
    found = accuracy.figures(records.make(np.arange(600), logits, None, reference))
    assert found.top1 is None and found.delta_top1 is None and found.agreement is not None
    assert accuracy.figures(records.make(np.arange(600), logits)).agreement is None
    assert accuracy.figures(np.zeros(0, records.RECORD)).top1 is None


def test_equal_logits_are_no_hit_for_every_class_and_nan_is_counted():
    made = records.make(np.arange(2), np.zeros((2, 8), np.float32), np.array([0, 7]))
    assert made["rank"].tolist() == [0, 7] and made["pred"].tolist() == [0, 0]
    broken = np.full((1, 8), np.nan, np.float32)
    found = accuracy.figures(records.make(np.arange(1), broken, np.array([3]), np.ones((1, 8), np.float32)))
    assert found.not_finite == 1 and found.top1 == 0
    json.dumps(asdict(found), allow_nan=False)


def test_records_survive_a_torn_write(tmp_path):
    labels, reference, logits = _logits()
    made = records.make(np.arange(600), logits, labels, reference)
    path = tmp_path / "row.rec"
    file = RecordFile(path, with_logits=True)
    assert file.found.size == 0
    file.append(made[:100], logits[:100])
    with path.open("ab") as torn:
        torn.write(b"torn")
    again = RecordFile(path, with_logits=True)
    assert again.found.size == 100 and np.array_equal(again.logits(0, 100), logits[:100])
    again.append(made[100:], logits[100:])
    whole = RecordFile(path, with_logits=True)
    assert np.array_equal(whole.found, made) and np.array_equal(whole.logits(0, 600), logits)


def test_what_each_image_was_fits_into_a_few_bytes():
    labels, reference, logits = _logits()
    made = records.make(np.arange(600), logits, labels, reference)
    found = accuracy.by_image(made)
    assert np.array_equal(found.bits("right"), logits.argmax(1) == labels) and len(found.right) == 100
    assert np.array_equal(found.bits("agrees"), logits.argmax(1) == reference.argmax(1))
    assert accuracy.by_image(records.make(np.arange(600), logits)).bits("right") is None
    assert replace(found, right="AAAA").bits("right") is None  # damaged


def test_agreement_of_several_labels_and_of_a_single_logit():
    one = np.array([[2.0, 1.0], [2.0, -1.0]])
    other = np.array([[1.0, 2.0], [2.0, 1.0]])  # the same labels, then one more
    made = records.make(np.arange(2), other, None, one, "sigmoid")
    assert made["same"].tolist() == [True, False] and accuracy.figures(made).agreement == 0.5
    logits, reference = np.array([[1.0], [-1.0], [3.0]]), np.ones((3, 1))
    single = records.make(np.arange(3), logits, np.array([1, 0, 0]), reference)
    assert single["pred"].tolist() == [1, 0, 1] and single["rank"].tolist() == [0, 0, 1]
    assert single["same"].tolist() == [True, False, True] and single["confidence"][0] == pytest.approx(0.7311, abs=1e-4)


def test_figures_of_several_labels():
    scores = np.array([[1.0, -1, 2], [1, 1, -1]])
    targets = np.array([[True, False, True], [True, False, False]])
    found = accuracy.multi_label(scores, targets)
    assert found.exact_match == 0.5 and found.f1 == pytest.approx(2 * 3 / 7)


def test_other_images_are_no_baseline():
    labels, reference, _ = _logits()
    made = records.make(np.arange(600), reference, labels, reference)
    with pytest.raises(ValueError, match="same images"):
        accuracy.figures(made, made[::-1])


def test_per_class_lists_the_worst_first_and_what_it_is_taken_for():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    made = records.make(np.arange(4), logits, np.array([0, 0, 1, 1]))
    rows = accuracy.per_class(made)
    assert [(row.label, row.n, row.top1, row.taken_for, row.times) for row in rows] == [
        (1, 2, 0.5, 0, 1),
        (0, 2, 1.0, None, 0),
    ]
    assert accuracy.confusion(made).tolist() == [[2, 0], [1, 1]]


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


def test_embeddings_are_judged_by_the_nearest_other_image() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (4, 16))
    labels = np.arange(40) % 4
    reference = centres[labels] + rng.normal(0, 0.1, (40, 16))
    near = reference + rng.normal(0, 0.01, reference.shape)
    made = [records.make(np.arange(k, k + 8), near[k : k + 8], None, reference[k : k + 8], "none")
            for k in range(0, 40, 8)]  # fmt: skip
    found = accuracy.judge_embeddings(np.concatenate(made), reference, near)
    cosine = (near * reference).sum(1) / np.linalg.norm(near, axis=1) / np.linalg.norm(reference, axis=1)
    figures, judged = accuracy.figures(found), accuracy.embedded(found, near, labels)
    assert judged.cosine_mean == pytest.approx(cosine.mean(), abs=1e-6) and judged.knn_top1 == 1.0
    assert judged.cosine_worst == pytest.approx(cosine.min(), abs=1e-6)

    def first(x):
        d = x / np.linalg.norm(x, axis=1, keepdims=True)
        similarity = d @ d.T - 2 * np.eye(len(x))
        return similarity.argmax(1)

    assert figures.agreement == (first(near) == first(reference)).mean() < 1 and figures.top1 is None
    assert accuracy.embedded(found, rng.permutation(near), labels).knn_top1 < 0.7
    # Three images: no more neighbours than there are others.
    assert accuracy.neighbours(near[:3]).shape == (3, 2)
