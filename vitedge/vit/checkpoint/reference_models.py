"""A model built again in its own library, from the same tensors: what `--verify` compares with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitedge import documents
from vitedge.data.preprocess import Preprocess
from vitedge.data.processor import BY_MODEL
from vitedge.vit.checkpoint.convert import has_head
from vitedge.vit.checkpoint.described import CONFIG, PROCESSORS
from vitedge.vit.checkpoint.families import swin
from vitedge.vit.checkpoint.layout import LAYOUTS
from vitedge.vit.checkpoint.timm_config import TimmConfig, constructor_arguments, read_timm

if TYPE_CHECKING:
    from vitedge.vit.checkpoint.reference import Reference

Transform = Callable[[Image.Image], Tensor]
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "Hugging Face": "transformers", "open_clip": "open_clip"}
# transformers' model_type -> the class of its image tower, where config.json names none or names the whole.
_TOWERS = {
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "swin": "SwinModel",
}
_WHOLE = {"CLIPModel", "SiglipModel"}  # with a text tower, which is not built
_NEVER_READ = ("pooler.", "mask_token", "position_ids", "inv_freq")


def _torchvision(reference: Reference) -> nn.Module:
    from torchvision.models import SwinTransformer, VisionTransformer

    c = reference.config
    if reference.family:
        return _filled(SwinTransformer(**swin.torchvision_arguments(c)), reference.tensors)
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
    if not has_head(layout, reference.tensors):
        model.heads = nn.Identity()  # type: ignore[assignment]
    return _filled(model, {layout.rename(k): v for k, v in reference.tensors.items()})


def _timm(reference: Reference) -> nn.Module:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    c, names = reference.config, reference.tensors
    arguments: dict[str, Any] = {}
    layout = next(each for each in LAYOUTS if each.name == "timm")
    classes = c.classes if has_head(layout, names) else 0
    if reference.family:
        return _timm_family(reference)
    if reference.described:
        arguments = read_timm(Path(reference.described)).model_args.told()
        if timm.is_model(reference.architecture):
            try:
                named = timm.create_model(reference.architecture, pretrained=False, num_classes=classes, **arguments)
                return _filled(named, names)
            except (RuntimeError, TypeError):
                pass  # the name says less than the tensors: another width or depth under the name of a known one
    renamed = {layout.rename(k): v for k, v in names.items()}
    scale = "blocks.0.ls1.gamma" in renamed
    model = VisionTransformer(
        img_size=c.image_size[0],
        patch_size=c.patch_size,
        in_chans=c.channels,
        embed_dim=c.width,
        depth=len(c.blocks),
        num_heads=arguments.get("num_heads") or c.blocks[0].heads,
        mlp_ratio=c.blocks[0].hidden / c.width,
        num_classes=classes,
        qkv_bias="blocks.0.attn.qkv.bias" in renamed,
        proj_bias="blocks.0.attn.proj.bias" in renamed,
        init_values=1.0 if scale else None,
        no_embed_class=renamed["pos_embed"].shape[1] == c.patches,
        norm_layer=partial(nn.LayerNorm, eps=c.norm_eps),
    )
    return _filled(model, renamed)


def _timm_family(reference: Reference) -> nn.Module:
    """timm's model of that name; its patches alone where it pools nothing."""
    import timm

    config = read_timm(Path(reference.described)) if reference.described else TimmConfig(pretrained_cfg={})
    head = reference.tensors.get("head.weight")
    arguments = constructor_arguments(reference.architecture, config, reference.tensors)
    arguments["num_classes"] = 0 if head is None else len(head)
    model = timm.create_model(reference.architecture, pretrained=False, **arguments)
    _filled(model, reference.tensors)
    if reference.config.pool == ("patches",):
        prefix = int(getattr(model, "num_prefix_tokens"))  # noqa: B009
        return _Reads(model, lambda tokens: tokens[:, prefix:])
    return model


def _hugging_face(reference: Reference) -> nn.Module:
    import transformers

    c = reference.config
    if reference.described:
        config = transformers.AutoConfig.from_pretrained(reference.folder, local_files_only=True)
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
    name = _class_of(reference, config)
    if hasattr(config, "vision_config") and name in _TOWERS.values():
        projection, config = getattr(config, "projection_dim", None), config.vision_config
        if name == "CLIPVisionModelWithProjection":
            config.projection_dim = projection
    if "Classification" in name:
        config.num_labels = c.classes
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        load: Any = getattr(transformers, name).from_pretrained
        state = {k: v.float() for k, v in reference.tensors.items()}
        model, report = load(None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32)
    finally:
        transformers.logging.set_verbosity(level)
    if missing := [k for k in report["missing_keys"] if not any(word in k for word in _NEVER_READ)]:
        raise RuntimeError(f"it misses {missing[0]}")
    pooled = str(config.model_type) not in ("vit", "deit")  # there a Linear and tanh, for pretraining
    return _Reads(model, partial(_output, pooled=pooled, normalize=c.normalize))


def _class_of(reference: Reference, config: Any) -> str:
    """The class that has the classifier or the image tower of these tensors."""
    if not reference.family:
        return "ViTForImageClassification"
    saved = (getattr(config, "architectures", None) or [""])[0]
    kind = str(config.model_type)
    if saved in _WHOLE or not saved:
        saved = _TOWERS[kind]
    if "Classification" not in saved and any(k.startswith("classifier.") for k in reference.tensors):
        return saved.removesuffix("Model") + "ForImageClassification"  # an adapter gave the encoder a head
    return saved


def _output(found: Any, pooled: bool, normalize: bool) -> Tensor:
    """Logits, or the embedding that vitedge takes of an encoder: [CLS], pooled or projected."""
    if getattr(found, "logits", None) is not None:
        return found.logits
    if getattr(found, "image_embeds", None) is not None:
        result = found.image_embeds
    elif pooled:
        result = found.pooler_output
    else:
        result = found.last_hidden_state[:, 0]
    return nn.functional.normalize(result, dim=-1) if normalize else result


def _open_clip(reference: Reference) -> nn.Module:
    from open_clip.model import _build_vision_tower

    described = documents.read_json(reference.described)["model_cfg"]
    visual = _build_vision_tower(
        described["embed_dim"], dict(described["vision_cfg"]), bool(described.get("quick_gelu", False))
    )
    start = "visual."
    tensors = {k.removeprefix(start): v for k, v in reference.tensors.items() if k.startswith(start)}
    visual.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=True)
    return _Reads(visual, partial(nn.functional.normalize, dim=-1))


class _Reads(nn.Module):
    """A library's model, and what of its output is compared."""

    def __init__(self, model: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.model(x))


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    model.load_state_dict({k: v.float() for k, v in tensors.items() if k in model.state_dict()}, strict=True)
    return model


def source_transform(reference: Reference) -> Transform | None:
    """The library's own preprocessing, where the model's description has it."""
    if reference.transform is not None:
        return reference.transform
    if reference.library == "timm" and (reference.described or reference.family):
        from timm import get_pretrained_cfg
        from timm.data import create_transform, resolve_data_config

        described = documents.read_json(reference.described).get("pretrained_cfg") if reference.described else None
        if not described:
            found = get_pretrained_cfg(reference.architecture)
            described = found.to_dict() if found is not None else {}
        return create_transform(**resolve_data_config({}, pretrained_cfg=described), is_training=False)
    if reference.library == "open_clip":
        return _open_clip_transform(reference)
    return _processor(reference.folder) if reference.library == "Hugging Face" and reference.described else None


def _open_clip_transform(reference: Reference) -> Transform:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    described = documents.read_json(reference.described)
    size = described["model_cfg"]["vision_cfg"].get("image_size", 224)
    return image_transform_v2(PreprocessCfg(**{"size": size, **described.get("preprocess_cfg", {})}), is_train=False)


def _processor(folder: Path) -> Transform | None:
    """transformers' processor on Pillow: the one on torchvision resizes tensors, and rounds some pixels differently."""
    import transformers

    path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if path is None:
        return None
    values = documents.read_json(path)
    values = values.get("image_processor") or values
    beside = documents.read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    default = f"{BY_MODEL.get(beside.get('model_type', ''), 'ViT')}ImageProcessor"
    name = str(values.get("image_processor_type") or values.get("feature_extractor_type") or default)
    name = name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None)
    if kind is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = kind.from_dict(values)
    return lambda image: torch.as_tensor(np.array(processor(image)["pixel_values"][0]))


def rounding(reference: Reference, preprocess: Preprocess) -> float:
    """How far the source's pixels may be from ours: DINOv3's resize does not round to 8 bits, Pillow's does twice."""
    coarse = reference.library == "Hugging Face" and reference.config.rope is not None
    return 1.1 / 255 / min(preprocess.std) if coarse else 0.0


MODELS: dict[str, Callable[[Reference], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "Hugging Face": _hugging_face,
    "open_clip": _open_clip,
}
