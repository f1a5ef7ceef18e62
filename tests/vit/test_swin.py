"""Swin of three libraries: read and exported with equal outputs; windows against their definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.vit.test_vit_families import check, filled
from tests.vit.test_vit_variants import apart, run
from tests.vit.variants import images
from vitedge.data import preprocess as pp
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.vit import windows
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.families import swin
from vitedge.vit.checkpoint.families.hugging_face import Settings
from vitedge.vit.checkpoint.families.tensors import Read
from vitedge.vit.checkpoint.reference import can_verify, verify
from vitedge.vit.checkpoint.save import build_model
from vitedge.vit.config import ViTConfig
from vitedge.vit.geometry import Window
from vitedge.vit.macs import model_macs, model_params

SMALL = {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": [4, 4]}
TIMM_NAMES = [f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")]
TIMM_NAMES += [f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base")]
# Rows and columns of patches: several windows, completed windows, and one window that is larger than the last stage.
SIZES = [(64, 64), (80, 112), (48, 48)]


def torchvision_swin(v2: bool = False) -> torch.nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    own = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if v2 else {}
    model = filled(SwinTransformer(patch_size=[4, 4], num_classes=10, **SMALL, **own))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):  # one is clamped
                parameter[:] = torch.linspace(1, 5, len(parameter))[:, None, None]
    return model


def resized(read: Read, size: tuple[int, int]) -> Read:
    return replace(read, config=replace(read.config, image_size=size))


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_torchvision(size: tuple[int, int], v2: bool) -> None:
    model = torchvision_swin(v2)
    check(resized(swin.read_torchvision(model.state_dict()), size), model)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_base_window12to16"]
)
@pytest.mark.parametrize("size", SIZES)
def test_timm(name: str, size: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm")
    arguments: dict = {**SMALL, "img_size": size, "num_classes": 10}
    if "to16" in name:  # distances are counted in the window that was trained with
        name, arguments = "swinv2_base_window12to16_192to256", {**arguments, "pretrained_window_sizes": (3, 3, 3)}
    model = filled(timm.create_model(name, pretrained=False, **arguments))
    with torch.device("meta"):
        described = timm.create_model(name, pretrained=False, **arguments)
    found = swin.read(model.state_dict(), described)
    check(found, model)
    # The names of Swin's own release.
    names = {n.replace("head.fc", "head"): t for n, t in model.state_dict().items()}
    for stage in (1, 2):
        names = {n.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample"): t for n, t in names.items()}
    again = swin.read(names, described)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in found.state.items())


@pytest.mark.parametrize("size", SIZES[:2])
def test_hugging_face(tmp_path: Path, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    arguments = {**SMALL, "window_size": 4, "image_size": list(size), "num_labels": 10}
    model = filled(transformers.SwinForImageClassification(transformers.SwinConfig(**arguments)))
    model.save_pretrained(tmp_path)
    settings = Settings.model_validate(json.loads((tmp_path / "config.json").read_text()))
    found = swin.read_hugging_face(load_file(tmp_path / "model.safetensors"), settings)
    check(found, lambda x: model(x).logits)
    memory = swin.read_hugging_face(model.state_dict(), settings)
    assert all(torch.equal(memory.state[name], tensor) for name, tensor in found.state.items())
    loaded = load_model(str(tmp_path), preprocess="imagenet")
    assert loaded.reference is not None
    assert "equal transformers's" in verify(loaded.model, loaded.preprocess, loaded.reference, overridden=True)


def named(library: str, name: str, size: int) -> tuple[Read, Callable[[torch.Tensor], torch.Tensor]]:
    """A published shape with random weights and outliers."""
    if library == "torchvision":
        import torchvision

        model = filled(torchvision.models.get_model(name))
        return resized(swin.read_torchvision(model.state_dict()), (size, size)), model
    timm = pytest.importorskip("timm")
    model = filled(timm.create_model(name, pretrained=False, img_size=size))
    return swin.read(model.state_dict(), model), model


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 256])
@pytest.mark.parametrize("name", [*swin.SIZES, *TIMM_NAMES])
def test_named_models(name: str, size: int) -> None:
    check(*named("torchvision" if name in swin.SIZES else "timm", name, size))


def small(size: tuple[int, int] = (64, 96)) -> tuple[ViTConfig, dict[str, torch.Tensor]]:
    read = resized(swin.read_torchvision(torchvision_swin().state_dict()), size)
    return read.config, read.state


@pytest.mark.parametrize("batch", [1, 4, None])
def test_the_graph_has_the_same_outputs_for_each_batch(batch: int | None) -> None:
    config, state = small()
    model, x = build_model(config, state), images(config, 4)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph = export_vit(config, weights, pp.PRESETS["inception"], batch)
    with torch.no_grad():
        expected = model(x)
    found = [run(graph, part) for part in x.split(batch or 4)]
    assert apart(expected, np.concatenate(found)) < 1e-5
    assert max(len(p.ints) for n in graph.graph.node for p in n.attribute if p.name == "perm") == 4


def test_figures() -> None:
    """Parameters as torchvision counts them (and the biases of the merging, which it has not); MACs by hand."""
    config, state = small((64, 64))
    assert model_params(config) == sum(tensor.numel() for tensor in state.values())
    assert model_params(config) == sum(p.numel() for p in torchvision_swin().parameters()) + 48 + 96
    macs, patches, width = 64 * 64 * 3 * 24, 16 * 16, 24
    for stage in range(3):
        macs += 4 * width * patches * width // 2 if stage else 0
        block = patches * width * width * (4 + 8) + 2 * patches * 16 * width
        macs, patches, width = macs + 2 * block, patches // 4, width * 2
    assert model_macs(config) == macs + 96 * 10


def test_inside_and_sites_agree() -> None:
    """Attention by its single steps computes what the fused kernel does."""
    config, state = small()
    model, x = build_model(config, state), images(config)
    seen = {}
    with torch.no_grad():
        expected = model(x)
        for name, site in model.sites().items():
            site.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.shape}))
        found = model(x)
    assert apart(expected, found) < 1e-5
    assert seen.keys() == model.sites().keys()
    assert seen["block2.downsample"] == (4, 8 * 12, 48)
    assert seen["block1.attention.probs"] == (4 * 24, 1, 16, 16)


def test_relative_places() -> None:
    high, wide = 3, 2
    found = windows.relative_places((high, wide))
    for query in range(6):
        for key in range(6):
            down, right = query // wide - key // wide, query % wide - key % wide
            assert found[query, key] == (down + high - 1) * (2 * wide - 1) + right + wide - 1


@pytest.mark.parametrize("pad_first", [True, False])
def test_moved_windows_hold_neighbours(pad_first: bool) -> None:
    """Two tokens of a window that are not masked are at most its size apart in the image."""
    window, grid = Window((4, 3), (2, 1), pad_first), (10, 9)
    assert window.padded(grid) == (12, 9)
    assert Window((4, 9), (2, 4)).moved(grid) == (2, 0)
    places = torch.arange(1.0, 91).reshape(1, 90, 1)
    cut, mask = windows.to_windows(places, grid, window), windows.shift_mask(grid, window)
    assert mask is not None
    assert torch.equal(windows.from_windows(cut, grid, window), places)
    for tokens, apart_ in zip(cut[..., 0].long() - 1, mask, strict=True):
        near = (apart_ == 0) & (tokens[:, None] >= 0) & (tokens >= 0)
        rows, columns = tokens // 9, tokens % 9
        if pad_first:
            assert ((rows[:, None] - rows).abs()[near] < 4).all()
        assert ((columns[:, None] - columns).abs()[near] < 3).all()


@pytest.mark.parametrize("v2", [False, True])
def test_a_file_alone_is_enough(tmp_path: Path, v2: bool) -> None:
    model = torchvision_swin(v2)
    torch.save({"model": model.state_dict()}, tmp_path / "swin.pth")
    loaded = load_model(str(tmp_path / "swin.pth"), preprocess="imagenet", image_size=64)
    assert loaded.reference is not None and can_verify(loaded.reference)
    assert "equal torchvision's" in verify(loaded.model, loaded.preprocess, loaded.reference, overridden=True)
    x = images(loaded.model.config)
    with torch.no_grad():
        assert apart(model(x), loaded.model(x)) < 1e-5


def test_images_that_do_not_divide() -> None:
    with pytest.raises(VitedgeError, match="multiple of 16"):
        small((64, 72))


def test_a_description_can_not_ask_for_all_memory() -> None:
    """Masks and tables are made with the model: their sizes are bounded before."""
    described = small()[0].to_dict()
    assert ViTConfig.from_dict(json.loads(json.dumps(described))) == small()[0]
    for changes in ({"size": [65536, 65536]}, {"size": [64, 64], "shift": [1, 1]}):
        wrong = json.loads(json.dumps(described | {"image_size": [8192, 8192]}))
        wrong["blocks"][0]["window"] |= changes
        with pytest.raises(VitedgeError, match="window"):
            ViTConfig.from_dict(wrong)


def test_what_is_refused() -> None:
    settings = Settings(model_type="swin", use_absolute_embeddings=True)
    with pytest.raises(VitedgeError, match="absolute positions"):
        swin.read_hugging_face({}, settings)
