"""What a model's own description (config.json, preprocessor_config.json) says of it, where tensors say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitedge import documents
from vitedge.data import preprocess_sources as sources
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import plain
from vitedge.vit.checkpoint.fields import Count, Eps, Settings, Side
from vitedge.vit.checkpoint.timm_config import PLAIN, SHAPES, TODO, TimmConfig, pooling, timm_model
from vitedge.vit.config import ViTConfig

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class HuggingFaceConfig(Settings):
    """`config.json` of transformers' ViTForImageClassification (keys that change what it computes)."""

    model_type: str
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    intermediate_size: Count | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: Eps = 1e-12
    image_size: Side | tuple[Side, Side] | None = None
    patch_size: Side | tuple[Side, Side] | None = None
    num_channels: Count | None = None
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    id2label: Any = None


# Keys of model_args that tensors show by themselves, or that matter in training alone.
_IDLE = {"mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token", "no_embed_class", "reg_tokens"}
_IDLE |= {"pre_norm", "final_norm", "qk_norm", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"}
_IDLE |= {"attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "strict_img_size"}
_IDLE |= {"pretrained", "pretrained_strict", "no_jit", "scriptable", "exportable"}
_MODEL_KEYS = {"model_type", "architectures", "pretrained_cfg", "architecture"}
_LAYER_NORM = {"layernorm": 1e-6, "layernormfp32": 1e-6, "ln": 1e-6}


@dataclass(frozen=True)
class Known:
    """What is known of a model beside its tensors; None where nothing is.

    Attributes:
        where: what says so, for people.
        heads, norm_eps, activation: as in `ViTConfig`.
        heads_width: the heads hold for this width only, since they come from an architecture's name.
        sizes: what `ViTConfig` must agree with: attribute -> value.
        classes: one name a class.
        preprocess: how images are prepared.
        architecture: timm's name of it.
    """

    where: str = ""
    heads: int | None = None
    norm_eps: float | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    heads_width: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    classes: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    architecture: str = ""
    library: Literal["", "timm", "Hugging Face"] = ""

    def check(self, config: ViTConfig) -> None:
        """Raises VitedgeError where the description and the tensors disagree."""
        found = {
            "width": config.width,
            "depth": len(config.blocks),
            "hidden": max(b.hidden for b in config.blocks),
            "image size": config.image_size[0],
            "patch size": config.patch_size,
            "channels": config.channels,
            "classes": config.classes,
        }
        wrong = [f"{name} {value}, the tensors say {found[name]}" for name, value in self.sizes if found[name] != value]
        if wrong:
            raise VitedgeError(
                f"'{self.where}' and the weights beside it belong to different models.",
                f"It says {'; '.join(wrong)}.",
                "Put the config.json beside the weights that was saved with them.",
            )


def describes_a_model(path: Path) -> bool:
    """Whether that is a config.json of a model (and not, say, of a training script). Raises VitedgeError."""
    values = documents.read_json(path, todo=TODO)
    return isinstance(values, dict) and bool(_MODEL_KEYS & set(values))


def describe(path: Path, *, names_given: bool = False) -> Known:
    """What the config.json of timm or of Hugging Face says. Raises VitedgeError: it is wrong, or no plain ViT.

    names_given: class names come from elsewhere, so that unusable ones here do not matter.
    """
    values = documents.read_json(path, todo=TODO)
    if isinstance(values, dict) and ("pretrained_cfg" in values or not {"model_type", "architectures"} & set(values)):
        return _timm(path, documents.validate(values, TimmConfig, path, todo=TODO), names_given)
    return _hugging_face(path, documents.validate(values, HuggingFaceConfig, path, todo=TODO), names_given)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _sizes(**values: Any) -> tuple[tuple[str, int], ...]:
    pairs = {k.replace("_", " "): v[0] if isinstance(v, tuple) else v for k, v in values.items()}
    return tuple((k, v) for k, v in pairs.items() if v is not None)


def _hugging_face(path: Path, config: HuggingFaceConfig, names_given: bool) -> Known:
    if config.model_type == "vit-hybrid":
        raise VitedgeError(
            f"By {path} the model is transformers' ViTHybrid.",
            "transformers 5 has it no more, so that nothing could prove how its tensors are read.",
            "It was made of timm's vit_base_r50_s16_384, which is read: "
            "--model timm:vit_base_r50_s16_384.orig_in21k_ft_in1k; weights of your own: load them into that.",
        )
    if config.model_type != "vit":
        raise plain.refuse(f"By {path} the model", f"model_type {config.model_type!r}")
    if config.problem_type == "regression":
        raise plain.refuse(f"By {path} the model", "regression as its problem_type")
    plain.check_described(str(path), hidden_act=config.hidden_act, image=_pair(config.image_size))
    plain.check_described(str(path), image=_pair(config.patch_size))
    return Known(
        str(path),
        config.num_attention_heads,
        config.layer_norm_eps,
        "sigmoid" if config.problem_type == "multi_label_classification" else None,
        None,
        _sizes(
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            hidden=config.intermediate_size,
            image_size=config.image_size,
            patch_size=config.patch_size,
            channels=config.num_channels,
        ),
        _names(path, "id2label", config.id2label, names_given),
        image_processor(path.parent),
        library="Hugging Face",
    )


def image_processor(folder: Path) -> Preprocess | None:
    """How the image processor in a folder prepares images, or None where there is none. Raises VitedgeError."""
    beside = documents.read_json(folder / CONFIG, todo=TODO) if (folder / CONFIG).is_file() else None
    kind = beside.get("model_type") if isinstance(beside, dict) else None
    for name in PROCESSORS:
        if (folder / name).is_file():
            values = documents.read_json(folder / name, todo=TODO)
            if isinstance(values, dict) and isinstance(values.get("image_processor"), dict):
                values = values["image_processor"]
            return sources.from_huggingface(values, name=str(folder / name), model_type=str(kind or ""))
    return None


def _names(path: Path, key: str, labels: Any, optional: bool) -> tuple[str, ...] | None:
    """Class names by index out of {"0": "cat", ...}. Raises VitedgeError for every other form, unless `optional`."""
    if labels is None:
        return None
    why = ""
    if not isinstance(labels, dict):
        why = f"It is a {type(labels).__name__}."
    elif all(isinstance(v, int) for v in labels.values()):
        numbers = all(k.isdigit() for k in labels)
        why = "Its values are numbers, not names." if numbers else "Names and numbers are swapped, as in label2id."
    elif not all(isinstance(v, str) for v in labels.values()):
        why = "Its values are not text."
    elif set(labels) != {str(i) for i in range(len(labels))}:
        why = f"Its keys are not 0 to {len(labels) - 1}."
    if why and optional:
        return None
    if why:
        raise VitedgeError(
            f"{key} in '{path}' gives no class names.",
            f'{why} It must be an object of index and name: {{"0": "cat", "1": "dog"}}.',
            "Correct it, or give the names one a line: --classes FILE.",
        )
    return tuple(labels[str(i)] for i in range(len(labels)))


def _timm(path: Path, config: TimmConfig, names_given: bool) -> Known:
    args, data = config.model_args, config.pretrained_cfg
    unknown = sorted(set(args.model_extra or {}) - _IDLE)
    if unknown:
        raise plain.refuse(f"By {path} the model", f"other parts than the plain ViT: model_args {', '.join(unknown)}")
    if isinstance(args.num_heads, tuple):
        raise plain.refuse(f"By {path} the model", "stages of several numbers of heads")
    name = (config.architecture or str(data.get("architecture") or "")).partition(".")[0]
    known_arch = PLAIN.fullmatch(name)
    if name and not known_arch and args.norm_layer is None:
        asked = _ask_timm(path, name, config)
    else:
        asked = Known()
    pool = pooling(config)
    plain.check_described(str(path), hidden_act=args.act_layer, pool=pool, image=_pair(args.img_size))
    plain.check_described(str(path), image=_pair(args.patch_size))
    if args.norm_layer is not None and args.norm_layer.lower() not in _LAYER_NORM:
        raise plain.refuse(f"By {path} the model", f"norm_layer {args.norm_layer!r}")
    if data.get("label_offset"):
        raise plain.refuse(f"By {path} the model", "a label_offset: its first logit is no class")
    if known_arch:
        heads, width = SHAPES[known_arch[1]]
        asked = Known(heads=heads, heads_width=width)
    labels = config.label_names
    names = tuple(labels) if _texts(labels) else _names(path, "label_names", labels, names_given)
    return Known(
        str(path),
        args.num_heads or asked.heads,
        args.norm_eps or asked.norm_eps or 1e-6,
        None,
        None if args.num_heads else asked.heads_width,
        _sizes(
            width=args.embed_dim,
            depth=args.depth,
            image_size=args.img_size,
            patch_size=args.patch_size,
            channels=args.in_chans,
            classes=config.num_classes,
        ),
        names,
        sources.from_timm(data) if data else None,
        name,
        "timm",
    )


def _texts(labels: Any) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) for label in labels)


def _ask_timm(path: Path, name: str, config: TimmConfig) -> Known:
    """What timm itself registers under that name, where timm is installed; refused where it is not."""
    return _of_timm_model(path, name, timm_model(path, name, config))


def _of_timm_model(path: Path, name: str, model: Any) -> Known:
    from timm.models import vision_transformer as library
    from torch import nn

    block: Any = next(iter(getattr(model, "blocks", [])), None)
    if type(model) is not library.VisionTransformer or type(block) is not library.Block:
        kind = type(block).__name__ if type(model) is library.VisionTransformer else type(model).__name__
        raise plain.refuse(f"By {path} the model", f"timm's {name}, which is a {kind}")
    if not isinstance(block.norm1, nn.LayerNorm):
        raise plain.refuse(f"By {path} the model", f"{type(block.norm1).__name__} as its norms")
    act = block.mlp.act
    erf = (isinstance(act, nn.GELU) and act.approximate == "none") or type(act).__name__ == "GELU"
    names = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "ReLU": "relu", "SiLU": "silu"}
    hidden_act = "gelu" if erf else names.get(type(act).__name__, type(act).__name__)
    plain.check_described(f"{path} ({name})", hidden_act=hidden_act, pool=model.global_pool)
    attention: Any = block.attn
    width = len(block.norm1.weight)
    return Known(heads=attention.num_heads, norm_eps=float(block.norm1.eps), heads_width=width)
