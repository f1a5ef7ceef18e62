"""Folders and files of the families as `--model` takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.vit.test_vit_families import HUGGING_FACE, KW, MLP, SMALL, filled, images
from tests.vit.test_vit_variants import apart
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.families.tensors import Read

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 40},
}


def equal(folder: Path, theirs, **given) -> None:
    loaded = load_model(str(folder), **given)
    x = images(Read(loaded.model.config, {}, ""))
    with torch.no_grad():
        assert apart(theirs(x), loaded.model(x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "output"),
    [("CLIPVisionModelWithProjection", "image_embeds"), ("Dinov2WithRegistersForImageClassification", "logits")],
)
def test_a_folder_of_transformers(name: str, output: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    kind, arguments, _, _ = HUGGING_FACE[name]
    config = getattr(transformers, kind)(**arguments)
    if output == "logits":
        config.id2label = {0: "cat", 1: "dog"}
    model = filled(getattr(transformers, name)(config))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    loaded = load_model(str(tmp_path))
    assert loaded.preprocess.mean == (0.5, 0.4, 0.3) and (loaded.preprocess.resize, loaded.preprocess.crop) == (40, 32)
    assert loaded.model.config.activation == ("none" if output == "image_embeds" else "softmax")
    assert loaded.classes == (["cat", "dog"] if output == "logits" else None)
    equal(tmp_path, lambda x: model(pixel_values=x)[output])


def test_weights_in_a_wrapper_and_by_their_names_in_memory(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = filled(transformers.Dinov2Model(transformers.Dinov2Config(**KW)))
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.pth")
    model.config.architectures = ["Dinov2Model"]
    model.config.to_json_file(tmp_path / "config.json", use_diff=False)
    equal(tmp_path, lambda x: model(x).pooler_output, preprocess="imagenet")


@pytest.mark.parametrize("headless", [{}, {"num_classes": 0}])
def test_a_folder_of_timm(tmp_path: Path, headless: dict) -> None:
    timm = pytest.importorskip("timm")
    name, arguments = "vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56, **headless}
    model = filled(timm.create_model(name, **arguments))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    data = {"input_size": [3, 56, 56], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0, "num_classes": 0}
    described = {"architecture": name, "num_classes": 0, "model_args": arguments, "pretrained_cfg": data}
    (tmp_path / "config.json").write_text(json.dumps(described))
    loaded = load_model(str(tmp_path))
    assert loaded.preprocess.std == (0.25,) * 3 and loaded.model.config.prefix_tokens == ("cls", *["reg"] * 4)
    equal(tmp_path, model)


def test_a_state_dict_alone_with_the_name_of_its_architecture(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name = "deit_tiny_distilled_patch16_224"
    model = filled(timm.create_model(name))
    torch.save(model.state_dict(), tmp_path / "deit.pth")
    with pytest.raises(VitedgeError, match="distillation token"):
        load_model(str(tmp_path / "deit.pth"))
    equal(tmp_path / "deit.pth", model, architecture=name)
    assert load_model(str(tmp_path / "deit.pth"), architecture=name).preprocess.resize == 248


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**{**MLP, "hidden_act": "relu"})
    filled(transformers.CLIPVisionModel(config)).save_pretrained(tmp_path)
    with pytest.raises(VitedgeError, match="'relu' in its MLPs"):
        load_model(str(tmp_path), preprocess="imagenet")


def test_other_outputs_than_class_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind, arguments, _, _ = HUGGING_FACE["Dinov2WithRegistersForImageClassification"]
    model = filled(transformers.Dinov2WithRegistersForImageClassification(getattr(transformers, kind)(**arguments)))
    model.save_pretrained(tmp_path)
    inner = model.dinov2_with_registers
    equal(tmp_path, lambda x: inner(x).pooler_output, preprocess="imagenet", output="embedding")
    equal(tmp_path, lambda x: inner(x).last_hidden_state[:, 5:], preprocess="imagenet", output="patch-tokens")


@pytest.mark.parametrize("name", ["Dinov2Model", "DINOv3ViTModel"])
def test_a_model_that_takes_any_size_takes_that_of_its_preprocessing(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind, arguments, _, _ = HUGGING_FACE[name]
    model = filled(getattr(transformers, name)(getattr(transformers, kind)(**arguments)))
    model.save_pretrained(tmp_path)
    crop = {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | crop))
    loaded = load_model(str(tmp_path))
    assert loaded.model.config.image_size == (48, 48) and loaded.preprocess.crop == 48 and not loaded.warnings
    equal(tmp_path, lambda x: model(x).pooler_output)


def test_tensors_that_are_not_what_the_description_says_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = filled(transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**KW)))
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"num_attention_heads": 7}, {"num_hidden_layers": 3}, {"model_type": "siglip_vision_model"}):
        (tmp_path / "config.json").write_text(json.dumps(values | wrong))
        with pytest.raises(VitedgeError) as caught:
            load_model(str(tmp_path), preprocess="imagenet")
        assert caught.value.what and caught.value.todo
