"""`--verify` of the families: the source's own class and preprocessing, from folders as their libraries write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vitedge
from tests.vit.test_vit_families import HUGGING_FACE, SMALL, TIMM, filled
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.reference import can_verify, verify

PROCESSOR = {"image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.3, 0.2], "resample": 3, "size": 32}
# As each family's own repositories have it.
PROCESSORS = {"CLIP": "CLIPImageProcessor", "Siglip": "SiglipImageProcessor", "Dinov2": "BitImageProcessor"}
PROCESSORS |= {"DINOv3": "DINOv3ViTImageProcessorFast"}
# Read and built again as another of the list is.
ALIKE = {"ViTForImageClassification", "DeiTModel", "DeiTForImageClassification", "CLIPVisionModelWithProjection"}
ALIKE |= {"SiglipVisionModel", "Dinov2Model", "Dinov2WithRegistersForImageClassification", "DINOv3ViTModel"}
ALIKE |= {"vit_base_patch16_224", "vit_medium_patch16_reg4_gap_256", "vit_so150m2_patch16_reg1_gap_256"}
ALIKE |= {"deit3_small_patch16_224", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_gap_224"}
ALIKE |= {"vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"}
ALIKE |= {n for n, a in TIMM.items() if isinstance(a.get("img_size"), tuple)}  # oblong


def hugging_face_folder(folder: Path, name: str) -> Path:
    transformers = pytest.importorskip("transformers")
    kind, arguments, _, _ = HUGGING_FACE[name]
    model = filled(getattr(transformers, name.split()[0])(getattr(transformers, kind)(**arguments)))
    model.save_pretrained(folder)
    processor = next((p for start, p in PROCESSORS.items() if name.startswith(start)), "ViTImageProcessor")
    values = PROCESSOR | {"image_processor_type": processor}
    if processor.startswith(("Siglip", "DINOv3")):
        values |= {"size": {"height": 32, "width": 32}, "resample": 2}
    if processor in ("CLIPImageProcessor", "BitImageProcessor"):
        values |= {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def timm_folder(folder: Path, name: str, **arguments: Any) -> Path:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 64, **SMALL, **arguments}
    model = filled(timm.create_model(name, pretrained=False, **arguments))
    side = arguments["img_size"]
    data = {"input_size": [3, side, side], "mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9}
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    described = {"architecture": name, "num_classes": model.num_classes, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(described | {"pretrained_cfg": data}))
    return folder


def sees(folder: Path, package: str, **options: Any) -> None:
    """What is right is verified, and what is wrong is seen."""
    loaded = load_model(str(folder), **options)
    assert can_verify(loaded.reference)
    assert loaded.reference is not None
    text = verify(loaded.model, loaded.preprocess, loaded.reference)
    assert text.startswith("verified: preprocessing and ") and package in text, text
    with torch.no_grad():
        loaded.model.blocks[0].attention.v.weight *= 1.02
    with pytest.raises(VitedgeError, match="does not compute"):
        verify(loaded.model, loaded.preprocess, loaded.reference)


@pytest.mark.parametrize("name", [n for n in HUGGING_FACE if n not in ALIKE])
def test_hugging_face(tmp_path: Path, name: str) -> None:
    sees(hugging_face_folder(tmp_path / "m", name), "transformers")


@pytest.mark.parametrize("name", [n for n in TIMM if n not in ALIKE])
def test_timm(tmp_path: Path, name: str) -> None:
    sees(timm_folder(tmp_path / "m", name, **TIMM[name]), "timm")


@pytest.mark.parametrize("quick", [False, True])
def test_open_clip(tmp_path: Path, quick: bool) -> None:
    library = pytest.importorskip("open_clip.model")
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
    visual = filled(library._build_vision_tower(20, vision, quick))
    save_file({f"visual.{k}": v.contiguous() for k, v in visual.state_dict().items()}, tmp_path / "model.safetensors")
    described = {"model_cfg": {"embed_dim": 20, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": {}}}
    described["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear"}
    described["preprocess_cfg"]["resize_mode"] = "squash" if quick else "shortest"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    sees(tmp_path, "open_clip")


def test_before_another_output_or_size(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "m", "Dinov2ForImageClassification")
    for options in ({"output": "embedding"}, {"output": "patch-tokens"}, {"image_size": 48}):
        loaded = load_model(str(folder), **options)
        assert loaded.reference is not None
        assert "as the file has it" in verify(loaded.model, loaded.preprocess, loaded.reference)


@pytest.mark.parametrize("nested", [False, True])
def test_bgr_and_a_nested_description(tmp_path: Path, nested: bool) -> None:
    folder = hugging_face_folder(tmp_path / "m", "ViTModel")
    values = {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 40}}
    values |= {"crop_size": {"height": 32, "width": 32}, "resample": 2}
    (folder / "preprocessor_config.json").unlink()
    name, holds = ("processor_config", {"image_processor": values}) if nested else ("preprocessor_config", values)
    (folder / f"{name}.json").write_text(json.dumps(holds))
    loaded = load_model(str(folder))
    assert loaded.preprocess.channels == "rgb" and loaded.reference is not None
    assert "preprocessing and" in verify(loaded.model, loaded.preprocess, loaded.reference)
    described = json.loads((folder / "config.json").read_text())
    assert described["model_type"] == "vit"
    flipped = values | {"do_flip_channel_order": False}
    (folder / f"{name}.json").write_text(json.dumps({"image_processor": flipped} if nested else flipped))
    with pytest.raises(VitedgeError, match="not prepared"):
        verify(loaded.model, loaded.preprocess, loaded.reference)


def test_one_channel_as_timm_has_it(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", "vit_base_patch32_clip_224", in_chans=1)
    described = json.loads((folder / "config.json").read_text())
    described["pretrained_cfg"] |= {"input_size": [1, 64, 64], "mean": [0.4], "std": [0.3]}
    (folder / "config.json").write_text(json.dumps(described))
    loaded = load_model(str(folder))
    assert loaded.preprocess.channels == "grey" and loaded.model.config.channels == 3
    assert loaded.reference is not None
    assert "preprocessing and" in verify(loaded.model, loaded.preprocess, loaded.reference)


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = timm_folder(tmp_path / "m", "vit_base_patch32_clip_quickgelu_224")
    assert any(note.startswith("verified") for note in vitedge.load(folder).notes)
    assert not vitedge.load(folder, verify=False).notes
    with pytest.raises(VitedgeError, match="can't be verified"):
        vitedge.load("random:vit_ti_16", verify=True)
    described = json.loads((folder / "config.json").read_text())
    described["architecture"] = "vit_base_patch32_clip_224"  # without quick GELU, from the same tensors
    (folder / "config.json").write_text(json.dumps(described))
    wrong = vitedge.load(folder)  # a description alone says it: the reference is made of the same one
    assert any(note.startswith("verified") for note in wrong.notes)
    from vitedge.vit.checkpoint.families import timm_vit

    monkeypatch.setitem(timm_vit._ACTIVATIONS, "GELU", "quick_gelu")
    monkeypatch.setattr(timm_vit, "mlp_activation", lambda library, act: "quick_gelu")
    with pytest.raises(VitedgeError, match="does not compute"):
        vitedge.load(folder)
    assert vitedge.load(folder, verify=False)
