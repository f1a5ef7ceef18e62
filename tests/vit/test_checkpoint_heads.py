"""timm's ViTs that pool otherwise or have no head, heads under other names, and class names that stand twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.vit.test_checkpoint_sources import CFG, check, hf_folder, hf_vit, refusal, shaken, timm_folder, timm_vit
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.reference import verify

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}


@pytest.mark.parametrize("own_norm", [True, False])
@pytest.mark.parametrize("where", ["top", "pretrained_cfg", "model_args"])
def test_the_mean_of_all_tokens_is_read_as_the_config_says(tmp_path: Path, where: str, own_norm: bool) -> None:
    model = timm_vit(global_pool="avg", fc_norm=own_norm)
    top = {"model_args": dict(ARGS), "num_classes": 3, "pretrained_cfg": dict(CFG)}
    (top if where == "top" else top[where])["global_pool"] = "avg"
    loaded = check(timm_folder(tmp_path / "m", model, **top), model, preprocess=None)
    assert loaded.model.config.pool == ("mean",)
    assert loaded.reference and "verified" in verify(loaded.model, loaded.preprocess, loaded.reference)


def test_the_mean_without_the_sizes_says_what_to_write(tmp_path: Path) -> None:
    model = timm_vit(global_pool="avg")
    error = refusal(timm_folder(tmp_path / "m", model, global_pool="avg"))
    assert "mean of all tokens" in error.what and "width 192" in error.why
    assert "model_args" in error.todo and "embed_dim" in error.todo
    check(timm_folder(tmp_path / "n", model, global_pool="avg", model_args=ARGS), model)  # what it advises


def test_pooling_of_a_registration_is_overridden_by_what_was_saved(tmp_path: Path) -> None:
    """A DINOv2 that was fine-tuned on the mean: the name alone says [CLS]."""
    timm = pytest.importorskip("timm")
    options = {"img_size": 56, **_small(), "global_pool": "avg", "fc_norm": False}
    model = shaken(timm.create_model("vit_small_patch14_dinov2", **options))
    data = {**CFG, "input_size": [3, 56, 56]}
    top = {"architecture": "vit_small_patch14_dinov2", "global_pool": "avg", "pretrained_cfg": data}
    folder = timm_folder(tmp_path / "m", model, model_args={"img_size": 56, **_small()}, **top)
    loaded = load_model(str(folder))
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert torch.allclose(loaded.model(x), model(x), atol=1e-4)


def _small() -> dict[str, int]:
    return {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 3}


def test_a_given_architecture_keeps_what_else_the_config_says(tmp_path: Path) -> None:
    model = timm_vit(global_pool="avg", fc_norm=False)
    data = {**CFG, "mean": [0.1, 0.2, 0.3]}
    folder = timm_folder(tmp_path / "m", model, global_pool="avg", model_args=ARGS, pretrained_cfg=data)
    loaded = check(folder, model, preprocess=None, architecture="vit_base_patch16_224")
    assert loaded.preprocess.mean == (0.1, 0.2, 0.3)
    assert any("--architecture vit_base_patch16_224" in w and "vit_tiny_patch16_224" in w for w in loaded.warnings)


def embedding_of(source: Path, model: nn.Module, **options: object) -> None:
    loaded = check(source, model, output="embedding", **options)
    assert loaded.model.config.activation == "none" and loaded.classes is None
    assert loaded.reference and "verified" in verify(loaded.model, loaded.preprocess, loaded.reference)


def test_a_backbone_is_taken_for_its_embedding(tmp_path: Path) -> None:
    model = timm_vit(num_classes=0)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth")
    assert "no classification head" in error.what and "--output embedding" in error.todo
    embedding_of(tmp_path / "m.pth", model, heads=4)  # what it advises


@pytest.mark.parametrize("classes", [None, 0])
def test_a_described_backbone(tmp_path: Path, classes: int | None) -> None:
    model = timm_vit(num_classes=0)
    embedding_of(timm_folder(tmp_path / "m", model, num_classes=classes, model_args=ARGS), model)


def test_a_backbone_by_timms_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    loaded = load_model(str(tmp_path / "m.pth"), architecture="vit_tiny_patch16_224", output="embedding")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert torch.allclose(loaded.model(x), model(x), atol=1e-4)


def test_a_backbone_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    model = shaken(VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=3))
    model.heads = nn.Identity()  # type: ignore[assignment]
    torch.save(model.state_dict(), tmp_path / "m.pth")
    assert "--output embedding" in refusal(tmp_path / "m.pth").todo
    embedding_of(tmp_path / "m.pth", model, heads=4)


def test_a_head_of_another_name_says_how_to_save_it(tmp_path: Path) -> None:
    model = timm_vit()
    state = {k.replace("head.", "fc."): v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth")
    assert "'fc'" in error.what and "state['head.weight']" in error.todo
    state["head.weight"], state["head.bias"] = state.pop("fc.weight"), state.pop("fc.bias")
    torch.save(state, tmp_path / "n.pth")
    check(tmp_path / "n.pth", model, heads=4)  # what it advises


def test_a_head_beside_the_backbone_says_how_to_save_it(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"backbone": timm_vit(num_classes=0), "fc": nn.Linear(32, 3)})
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "m.ckpt")
    error = refusal(tmp_path / "m.ckpt")
    assert "fc.weight" in error.why and "model.backbone.head = model.fc" in error.todo


@pytest.mark.parametrize("kind", ["transformers", "timm", "classes.txt"])
def test_class_names_that_stand_twice_are_named(tmp_path: Path, kind: str) -> None:
    if kind == "transformers":
        folder = hf_folder(tmp_path / "m", hf_vit())
        config = json.loads((folder / "config.json").read_text())
        names = {"id2label": {"0": "cat", "1": "dog", "2": "cat"}}
        (folder / "config.json").write_text(json.dumps(config | names))
    else:
        names = {"label_names": ["cat", "dog", "cat"]} if kind == "timm" else {}
        folder = timm_folder(tmp_path / "m", timm_vit(), **names)
        if kind == "classes.txt":
            (folder / "classes.txt").write_text("cat\ndog\ncat\n")
    loaded = load_model(str(folder), heads=4)
    assert loaded.classes == ["cat", "dog", "cat"]
    (note,) = [w for w in loaded.notes if "class name" in w]
    assert "cat (0, 2)" in note and "dog" not in note


@pytest.mark.parametrize("act", ["quick_gelu", "gelu_tanh"])
def test_other_forms_of_gelu_are_read_as_the_config_says(tmp_path: Path, act: str) -> None:
    model = timm_vit(act_layer=act)
    error = refusal(timm_folder(tmp_path / "m", model, model_args={"act_layer": act, "num_heads": 4}))
    assert "in its MLPs" in error.what and "embed_dim" in error.todo
    folder = timm_folder(tmp_path / "n", model, model_args={**ARGS, "act_layer": act})  # what it advises
    loaded = check(folder, model)
    assert loaded.reference and "verified" in verify(loaded.model, loaded.preprocess, loaded.reference)
