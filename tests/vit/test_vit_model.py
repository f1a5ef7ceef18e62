"""Our ViT against the libraries that its checkpoints come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from vitedge.vit.block import Merge
from vitedge.vit.checkpoint import to_torchvision
from vitedge.vit.checkpoint.convert import from_library
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.layers import Site
from vitedge.vit.macs import model_macs, model_params
from vitedge.vit.products import products, units


def random_weights(make: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    """A library's model in which every tensor matters: as they make it, heads and biases are zero.

    Made without memory first, since the libraries' own initialisation of a large model takes longer than the test.
    """
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            center = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.normal_(center, min(spread, 0.3), generator=generator)
    return model


def logit_gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the logits' range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16"])
def test_torchvision(name: str) -> None:
    import torchvision

    theirs = random_weights(lambda: torchvision.models.get_model(name, weights=None))
    tensors = theirs.state_dict()
    config, state, layout = from_library(tensors)
    ours = build_model(config, state)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert logit_gap(ours(x), theirs(x)) < 1e-5
    assert layout.name == "torchvision"
    back = to_torchvision(ours)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch16_384"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = random_weights(lambda: timm.create_model(name, pretrained=False))
    config, state, layout = from_library(theirs.state_dict())
    x = torch.randn(2, 3, *config.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert logit_gap(build_model(config, state)(x), theirs(x)) < 1e-5
    assert layout.name == "timm"


def test_timm_layer_scale_is_folded() -> None:
    timm = pytest.importorskip("timm")
    theirs = random_weights(lambda: timm.create_model("vit_tiny_patch16_224", init_values=0.3, depth=2))
    config, state, _ = from_library(theirs.state_dict(), heads=3)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert logit_gap(build_model(config, state)(x), theirs(x)) < 1e-5


def test_heads_come_from_the_configuration(tiny_config) -> None:
    assert tiny_config.blocks[0].qk_dim * tiny_config.blocks[0].heads == tiny_config.width


def test_sites_see_what_the_fast_path_computes(tiny_model) -> None:
    """With the attention's sites observed, scores and probabilities are computed apart: the same logits."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        fast = tiny_model(x)
        for name, site in tiny_model.sites().items():
            assert type(site) is Site
            site.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
        slow = tiny_model(x)
    assert logit_gap(slow, fast) < 1e-6
    assert set(seen) == set(tiny_model.sites())
    assert seen["block0.attention.probs"].shape == (2, 2, 17, 17)
    assert seen["block1.attention.probs"].shape == (2, 2, 1, 17), "the last block computes [CLS] alone"


def test_the_cut_of_the_last_block_is_exact(tiny_model) -> None:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        stream = tiny_model.embed(x)
        for block in tiny_model.encoder():
            stream = block(stream)
        assert logit_gap(tiny_model(x), tiny_model.classify(stream)) < 1e-6


def test_counts_agree_with_torch(tiny_model) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_model.config
    assert model_params(config) == sum(p.numel() for p in tiny_model.parameters())
    for site in tiny_model.sites().values():
        site.register_forward_hook(lambda *a: None)  # attention as two products, which the counter knows
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tiny_model(torch.zeros(1, 3, 32, 32))
    assert model_macs(config) == counter.get_total_flops() // 2


def test_the_counts_of_macs_are_those_of_the_products(tiny_config):
    first = replace(tiny_config.blocks[0], v_dim=5, groups=(16, 48), merge=Merge(11))
    config = replace(tiny_config, blocks=(first, *tiny_config.blocks))
    listed = sum(unit.macs for unit in units(config)) + sum(macs for _, _, macs in products(config))
    assert listed == model_macs(config)


def test_a_stream_lists_all_that_writes_to_it_and_all_that_reads_it(tiny_model):
    (stream,) = tiny_model.streams()
    written = {id(writer.parameter) for writer in stream.writers}
    layers = tiny_model.linears()
    expected = [tiny_model.class_token, tiny_model.pos_embedding]
    for name, layer in layers.items():
        if name == "patch_embed" or name.endswith((".out", ".fc2")):
            expected += [layer.weight, layer.bias]
    assert written == {id(parameter) for parameter in expected}
    read = [id(linear) for reader in stream.readers for linear in reader.linears]
    assert read == [id(m) for n, m in layers.items() if n == "head" or n.endswith((".q", ".k", ".v", ".fc1"))]
    assert all(name in tiny_model.sites() for name in (*stream.sites, *(r.site for r in stream.readers)))


def test_the_steps_name_no_family_of_models(repository):
    named = [
        str(path)
        for path in (repository / "vitedge").rglob("*.py")
        if "VisionTransformer" in path.read_text() and "vit" not in path.relative_to(repository / "vitedge").parts[:1]
    ]
    assert not named, named
