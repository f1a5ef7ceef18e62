"""Widths of a pyramid: MLP units go with their filters, heads with keys and values of fewer tokens."""

from __future__ import annotations

import pytest
import torch

from tests.prune.silent import without_silent
from tests.vit.test_vit_variants import apart, of
from tests.vit.variants import VARIANTS, images, make
from vitedge.condition.apply import batched
from vitedge.errors import VitedgeError
from vitedge.prune import PruneOptions, prune

NAMES = ["pyramid", "pyramid of pooled tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_units_that_write_nothing_go_without_a_trace(name: str) -> None:
    config = VARIANTS[name]
    dense, x = make(config), images(config, 8)
    small = without_silent(dense, x)
    assert [b.heads for b in small.config.blocks] == [1, 1, 2, 2]
    assert [b.hidden for b in small.config.blocks] == [48, 48, 72, 72]
    assert [m.mlp.depthwise.groups for m in small.encoder()] == [48, 48, 72, 72]  # type: ignore[union-attr]
    assert apart(of(dense, x), of(small, x)) < 1e-5


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("name", NAMES)
def test_a_share_is_removed_and_fitted(name: str) -> None:
    config = VARIANTS[name]
    model, x = make(config), images(config, 40)
    cut = PruneOptions(prune=0.3, align=4, head_align=4, min_hidden=8, fit_steps=0)
    plain, _ = prune(model, batched(x), cut)
    fitted, _ = prune(model, batched(x), cut.model_copy(update={"fit_steps": 30, "fit_lr": 3e-4}))
    test = images(config, 32, seed=9)

    def lost(small: torch.nn.Module) -> float:
        return float((of(small, test) - of(model, test)).square().mean())  # type: ignore[arg-type]

    assert lost(fitted) < lost(plain)  # type: ignore[arg-type]
    assert all(b.merge is None for b in fitted.config.blocks)


def test_tokens_are_not_merged() -> None:
    config = VARIANTS["pyramid"]
    with pytest.raises(VitedgeError, match="the whole grid of tokens"):
        prune(make(config), batched(images(config, 40)), PruneOptions(prune=0.2, prune_by="tokens"))
