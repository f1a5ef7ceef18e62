from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.vit.variants import VARIANTS, images, make  # noqa: E402
from vitedge.report.attention import colored, rollout, rollouts  # noqa: E402
from vitedge.vit.config import uniform  # noqa: E402
from vitedge.vit.model import VisionTransformer, init_weights  # noqa: E402


def _model(depth):
    return init_weights(
        VisionTransformer(uniform(image_size=32, patch_size=8, width=24, heads=3, depth=depth, hidden=32, classes=5))
    )


def test_the_rollout_against_its_definition():
    model = _model(3)
    seen = recorded(model)
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    found = rollout(model, pixels)
    probs = [seen[f"block{k}.attention.probs"].mean(1) for k in range(3)]
    full = [0.5 * p + 0.5 * np.eye(17) for p in probs[:2]]
    expected = (0.5 * probs[2][:, :1] + 0.5 * np.eye(17)[:1]) @ full[1] @ full[0]
    assert np.allclose(found.reshape(2, -1), expected[:, 0, 1:], atol=1e-6)
    assert found.shape == (2, 4, 4)
    assert np.allclose(found.sum((1, 2)) + expected[:, 0, 0], 1, atol=1e-5)  # a distribution over all tokens


def test_the_maps_are_given_block_by_block():
    model = _model(3)
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    every = rollouts(model, pixels)
    assert every.shape == (3, 2, 4, 4) and np.array_equal(every[-1], rollout(model, pixels))
    assert not np.allclose(every[0], every[1])


@pytest.mark.parametrize(
    "name",
    [
        *("registers first", "cls and mean", "mean, normalised before", "attention pool"),
        *("windows and stages", "pyramid", "pyramid of pooled tokens"),
    ],
)
def test_whatever_is_pooled_the_rollout_is_a_distribution_over_the_patches_that_it_reads(name):
    config = VARIANTS[name]
    found = rollout(make(config), images(config, 2).numpy())
    assert found.shape == (2, *config.grid) and found.min() > 0
    reach = found.sum((1, 2)) / len(config.pool)
    # What does not come from the patches comes from prefix tokens; where there are none, all comes from the patches.
    assert np.allclose(reach, 1, atol=1e-5) if not config.prefix else (reach < 1).all()


def recorded(model):
    """Name -> what passed the site last, float64; filled as the model runs."""
    seen = {}
    for name, site in model.sites().items():
        site.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.numpy().astype(np.float64)}))
    return seen


def test_windows_are_put_back_together():
    """Block by block as matrices over all tokens, each entry of which is looked up by rows and columns."""
    model = make(VARIANTS["windows and stages"])
    seen = recorded(model)
    found = rollout(model, images(model.config, 1).numpy())
    flow, merged = np.eye(96), np.zeros((24, 96))
    for token in range(96):
        merged[token // 12 // 2 * 6 + token % 12 // 2, token] = 1 / 4
    for index in range(4):
        rows, columns = model.config.block_grid(index)
        down, right = model.config.blocks[index].window.moved((rows, columns))
        probs, full = seen[f"block{index}.attention.probs"].mean(1), np.zeros((rows * columns,) * 2)
        for window in range(len(probs)):
            top, left = window // (columns // 3) * 4, window % (columns // 3) * 3
            places = [(top + k // 3 + down) % rows * columns + (left + k % 3 + right) % columns for k in range(12)]
            full[np.ix_(places, places)] = probs[window]
        flow = (0.5 * full + 0.5 * np.eye(len(full))) @ (merged @ flow if index == 2 else flow)
    assert np.allclose(found.reshape(-1), flow.mean(0), atol=1e-6)


def test_keys_of_fewer_tokens_reach_those_that_they_were_made_of():
    """As matrices over all tokens; of a stage that begins with a convolution each token is the mean of what it read."""
    model = make(VARIANTS["pyramid"])
    seen = recorded(model)
    found = rollout(model, images(model.config, 1).numpy())
    joined, stage, flow = np.zeros((12, 96)), np.zeros((24, 96)), np.eye(96)
    for token in range(96):
        row, column = divmod(token, 12)
        joined[row // 4 * 6 + column // 2, token] = 1 / 8
        for new in range(24):
            stage[new, token] = abs(new // 6 * 2 - row) < 2 and abs(new % 6 * 2 - column) < 2
    stage /= stage.sum(1, keepdims=True)
    for index in range(4):
        flow = stage @ flow if index == 2 else flow
        probs = seen[f"block{index}.attention.probs"].mean(1)[0]
        flow = 0.5 * flow + 0.5 * (probs @ joined if index < 2 else probs) @ flow
    assert np.allclose(found.reshape(-1), flow.mean(0), atol=1e-6)


def test_a_map_is_seen_over_its_image():
    attention = np.zeros((4, 4))
    attention[:2, :2] = 1
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = colored(image, attention).astype(int)
    bright, dark = found[:10, :10], found[-10:, -10:]
    assert bright.sum(-1).mean() > 2 * dark.sum(-1).mean()
    # Yellow where it is most: more red and green than blue, which grey images never have.
    assert bright[..., 0].mean() > bright[..., 2].mean() + 20
    assert dark.std() > 5  # the image is still seen underneath
