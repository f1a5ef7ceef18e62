"""PVT v2 of timm: read and exported with equal outputs; what it computes against the definition."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.vit.test_vit_families import check, filled
from tests.vit.test_vit_variants import apart, exported, of, run
from tests.vit.variants import VARIANTS, images, make
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.families import pvt
from vitedge.vit.checkpoint.reference import verify
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.config import ViTConfig
from vitedge.vit.convolution import from_grid, to_grid
from vitedge.vit.geometry import Reduction, Stage
from vitedge.vit.macs import attention_macs, mlp_macs, model_macs, model_params
from vitedge.vit.stages import ReducedTokens, mean_table, means_of_read

timm = pytest.importorskip("timm")

# Of each stage: blocks, width, heads, tokens joined along a side, units.
SMALL = {
    "depths": (1, 2, 1, 1),
    "embed_dims": (16, 24, 32, 48),
    "num_heads": (1, 2, 2, 3),
    "mlp_ratios": (3, 2, 2, 2),
    "num_classes": 10,
}
NAMES = ["pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li"]
# Square and not; the pooled grid of 7 x 7 is larger than the last stages, and does not divide the others.
SIZES = [(64, 64), (96, 128), (224, 224)]


def small(*, linear: bool = False, **own: object) -> torch.nn.Module:
    return filled(timm.create_model("pvt_v2_b2_li" if linear else "pvt_v2_b0", pretrained=False, **SMALL, **own))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_timm(size: tuple[int, int], linear: bool) -> None:
    model = small(linear=linear)
    with torch.device("meta"):
        described = timm.create_model("pvt_v2_b2_li" if linear else "pvt_v2_b0", pretrained=False, **SMALL)
    check(pvt.read(model.state_dict(), described, size), model)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 256])
@pytest.mark.parametrize("name", NAMES)
def test_named_models(name: str, size: int) -> None:
    model = filled(timm.create_model(name, pretrained=False))
    check(pvt.read(model.state_dict(), model, (size, size)), model)


def test_both_epsilons_are_read() -> None:
    """LayerNorms behind convolutions have torch's epsilon, the others timm's."""
    model = small()
    read = pvt.read(model.state_dict(), model)
    assert (read.config.norm_eps, read.config.conv_norm_eps) == (1e-6, 1e-5)
    ours = build_model(read.config, read.state)
    found = {name: m.eps for name, m in ours.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    behind = re.compile(r"pre_norm$|downsample\.norm$|reduction\.norm$")
    assert {name for name, eps in found.items() if eps == 1e-5} == {name for name in found if behind.search(name)}
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= 100
    changed = pvt.read(model.state_dict(), model)
    check(changed, model)


def test_the_names_of_its_own_release() -> None:
    model = small()
    theirs = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^patch_embed\.", "patch_embed1.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}.", name)
        name = re.sub(r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}.", name)
        theirs[name.replace("dwconv.", "dwconv.dwconv.")] = tensor
    found, expected = pvt.read(theirs, model).state, pvt.read(model.state_dict(), model).state
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_of_timm_and_another_size(tmp_path: Path) -> None:
    model, folder = small(), tmp_path / "m"
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    data = {"input_size": [3, 96, 96], "mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9}
    described = {"architecture": "pvt_v2_b0", "num_classes": 10, "model_args": SMALL, "pretrained_cfg": data}
    (folder / "config.json").write_text(json.dumps(described))
    assert load_model(str(folder)).model.config.image_size == (96, 96)
    loaded = load_model(str(folder), image_size=64)
    assert loaded.model.config.grid == (16, 16) and loaded.reference is not None
    assert "equal timm's" in verify(loaded.model, loaded.preprocess, loaded.reference, overridden=True)
    with pytest.raises(VitedgeError, match="multiple of 32"):
        load_model(str(folder), image_size=80)


def test_figures() -> None:
    """Parameters as timm counts them; MACs by hand."""
    model = small()
    config = pvt.read(model.state_dict(), model, (64, 64)).config
    assert model_params(config) == sum(p.numel() for p in model.parameters())
    patches, before, macs = 16 * 16, 0, 16 * 16 * 7 * 7 * 3 * 16
    for stage, (depth, width) in enumerate(zip(SMALL["depths"], SMALL["embed_dims"], strict=True)):
        if stage:
            patches //= 4
            macs += patches * 9 * before * width
        area, hidden = (8, 4, 2, 1)[stage] ** 2, SMALL["mlp_ratios"][stage] * width
        keys = patches // area
        block = 2 * patches * width**2 + 2 * keys * width**2 + 2 * patches * keys * width
        block += keys * area * width**2 if area > 1 else 0
        macs += depth * (block + patches * hidden * (2 * width + 9))
        before = width
    assert model_macs(config) == macs + 48 * 10


def test_keys_and_values_are_timms_convolution() -> None:
    """A convolution whose kernel is its stride is a Linear of the tokens side by side."""
    reduction, grid, generator = Reduction((2, 3)), (4, 9), torch.Generator().manual_seed(0)
    module = ReducedTokens(5, reduction, grid, 1e-5, torch.nn.Identity)
    x, weight = torch.randn(2, 36, 5, generator=generator), torch.randn(5, 5, 2, 3, generator=generator)
    with torch.no_grad():
        module.linear.weight.copy_(weight.permute(0, 2, 3, 1).flatten(1))
        expected = from_grid(F.conv2d(to_grid(x, grid), weight, module.linear.bias, (2, 3)))
        assert apart(module.norm(expected), module(x)) < 1e-6


@pytest.mark.parametrize("grid", [(14, 7), (16, 9), (5, 3)])
def test_means_are_torchs_adaptive_pooling(grid: tuple[int, int]) -> None:
    x = torch.randn(2, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(0))
    expected = from_grid(F.adaptive_avg_pool2d(to_grid(x, grid), (7, 7)))
    assert apart(expected, mean_table(grid, (7, 7)) @ x) < 1e-6
    assert apart(expected, means_of_read(x, grid, Reduction((7, 7), pooled=True))) < 1e-6
    module = ReducedTokens(5, Reduction((7, 7), pooled=True), grid, 1e-5, torch.nn.Identity)
    assert apart(expected, module.read(x)) < 1e-6


def test_means_behind_an_overlapping_convolution_leave_the_zeros_out() -> None:
    x = torch.arange(16.0)[None, :, None]
    found = means_of_read(x, (4, 4), Stage(8, kernel=3))[0, :, 0]
    assert found.tolist() == [2.5, 4.0, 8.5, 10.0]


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("name", ["pyramid", "pyramid of pooled tokens"])
def test_the_graph_has_no_transpose_of_more_than_four_axes(name: str, batch: int | None) -> None:
    model = make(VARIANTS[name])
    x = images(model.config, 3)
    graph = exported(model, batch)
    found = np.concatenate([run(graph, part) for part in x.split(batch or 3)])
    assert apart(of(model, x), found) < 1e-5
    assert max(len(p.ints) for n in graph.graph.node for p in n.attribute if p.name == "perm") <= 4


def test_a_block_counts_what_it_computes() -> None:
    config = VARIANTS["pyramid of pooled tokens"]
    block, tokens = config.blocks[2], config.block_tokens(2)
    assert tokens == (12, 24, 24, 24)  # 4 x 6 tokens don't divide into 3 x 4 parts: a product with a constant
    own = 48 * 48 * (24 * 2 + 12 * 3) + 2 * 24 * 12 * 48
    assert attention_macs(48, replace(block), tokens) == own + 24 * 12 * 48
    assert mlp_macs(48, block, tokens) == 24 * 96 * (2 * 48 + 9)


def test_a_description_that_does_not_fit_is_refused() -> None:
    described = VARIANTS["pyramid"].to_dict()
    assert ViTConfig.from_dict(described) == VARIANTS["pyramid"]

    def broken(block: int, **changes: object) -> str:
        blocks = [{**b, **(changes if i == block else {})} for i, b in enumerate(described["blocks"])]  # type: ignore[call-overload, arg-type, var-annotated]
        with pytest.raises(VitedgeError) as error:
            ViTConfig.from_dict({**described, "blocks": blocks})
        return str(error.value)

    assert "do not divide into blocks" in broken(0, reduction={"size": (3, 2)})
    assert "keys and values are reduced" in broken(0, window={"size": (4, 4)})
    assert "no gated MLP" in broken(0, act="swiglu")
    assert "stands before a depthwise" in broken(0, depthwise=False, relu=True)


def test_what_is_refused() -> None:
    model = small(global_pool="")
    with pytest.raises(VitedgeError, match="global_pool"):
        pvt.read(model.state_dict(), model)
