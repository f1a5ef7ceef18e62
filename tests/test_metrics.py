"""One definition each of agreement, KL, SQNR and cosine, against scipy and scikit-learn's arithmetic."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from vitedge import metrics

RNG = np.random.default_rng(0)
A = RNG.normal(3, 2, (40, 7)).astype(np.float32)
B = (A + RNG.normal(0, 0.5, A.shape)).astype(np.float32)


def test_sqnr_is_a_ratio_of_energies_with_the_mean_in_it():
    signal = np.square(A.astype(np.float64)).sum()
    noise = np.square(A.astype(np.float64) - B).sum()
    assert metrics.sqnr_db(A, B) == pytest.approx(10 * np.log10(signal / noise))
    # Logits far from zero: a ratio of variances would give another figure.
    assert metrics.sqnr_db(A + 10, B + 10) > metrics.sqnr_db(A, B) + 3


def test_without_noise_sqnr_is_infinite_and_json_gets_null():
    assert metrics.sqnr_db(A, A) == math.inf and metrics.finite(metrics.sqnr_db(A, A)) is None
    assert metrics.sqnr_db(np.zeros((2, 3)), B[:2, :3]) == -math.inf
    assert metrics.finite(12.3456, 2) == 12.35 and metrics.finite(None) is None
    assert metrics.fidelity(A, A) == {"agreement": 1.0, "sqnr_db": None}


def test_energies_of_batches_add_up():
    parts = np.sum([metrics.energies(A[i : i + 8], B[i : i + 8]) for i in range(0, 40, 8)], 0)
    assert metrics.sqnr_of(*parts) == pytest.approx(metrics.sqnr_db(A, B))


def test_kl_is_that_of_the_reference_from_the_other():
    expected = rel_entr(softmax(A.astype(float), 1), softmax(B.astype(float), 1)).sum(1)
    assert metrics.kl_by_image(A, B) == pytest.approx(expected)
    assert metrics.kl(A, B) == pytest.approx(expected.mean()) and metrics.kl(A, A) == 0
    assert metrics.kl(A, B) != pytest.approx(metrics.kl(B, A), rel=1e-3)
    assert metrics.log_softmax(A.astype(float)) == pytest.approx(log_softmax(A.astype(float), 1))


def test_kl_of_several_labels_sums_over_yes_and_no():
    p, q = (1 / (1 + np.exp(-x.astype(float))) for x in (A, B))
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(1)
    assert metrics.kl_by_image(A, B, "sigmoid") == pytest.approx(expected)
    far = metrics.kl(np.array([[800.0, -800.0]]), np.array([[-800.0, 800.0]]), "sigmoid")
    assert far == pytest.approx(1600)  # no overflow


def test_agreement_of_one_class_of_several_labels_and_of_a_single_logit():
    one = np.array([[1.0, 2, 0], [3, 1, 0]])
    other = np.array([[0.5, 0.1, 0], [4, 1, 0]])
    assert metrics.agreement(one, other) == 0.5
    # The first image has the labels {0, 1} in both, the second too: with several labels they agree.
    assert metrics.agreement(one, other, "sigmoid") == 1.0
    # A single logit says yes or no: argmax would call all of them equal.
    assert metrics.agreement([[1.0], [-1.0], [0.2]], [[2.0], [1.0], [0.1]]) == pytest.approx(2 / 3)
    assert metrics.decisions([[0.5], [-0.5]]).tolist() == [1, 0]


def test_cosine():
    expected = float((A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum()))
    assert metrics.cosine(A, B) == pytest.approx(expected, rel=1e-6)
    assert metrics.cosine(A, np.zeros_like(A)) == 0 and metrics.cosine(A, -A) == pytest.approx(-1)


def test_a_logit_that_is_no_number_never_wins():
    assert metrics.without_gaps([[np.nan, -1e9], [np.inf, 0]]).argmax(1).tolist() == [1, 1]


def test_nobody_else_computes_a_signal_to_noise_ratio():
    root = Path(metrics.__file__).parent
    own = re.compile(r"10(\.0)? \* .*log10\(")
    others = [p.name for p in root.rglob("*.py") if p.name != "metrics.py" and own.search(p.read_text())]
    assert others == []
