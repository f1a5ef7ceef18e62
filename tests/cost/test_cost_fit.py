"""Coefficients from latencies, and how they are kept."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.stats import spearmanr

from vitedge.cost import fit, store
from vitedge.cost.model import LatencyModel, load
from vitedge.cost.plans import draw_plans
from vitedge.cost.terms import model_terms
from vitedge.errors import VitedgeError
from vitedge.vit.config import uniform

DENSE = uniform(image_size=64, patch_size=8, width=48, depth=4, heads=3, hidden=96, classes=10)


def test_nonnegative_least_squares_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((30, 6))
    b = a @ np.array([1.0, 0.0, 2.0, 0.0, 0.5, 0.0]) + rng.normal(0, 0.2, 30)
    expected, _ = nnls(a, b)
    assert (expected == 0).any()
    np.testing.assert_allclose(fit.nonnegative(a, b, ridge=0.0), expected, atol=1e-6)


def test_the_coefficients_that_made_latencies_are_found_again() -> None:
    true = {"linear": 0.02, "attention": 0.1, "norm": 0.6, "softmax": 1.5, "operator": 900.0}
    made = LatencyModel(target="t", precision="fp32", coefficients=true, source="made up")
    plans = draw_plans(DENSE, 30, seed=5)
    rng = np.random.default_rng(1)
    ms = [made.predict(plan).ms * rng.normal(1, 0.01) for plan in plans]
    found = fit.fit([model_terms(plan) for plan in plans], ms)
    own = LatencyModel(target="t", precision="fp32", coefficients={str(k): v for k, v in found.items()}, source="")
    others = draw_plans(DENSE, 20, seed=6)
    errors = fit.compare([own.predict(p).ms for p in others], [made.predict(p).ms for p in others])
    assert errors.most < 0.03 and errors.rank_correlation > 0.98


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 6, 25), rng.random(25)
    assert fit.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert fit.spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_a_model_is_found_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.find("onnxruntime", "fp32", None, 48) is None
    model = LatencyModel(target="onnxruntime", precision="fp32", coefficients={"linear": 0.01}, source="a test")
    file = store.keep(model, 48)
    assert load(file) == model == store.find("onnxruntime", "fp32", None, 48)
    assert store.find("onnxruntime", "fp32", None, 64) is None, "kernels of another width run at another speed"
    file.write_text('{"schema": 1}')
    assert store.find("onnxruntime", "fp32", None, 48) is None
    with pytest.raises(VitedgeError, match=r"coefficients"):
        load(file)
