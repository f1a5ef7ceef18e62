from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vitedge.report.attention import lit, rollout  # noqa: E402
from vitedge.vit.config import uniform  # noqa: E402
from vitedge.vit.model import VisionTransformer, init_weights  # noqa: E402


def _model(depth):
    return init_weights(
        VisionTransformer(uniform(image_size=32, patch_size=8, width=24, heads=3, depth=depth, hidden=32, classes=5))
    )


def test_the_rollout_against_its_definition():
    model = _model(3)
    seen = {}
    for name, site in model.sites().items():
        site.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.numpy().astype(np.float64)}))
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    found = rollout(model, pixels)
    probs = [seen[f"block{k}.attention.probs"].mean(1) for k in range(3)]
    full = [0.5 * p + 0.5 * np.eye(17) for p in probs[:2]]
    expected = (0.5 * probs[2][:, :1] + 0.5 * np.eye(17)[:1]) @ full[1] @ full[0]
    assert np.allclose(found.reshape(2, -1), expected[:, 0, 1:], atol=1e-6)
    assert found.shape == (2, 4, 4)
    assert np.allclose(found.sum((1, 2)) + expected[:, 0, 0], 1, atol=1e-5)  # a distribution over all tokens


def test_a_lit_image_is_dark_where_nothing_is_seen():
    attention = np.zeros((4, 4))
    attention[:2, :2] = 1
    image = lit(np.full((32, 32, 3), 200, np.uint8), attention)
    assert image[:6, :6].min() > 180 and image[-6:, -6:].max() < 60
