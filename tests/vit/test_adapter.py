"""Adapters of peft: merged to the logits that peft itself computes, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.vit.test_checkpoint_sources import X, hf_folder, hf_vit, shaken, timm_folder, timm_vit
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.reference import verify

ATTENTION = r".*\.(query|q_proj|value|v_proj)"
HEAD = {"modules_to_save": ["classifier"]}


def adapted(base: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """A fine-tune of `base` by peft, saved; every matrix of it shows in the logits."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(base, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION} | options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found = model(X)
    return getattr(found, "logits", found)


def check(theirs: nn.Module, source: Path, **options: Any) -> Any:
    loaded = load_model(str(source), **options)
    wanted = logits(theirs)
    with torch.inference_mode():
        assert (loaded.model(X) - wanted).abs().max() < 1e-5 * max(1, float(wanted.abs().max()))
    return loaded


def refusal(source: Path, **options: Any) -> VitedgeError:
    with pytest.raises(VitedgeError) as caught:
        load_model(str(source), **options)
    assert caught.value.todo
    return caught.value


def described(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "options",
    [
        HEAD,
        {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}},
        {"use_dora": True, **HEAD},
        {"bias": "all"},
        {"lora_bias": True},
        {"target_modules": ["projection", "fc1", "fc2"]},
    ],
    ids=lambda options: "-".join(options),
)
def test_hugging_face(tmp_path: Path, options: dict) -> None:
    folder = hf_folder(tmp_path / "base", hf_vit())
    theirs = adapted(hf_vit(), tmp_path / "lora", **options)
    described(tmp_path / "lora", base_model_name_or_path=str(folder))
    loaded = check(theirs, tmp_path / "lora")
    assert any("merged" in note for note in loaded.notes)
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
    assert loaded.reference is not None and verify(loaded.model, loaded.preprocess, loaded.reference)
    check(theirs, folder, adapter=tmp_path / "lora")


def test_timm_by_flag(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "base", timm_vit(), model_args={"num_heads": 4})
    theirs = adapted(timm_vit(), tmp_path / "lora", target_modules=["qkv", "fc2"], modules_to_save=["head"])
    check(theirs, folder, adapter=str(tmp_path / "lora"))
    assert "--adapter" in refusal(tmp_path / "lora").todo  # it names no base


def test_a_head_of_its_own_has_classes_of_its_own(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "base", hf_vit(id2label={0: "ant", 1: "bee", 2: "cat"}))
    theirs = adapted(hf_vit(num_labels=5), tmp_path / "lora", **HEAD)
    (tmp_path / "lora" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": 32, "image_mean": 0.4, "image_std": 0.3}'
    )
    loaded = check(theirs, folder, adapter=tmp_path / "lora")
    assert loaded.classes is None and any("3 class names" in note for note in loaded.notes)
    assert loaded.preprocess.mean == (0.4,) * 3  # what the adapter was trained with


def test_an_encoder_becomes_a_classifier(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    whole = hf_vit(num_labels=4)
    encoder = transformers.ViTModel(whole.config, add_pooling_layer=False)
    encoder.load_state_dict(whole.vit.state_dict())
    folder = hf_folder(tmp_path / "base", encoder)
    loaded = check(adapted(whole, tmp_path / "lora", **HEAD), folder, adapter=tmp_path / "lora")
    assert loaded.model.config.activation == "softmax" and loaded.model.config.classes == 4


@pytest.mark.parametrize("kind", ["DeiTForImageClassification", "Dinov2ForImageClassification"])
def test_other_families(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 3}
    config = getattr(transformers, kind.replace("ForImageClassification", "Config"))(**sizes)
    base = shaken(getattr(transformers, kind)(config))
    folder = hf_folder(tmp_path / "base", base)
    check(adapted(base, tmp_path / "lora", **HEAD), folder, adapter=tmp_path / "lora")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_dora": True}, "does not belong"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "alpha_pattern"),
        ({"base_model_name_or_path": "google/vit-base-patch16-224"}, "not a whole model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_merges_otherwise_is_refused(tmp_path: Path, change: dict, named: str) -> None:
    folder = hf_folder(tmp_path / "base", hf_vit())
    adapted(hf_vit(), tmp_path / "lora")
    described(tmp_path / "lora", **{"base_model_name_or_path": str(folder)} | change)
    error = refusal(tmp_path / "lora")
    assert named in f"{error.what} {error.why}"


def test_of_another_model(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "base", hf_vit(hidden_size=48, intermediate_size=96))
    adapted(hf_vit(), tmp_path / "lora")
    assert "does not belong" in refusal(folder, adapter=tmp_path / "lora").what
    timm = timm_folder(tmp_path / "timm", timm_vit(), model_args={"num_heads": 4})
    assert "does not belong" in refusal(timm, adapter=tmp_path / "lora").what


def test_model_and_adapter_in_one_folder_are_asked_about(tmp_path: Path) -> None:
    theirs = adapted(hf_vit(), hf_folder(tmp_path / "both", hf_vit()))
    error = refusal(tmp_path / "both")
    assert "an adapter" in error.what and "--adapter" in error.todo
    check(theirs, tmp_path / "both" / "model.safetensors", adapter=tmp_path / "both")


def test_no_adapter_for_what_has_no_names_of_a_library(tmp_path: Path, tiny_folder: Path) -> None:
    adapted(hf_vit(), tmp_path / "lora")
    for source in (tiny_folder, "random:vit_ti_16"):
        assert "can't be merged" in refusal(source, adapter=tmp_path / "lora").what
    save_file({"a": torch.ones(1)}, tmp_path / "lora" / "adapter_model.safetensors")
    assert "does not belong" in refusal(hf_folder(tmp_path / "b", hf_vit()), adapter=tmp_path / "lora").what
