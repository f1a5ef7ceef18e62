from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vitedge.data.preprocess import PRESETS, Preprocess, parse_preprocess
from vitedge.data.preprocess_sources import from_huggingface, from_timm, from_torchvision
from vitedge.errors import VitedgeError


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(640, 479), (333, 500), (37, 53), (224, 224), (257, 256), (1, 3), (501, 90)])
@pytest.mark.parametrize("resize, crop", [(256, 224), (248, 224), (239, 224), (48, 48), (61, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("squash", [False, True])
def test_pixels_are_torchvisions(size, resize, crop, interpolation, squash) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose(
        [
            transforms.Resize((resize, resize) if squash else resize, mode, antialias=True),
            transforms.CenterCrop(crop),
        ]
    )
    image = make_image(*size)
    ours = Preprocess(resize, crop, interpolation, squash=squash).apply(image)
    assert ours.dtype == np.uint8 and ours.shape == (crop, crop, 3)
    np.testing.assert_array_equal(ours, np.asarray(theirs(image)))


def test_a_hopelessly_narrow_image_is_refused() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        PRESETS["imagenet"].apply(Image.new("RGB", (1, 20_000)))


def test_normalize_is_torchvisions_transform() -> None:
    weights = pytest.importorskip("torchvision.models").ViT_B_16_Weights.IMAGENET1K_V1
    transforms = weights.transforms()
    preprocess = from_torchvision(transforms)
    assert preprocess == PRESETS["imagenet"]
    image = make_image(301, 400)
    ours = preprocess.normalize(preprocess.apply(image)[None])[0]
    np.testing.assert_allclose(ours, transforms(image).numpy(), atol=1e-6)


def test_saved_and_loaded(tmp_path: Path) -> None:
    preprocess = Preprocess(256, 224, "lanczos", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), squash=True)
    preprocess.save(tmp_path / "preprocess.json")
    assert Preprocess.load(tmp_path / "preprocess.json") == preprocess
    assert parse_preprocess(str(tmp_path / "preprocess.json")) == preprocess
    assert parse_preprocess("inception") == PRESETS["inception"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"resize": 0}, "resize"),
        ({"resize": 224.0}, "resize"),
        ({"resize": True}, "resize"),
        ({"resize": 200}, "at least crop"),
        ({"interpolation": "cubic"}, "cubic"),
        ({"interpolation": ["bicubic"]}, "interpolation"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"mean": [0.5, 0.5, "x"]}, "mean"),
        ({"std": [0.5, 0.5, 0]}, "std"),
        ({"std": [0.5, 0.5, math.inf]}, "std"),
        ({"squash": 1}, "squash"),
        ({"colour": 1}, "unknown keys: colour"),
        ({"mean": ...}, "lacks mean"),
    ],
)
def test_wrong_values_are_told(tmp_path: Path, change: dict, told: str) -> None:
    values = PRESETS["imagenet"].to_dict() | change
    values = {key: value for key, value in values.items() if value is not ...}
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(values))
    with pytest.raises(VitedgeError) as caught:
        Preprocess.load(path)
    assert told in str(caught.value) and str(path) in caught.value.what and caught.value.todo
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe\x00", b""])
def test_a_file_that_is_no_preprocessing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(VitedgeError, match="not valid JSON|no text" if content != b"[]" else "JSON object"):
        Preprocess.load(tmp_path / "p.json")


def test_an_unknown_preset_or_missing_file() -> None:
    with pytest.raises(VitedgeError, match="imagenet, inception"):
        parse_preprocess("imagnet")
    with pytest.raises(VitedgeError, match="can't be read"):
        Preprocess.load("/no/such/preprocess.json")


def test_with_image_size_scales_in_proportion() -> None:
    larger = PRESETS["imagenet"].with_image_size(384)
    assert (larger.resize, larger.crop) == (math.floor(384 / 0.875), 384)
    assert PRESETS["inception"].with_image_size(224) == PRESETS["inception"]
    assert Preprocess(224, 224).with_image_size(97) == Preprocess(97, 97)
    with pytest.raises(VitedgeError):
        larger.with_image_size(0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_base_patch16_384"])
def test_timm_configurations(name: str) -> None:
    data = pytest.importorskip("timm.data")
    import timm

    config = timm.get_pretrained_cfg(name).to_dict()
    theirs = data.create_transform(**data.resolve_data_config(config, pretrained_cfg=config))
    preprocess = from_timm({"pretrained_cfg": config})
    image = make_image(311, 402)
    ours = preprocess.normalize(preprocess.apply(image)[None])[0]
    np.testing.assert_allclose(ours, theirs(image).numpy(), atol=1e-6)


def test_timm_squash_and_what_is_not_supported() -> None:
    config = {"input_size": [3, 224, 224], "crop_pct": 0.9, "crop_mode": "squash"}
    assert from_timm(config) == Preprocess(248, 224, squash=True)
    assert from_timm(config | {"input_size": [3, 224, 112]}) == Preprocess((248, 124), (224, 112), squash=True)
    for change in ({"crop_mode": "border"}, {"interpolation": "random"}):
        with pytest.raises(VitedgeError):
            from_timm(config | change)


@pytest.mark.parametrize(
    "processor, options",
    [
        ("ViTImageProcessor", {}),
        ("ViTImageProcessor", {"resample": 3, "do_normalize": False}),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
        ("DeiTImageProcessor", {}),
    ],
)
def test_hugging_face_configurations(processor: str, options: dict) -> None:
    transformers = pytest.importorskip("transformers")
    # Where there are two, the one on Pillow: the other resizes tensors, and rounds some pixels differently.
    found = getattr(transformers, f"{processor}Pil", None) or getattr(transformers, processor)
    theirs = found(**options)
    preprocess = from_huggingface(json.loads(theirs.to_json_string()))
    assert preprocess.squash
    image = make_image(301, 402)
    ours = preprocess.normalize(preprocess.apply(image)[None])[0]
    np.testing.assert_allclose(ours, np.asarray(theirs(image)["pixel_values"][0]), atol=1e-5)


@pytest.mark.parametrize("processor", ["CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor"])
@pytest.mark.parametrize("size", [(301, 402), (403, 300), (224, 225)])
def test_hugging_face_crops(processor: str, size: tuple[int, int]) -> None:
    """Where half a pixel is left over, transformers crops one pixel further left than torchvision."""
    transformers = pytest.importorskip("transformers")
    found = getattr(transformers, f"{processor}Pil", None) or getattr(transformers, processor)
    theirs = found()
    preprocess, image = from_huggingface(json.loads(theirs.to_json_string())), make_image(*size)
    ours = preprocess.normalize(preprocess.apply(image)[None])[0]
    np.testing.assert_allclose(ours, np.asarray(theirs(image)["pixel_values"][0]), atol=1e-5)


KINDS = ("ViT", "DeiT", "Beit", "EfficientNet", "Siglip", "CLIP", "Bit", "MobileViT", "DINOv3ViT")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [{}, {"resample": None, "do_normalize": None, "image_mean": [0.2, 0.3, 0.4]}])
def test_what_a_hugging_face_file_leaves_out(kind: str, said: dict) -> None:
    """Its class's own defaults hold: bicubic for CLIP and bilinear for ViT, a crop for DeiT and none for BEiT, ..."""
    transformers = pytest.importorskip("transformers")
    if kind == "MobileViT":  # its default crop is larger than what it resizes to
        said = said | {"size": {"shortest_edge": 288}}
    values = {"image_processor_type": f"{kind}ImageProcessor"} | said
    found = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor")
    image = make_image(301, 402)
    theirs = np.asarray(found.from_dict({k: v for k, v in values.items() if v is not None})(image)["pixel_values"][0])
    preprocess = from_huggingface(values)
    ours = preprocess.normalize(preprocess.apply(image)[None])[0]
    if preprocess.channels == "bgr":
        ours = ours[::-1]
    # DINOv3's resizes without rounding to 8 bits, which Pillow does twice.
    level = 1.1 / 255 / min(preprocess.std) if kind == "DINOv3ViT" else 1e-5
    np.testing.assert_allclose(ours, theirs, atol=level)


def test_a_models_type_tells_its_processor() -> None:
    assert from_huggingface({}, model_type="clip").interpolation == "bicubic"
    assert from_huggingface({}, model_type="dinov3_vit").mean == (0.485, 0.456, 0.406)
    assert from_huggingface({"size": 224}, model_type="deit").size == (224, 224)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"resample": "bicubic"}, "no number"),
        ({"resample": 4}, "interpolation"),
        ({"rescale_offset": True}, "offset"),
    ],
)
def test_hugging_face_files_that_mean_something_else(change: dict, word: str) -> None:
    with pytest.raises(VitedgeError, match=word):
        from_huggingface({"image_processor_type": "ViTImageProcessor"} | change)


def test_hugging_face_sizes() -> None:
    half = (0.5,) * 3
    assert from_huggingface({"size": 384}) == Preprocess(384, 384, "bilinear", half, half, True, upright=True)
    clip = {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True, "resample": 3}
    theirs = Preprocess(256, 224, "bicubic", (0.5,) * 3, (0.5,) * 3, upright=True, corner="floor")
    assert from_huggingface(clip) == theirs
    oblong = from_huggingface({"size": {"height": 224, "width": 196}})
    assert oblong == Preprocess((224, 196), (224, 196), "bilinear", half, half, True, upright=True)
    for wrong in ({"size": {"shortest_edge": 224}}, {"do_resize": False}):
        with pytest.raises(VitedgeError, match="Hugging Face"):
            from_huggingface(wrong)


def test_torchvision_transforms_of_another_kind() -> None:
    with pytest.raises(VitedgeError, match="torchvision"):
        from_torchvision(SimpleNamespace(resize_size=[256]))


@pytest.mark.real
def test_the_trained_models_preprocessing(shared_data: Path) -> None:
    assert Preprocess.load(shared_data / "vit_ti_16" / "preprocess.json") == PRESETS["inception"]


def test_one_mean_alone_asks_for_grey() -> None:
    values = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.5]}
    with pytest.raises(VitedgeError, match="grey") as caught:
        Preprocess.from_dict(values)
    assert '"channels": "grey"' in caught.value.todo
    assert Preprocess.from_dict({**values, "channels": "grey"}).bands == 3  # what it advises
