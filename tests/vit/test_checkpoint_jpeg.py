"""The same JPEG through the source library's own pipeline and through the exported graph, to 1e-5 of the range."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.vit.test_vit_families import BOTH, HUGGING_FACE, MLP, SMALL, filled
from tests.vit.test_vit_variants import apart
from vitedge.export.vit import export_vit
from vitedge.vit.checkpoint import load_model

CLIP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SQUARE = {"size": {"height": 32, "width": 32}}
# transformers' class -> its image processor, and what that is told.
PIPELINES = {
    "ViTForImageClassification": ("ViTImageProcessor", SQUARE),
    "DeiTForImageClassificationWithTeacher": ("DeiTImageProcessor", {"size": {"height": 36, "width": 36}, **CLIP}),
    "CLIPVisionModelWithProjection": ("CLIPImageProcessor", CLIP),
    "CLIPModel": ("CLIPImageProcessor", CLIP),
    "SiglipVisionModel": ("SiglipImageProcessor", SQUARE),
    "SiglipForImageClassification": ("SiglipImageProcessor", {**SQUARE, "resample": 3}),
    "Dinov2ForImageClassification": ("BitImageProcessor", CLIP),
    "Dinov2WithRegistersModel": ("BitImageProcessor", CLIP),
}
TIMM = {
    "vit_base_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch32_clip_224": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "vit_medium_patch16_reg4_gap_256": {"img_size": (32, 64)},
}


@pytest.fixture(params=[0, 6], ids=["as stored", "turned"])
def jpeg(request, tmp_path: Path) -> Path:
    """A photograph-like JPEG; one that its EXIF orientation turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 14, 3), np.uint8)
    exif = Image.Exif()
    if request.param:
        exif[0x112] = request.param
    image = Image.fromarray(pixels).resize((97, 71), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.jpg", quality=90, exif=exif)
    return tmp_path / "image.jpg"


def ours(folder: Path, jpeg: Path) -> np.ndarray:
    """What the graph says of the file, prepared as the folder says."""
    loaded = load_model(str(folder))
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    graph = export_vit(loaded.model.config, weights, loaded.preprocess)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = loaded.preprocess.apply(loaded.preprocess.open(jpeg))
    return session.run(None, {"pixels": pixels[None]})[0]


@pytest.mark.parametrize("name", PIPELINES)
def test_transformers_pipeline(name: str, jpeg: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    kind, arguments, _, output = HUGGING_FACE[name]
    model = filled(getattr(transformers, name)(getattr(transformers, kind)(**arguments)))
    model.save_pretrained(tmp_path / "model")
    processor, options = PIPELINES[name]
    # Where there are two, the one on Pillow: the other resizes tensors, and rounds some pixels differently.
    found = getattr(transformers, f"{processor}Pil", None) or getattr(transformers, processor)
    prepare = found(**options)
    prepare.save_pretrained(tmp_path / "model")
    image = transformers.image_utils.load_image(str(jpeg))
    pixels = torch.from_numpy(np.asarray(prepare(image)["pixel_values"][0]))[None]
    text = {"input_ids": torch.tensor([[1, 3, 2]])} if arguments == BOTH and name == "CLIPModel" else {}
    with torch.no_grad():
        expected = model(pixel_values=pixels, **text)[output]
    assert apart(expected, ours(tmp_path / "model", jpeg)) < 1e-5


@pytest.mark.parametrize("name", TIMM)
def test_timm_pipeline(name: str, jpeg: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 64, **SMALL, **TIMM[name]}
    model = filled(timm.create_model(name, **arguments))
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    side = arguments["img_size"]
    size = [3, side, side] if isinstance(side, int) else [3, *side]
    data = timm.get_pretrained_cfg(name).to_dict() | {"input_size": size}
    described = {"architecture": name, "num_classes": model.num_classes, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**described, "pretrained_cfg": data}, default=str))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(data, pretrained_cfg=data))
    with torch.no_grad():
        expected = model(transform(Image.open(jpeg).convert("RGB"))[None])
    assert apart(expected, ours(folder, jpeg)) < 1e-5


def test_the_cases_are_those_of_the_families() -> None:
    """Twenty and more named models are compared by their tensors, sixteen with their pipelines."""
    from tests.vit.test_vit_families import TIMM as NAMED

    assert len(NAMED) + len(HUGGING_FACE) >= 20 and set(PIPELINES) <= set(HUGGING_FACE) and set(TIMM) <= set(NAMED)
    assert MLP["image_size"] == 32
