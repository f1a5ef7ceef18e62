"""`--verify`: the same weights in the source's own library, on a few images, equal to 1e-4, or an error."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError, missing_package
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint.layout import LAYOUTS
from vitedge.vit.config import ViTConfig

TOLERANCE = 1e-4
_PACKAGES = {"torchvision": "torchvision", "timm": "timm", "Hugging Face": "transformers"}
_SIZES = ((1.0, 1.0), (1.9, 1.2), (1.1, 1.7), (0.8, 0.9))  # of the images, in units of the crop

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Reference:
    """Where a model came from, for building it again in its own library.

    Attributes:
        library: the layout's name.
        tensors: by the library's names.
        config: what vitedge read out of them.
        folder: where the file lies.
        described: path of the config.json that describes it, or "".
        architecture: timm's name of it, or "".
        own_preprocess: the preprocessing is not the library's but a preprocess.json beside it.
        transform: the library's preprocessing, where it is known already.
    """

    library: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    config: ViTConfig
    folder: Path
    described: str = ""
    architecture: str = ""
    own_preprocess: bool = False
    transform: Transform | None = None


def can_verify(reference: Reference | None) -> bool:
    """Whether the source's library is installed and has a class for this model."""
    if reference is None or len({b.hidden for b in reference.config.blocks}) != 1:
        return False
    return importlib.util.find_spec(_PACKAGES[reference.library]) is not None


def verify(model: Architecture, preprocess: Preprocess, reference: Reference, *, overridden: bool = False) -> str:
    """What was compared, in words. Raises VitedgeError where logits differ by more than 1e-4 of their range.

    overridden: the user's `--preprocess` goes before the source's, so only the model is compared.
    """
    package = _PACKAGES[reference.library]
    if importlib.util.find_spec(package) is None:
        raise missing_package(package, "dev", "--verify")
    try:
        theirs = _MODELS[reference.library](reference)
        transform = None if overridden or reference.own_preprocess else _transform(reference)
    except VitedgeError:
        raise
    except Exception as error:  # another version of the library may not know the model
        return f"not verified: {package} can't build the model ({str(error).splitlines()[0][:200]})"
    images = drawn_images(preprocess.crop)
    ours = torch.from_numpy(preprocess.normalize(np.stack([preprocess.apply(image) for image in images])))
    inputs = ours if transform is None else torch.stack([transform(image) for image in images])
    if inputs.shape != ours.shape or (inputs - ours).abs().max() > TOLERANCE:
        detail = f"shapes {tuple(inputs.shape)} and {tuple(ours.shape)}"
        if inputs.shape == ours.shape:
            detail = f"values that reach the model differ by up to {(inputs - ours).abs().max():.3g}"
        raise _differs(f"Images are not prepared as {package} prepares them.", detail)
    with torch.inference_mode():
        found, wanted = model(ours), theirs.eval()(inputs)
    spread = float(wanted.max() - wanted.min()) or 1.0
    difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
    if not difference <= TOLERANCE * spread:
        raise _differs(
            f"The model as read does not compute what {package} computes with these weights.",
            f"Logits differ by up to {difference:.3g}, of a range of {spread:.3g}",
        )
    what = "preprocessing and logits" if transform is not None else "logits"
    return f"verified: {what} of {len(images)} drawn images equal {package}'s (largest difference {difference:.1e})"


def _differs(what: str, why: str) -> VitedgeError:
    return VitedgeError(
        what,
        f"{why}, on {len(_SIZES)} drawn images.",
        "Check what was given beside --model (--heads, --norm-eps, a config.json that was edited); "
        "--no-verify goes on with the model as read.",
        exit_code=1,
    )


def drawn_images(side: int) -> list[Image.Image]:
    """A few RGB images of soft colours and hard edges, square and oblong; always the same."""
    generator = np.random.default_rng(0)
    images = []
    for wide, high in _SIZES:
        coarse = generator.integers(0, 256, (5, 7, 3), np.uint8)
        size = (max(8, round(wide * side)), max(8, round(high * side)))
        pixels = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        pixels[size[1] // 3 : size[1] // 2, size[0] // 4 : size[0] // 2] = generator.integers(0, 256, 3)
        images.append(Image.fromarray(pixels))
    return images


def _torchvision(reference: Reference) -> nn.Module:
    from torchvision.models import VisionTransformer

    c = reference.config
    model = VisionTransformer(
        c.image_size[0],
        c.patch_size,
        len(c.blocks),
        c.blocks[0].heads,
        c.width,
        c.blocks[0].hidden,
        num_classes=c.classes,
        norm_layer=partial(nn.LayerNorm, eps=c.norm_eps),
    )
    layout = next(each for each in LAYOUTS if each.name == "torchvision")
    return _filled(model, {layout.rename(k): v for k, v in reference.tensors.items()})


def _timm(reference: Reference) -> nn.Module:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    c, names = reference.config, reference.tensors
    arguments: dict[str, Any] = {}
    if reference.described:
        described = documents.read_json(reference.described)
        arguments = {
            k: v for k, v in (described.get("model_args") or {}).items() if k not in ("norm_eps", "num_classes")
        }
        if timm.is_model(reference.architecture):
            try:
                named = timm.create_model(reference.architecture, pretrained=False, num_classes=c.classes, **arguments)
                return _filled(named, names)
            except (RuntimeError, TypeError):
                pass  # the name says less than the tensors: another width or depth under the name of a known one
    layout = next(each for each in LAYOUTS if each.name == "timm")
    renamed = {layout.rename(k): v for k, v in names.items()}
    scale = "blocks.0.ls1.gamma" in renamed
    model = VisionTransformer(
        img_size=c.image_size[0],
        patch_size=c.patch_size,
        embed_dim=c.width,
        depth=len(c.blocks),
        num_heads=arguments.get("num_heads") or c.blocks[0].heads,
        mlp_ratio=c.blocks[0].hidden / c.width,
        num_classes=c.classes,
        qkv_bias="blocks.0.attn.qkv.bias" in renamed,
        proj_bias="blocks.0.attn.proj.bias" in renamed,
        init_values=1.0 if scale else None,
        no_embed_class=renamed["pos_embed"].shape[1] == c.patches,
        norm_layer=partial(nn.LayerNorm, eps=c.norm_eps),
    )
    return _filled(model, renamed)


def _hugging_face(reference: Reference) -> nn.Module:
    import transformers

    c = reference.config
    if reference.described:
        config = transformers.ViTConfig.from_pretrained(reference.folder, local_files_only=True)
    else:
        config = transformers.ViTConfig(
            hidden_size=c.width,
            num_hidden_layers=len(c.blocks),
            num_attention_heads=c.blocks[0].heads,
            intermediate_size=c.blocks[0].hidden,
            image_size=c.image_size[0],
            patch_size=c.patch_size,
            layer_norm_eps=c.norm_eps,
            qkv_bias=any(k.endswith(("query.bias", "q_proj.bias")) for k in reference.tensors),
        )
    config.num_labels = c.classes
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        load: Any = transformers.ViTForImageClassification.from_pretrained
        state = {k: v.float() for k, v in reference.tensors.items()}
        model, report = load(None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32)
    finally:
        transformers.logging.set_verbosity(level)
    if report["missing_keys"]:
        raise RuntimeError(f"it misses {next(iter(report['missing_keys']))}")
    return _Logits(model)


class _Logits(nn.Module):
    """transformers' output, its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict({k: v.float() for k, v in tensors.items() if k in model.state_dict()}, strict=True)
    return model


def _transform(reference: Reference) -> Transform | None:
    if reference.transform is not None or not reference.described:
        return reference.transform
    if reference.library == "timm":
        from timm.data import create_transform, resolve_data_config

        described = documents.read_json(reference.described)["pretrained_cfg"]
        return create_transform(**resolve_data_config({}, pretrained_cfg=described), is_training=False)
    return _processor(reference.folder) if reference.library == "Hugging Face" else None


def _processor(folder: Path) -> Transform | None:
    """transformers' processor on Pillow: the one on torchvision resizes tensors, and rounds some pixels differently."""
    import transformers

    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    values = documents.read_json(path)
    name = str(values.get("image_processor_type") or "ViTImageProcessor").removesuffix("Fast")
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None)
    if kind is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = kind.from_pretrained(folder, local_files_only=True)
    return lambda image: torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))


_MODELS: dict[str, Callable[[Reference], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "Hugging Face": _hugging_face,
}
