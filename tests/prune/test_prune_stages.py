"""Widths of a model of several stages are cut and made up for, each in its own stage and windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.prune.silent import without_silent
from tests.vit.test_vit_variants import apart, of
from tests.vit.variants import VARIANTS, images, make
from vitedge.condition.apply import batched
from vitedge.errors import VitedgeError
from vitedge.prune import PruneOptions, prune
from vitedge.prune.linear import ridge
from vitedge.prune.recover import gather
from vitedge.prune.run import fewest_images
from vitedge.vit.config import ViTConfig
from vitedge.vit.model import VisionTransformer

STAGES = VARIANTS["windows and stages"]
SIZES = [(32, 48), (40, 40)]  # the windows of the second are completed with zeros


def spread(config: ViTConfig) -> VisionTransformer:
    """Biases of relative positions that differ from head to head."""
    model = make(config)
    with torch.no_grad():
        for block in model.encoder():
            table = block.attention.bias.table  # type: ignore[union-attr]
            table += torch.randn(table.shape, generator=torch.Generator().manual_seed(5))
    return model


@pytest.mark.parametrize("size", SIZES)
def test_heads_and_units_that_write_nothing_go_without_a_trace(size: tuple[int, int]) -> None:
    config = replace(STAGES, image_size=size)
    dense, x = spread(config), images(config, 40)
    small = without_silent(dense, x)
    assert [b.heads for b in small.config.blocks] == [1, 1, 2, 2]
    assert [b.hidden for b in small.config.blocks] == [48, 48, 72, 72]
    assert apart(of(dense, x), of(small, x)) < 1e-5


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("size", SIZES)
def test_the_output_projection_is_found_again(size: tuple[int, int]) -> None:
    """What it reads, in windows, and what it should write to the stream stand in the same order."""
    config = replace(STAGES, image_size=size)
    model = spread(config)
    with torch.no_grad():
        x = model.embed(images(config, 64))
        for block in model.encoder():
            assert block.attention is not None
            out = block.attention.out
            moments = gather(out, "context", block, block.attend_unmerged, x, block.attend_unmerged(x))
            covariance, weight = moments.covariance(), out.weight.double()
            apart_ = ridge(covariance, moments.cross(), 1e-9) - weight
            lost, whole = ((w @ covariance @ w.T).trace() for w in (apart_, weight))
            assert float(lost) < 1e-4 * float(whole)
            x = block(x)


def test_a_share_is_removed_and_fitted() -> None:
    model, x = spread(STAGES), images(STAGES, 40)
    cut = PruneOptions(prune=0.3, align=4, head_align=4, min_hidden=8, fit_steps=0)
    plain, _ = prune(model, batched(x), cut)
    fitted, _ = prune(model, batched(x), cut.model_copy(update={"fit_steps": 30}))
    test = images(STAGES, 32, seed=9)

    def lost(small: torch.nn.Module) -> float:
        return float((of(small, test) - of(model, test)).square().mean())  # type: ignore[arg-type]

    assert lost(fitted) < lost(plain)  # type: ignore[arg-type]
    assert all(b.merge is None for b in fitted.config.blocks)


def test_images_of_a_late_stage_give_few_tokens() -> None:
    deep = replace(STAGES, blocks=(*STAGES.blocks[:3], replace(STAGES.blocks[3], hidden=960)))
    assert fewest_images(deep) == (40, "Its widest layer has 960 inputs, and an image gives 24 tokens.")


def test_tokens_are_not_merged() -> None:
    with pytest.raises(VitedgeError, match="the whole grid of tokens"):
        prune(make(STAGES), batched(images(STAGES, 40)), PruneOptions(prune=0.2, prune_by="tokens"))
