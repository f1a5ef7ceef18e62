"""Adapters of peft (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353) merged into the model that they were trained on.

The weights and the scaling are those of peft's `merge_and_unload`: W + s B A with s = lora_alpha / r, or
lora_alpha / sqrt(r) with rsLoRA; DoRA scales each row of that to its learned magnitude.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.files import check_tensors, listing, read_tensors
from vitedge.vit.checkpoint.layout import HUGGING_FACE

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGE = (
    "Merge them with peft: model.merge_and_unload().save_pretrained('merged'), and give the folder merged/ "
    "(with preprocessor_config.json beside it)."
)
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.(weight|bias))?$")
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
# Keys of adapter_config.json that do not change what is computed, or that the tensors show by themselves.
_IDLE = {"auto_mapping", "revision", "task_type", "inference_mode", "peft_version", "bias", "lora_bias", "lora_dropout"}
_IDLE |= {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}
_IDLE |= {"rank_pattern", "megatron_config", "megatron_core", "loftq_config", "corda_config", "eva_config"}
_IDLE |= {"lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying"}
# What leaves the base's weights as they were; the others (PiSSA, OLoRA, LoftQ) move a part of them into the adapter.
_INITS = (True, False, "gaussian", "eva", "orthogonal")
_HEADS = ("classifier", "head", "heads", "fc")


class AdapterConfig(BaseModel):
    """`adapter_config.json`: the keys that change what is computed."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    peft_type: str = "LORA"
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1, le=2**16)] = 8
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)] = 8
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Merged:
    """A base model's tensors with the adapter in them.

    Attributes:
        tensors: by the base's names.
        replaced: names of tensors that the adapter brought whole (a classifier of its own).
        layers: how many layers LoRA changed.
    """

    tensors: dict[str, Tensor]
    replaced: tuple[str, ...]
    layers: int

    @property
    def own_head(self) -> bool:
        """Whether it brought a classifier."""
        return any(_module(name) in _HEADS for name in self.replaced)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is what peft's save_pretrained wrote."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)


def base_of(folder: Path) -> Path:
    """The local model that the adapter was trained on, by its own config. Raises VitedgeError where it names none."""
    if named := base_named(folder):
        return named[0]
    name = _config(folder).base_model_name_or_path
    why = f"It was trained on '{name}', which is no folder here" if name else "It does not name the model"
    raise VitedgeError(
        f"'{folder}' holds an adapter of peft (LoRA), not a whole model.",
        f"{why}, and its weights mean something only together with that.",
        f"Give both: --model BASE --adapter {folder}, where BASE is the folder of that model. Or merge them with peft: "
        "model.merge_and_unload().save_pretrained('merged'), and give the folder merged/.",
    )


def base_named(folder: Path) -> list[Path]:
    """The local model that an adapter's config names: one, or none. Raises VitedgeError for a wrong config."""
    name = _config(folder).base_model_name_or_path
    paths = (Path(name).expanduser(), folder / name) if name else ()
    return [path for path in paths if path.exists()][:1]


def merge(base: Mapping[str, Tensor], folder: Path) -> Merged:
    """The base's tensors with the adapter of `folder` merged into them.

    Raises VitedgeError: no LoRA, settings that merge otherwise, or layers that the base has not.
    """
    config = _config(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    adapter = read_tensors(path)
    check_tensors(adapter)
    names, result = _Names(base), dict(base)
    matrices: dict[str, dict[str, Tensor]] = {}
    replaced = []
    for key, tensor in adapter.items():
        name = key.removeprefix(_PREFIX)
        if found := _LORA.fullmatch(name):
            part = found[2] + (".bias" if found[3] == "bias" else "")
            matrices.setdefault(found[1], {})[part] = tensor
            continue
        if "lora_" in name or "prompt" in name:
            raise _unknown(folder, f"'{key}' in {path.name}")
        plain = _SAVED.sub("", name)
        there = names.find(plain)
        if there is None and _module(plain) not in _HEADS:
            raise _foreign(folder, plain)
        result[there or plain] = tensor
        replaced.append(there or plain)
    for module, parts in matrices.items():
        weight = names.find(f"{module}.weight")
        if weight is None or not {"lora_A", "lora_B"} <= set(parts):
            raise _foreign(folder, module)
        scale = _scale(config, module, len(parts["lora_A"]))
        result[weight] = _merged(result[weight], parts, scale, config, folder, module)
        if (own := parts.get("lora_B.bias")) is not None:
            bias = names.find(f"{module}.bias")
            if bias is None:
                raise _foreign(folder, f"{module}.bias")
            result[bias] = result[bias].float() + scale * own.float()
    if not matrices and not replaced:
        raise VitedgeError(f"'{path}' holds no tensors.", "", "Save the adapter again.")
    return Merged(result, tuple(replaced), len(matrices))


def _merged(
    weight: Tensor, parts: Mapping[str, Tensor], scale: float, config: AdapterConfig, folder: Path, module: str
) -> Tensor:
    """A Linear's or convolution's weight [out, in, ...] with its matrices, in float64 on the way."""
    a, b = parts["lora_A"].double().flatten(1), parts["lora_B"].double().flatten(1)
    if a.shape[0] != b.shape[1]:
        raise _foreign(folder, f"{module} (ranks {a.shape[0]} and {b.shape[1]})")
    delta = (b @ a).T if config.fan_in_fan_out else b @ a
    if delta.numel() != weight.numel() or len(delta) != len(weight):
        raise _foreign(folder, f"{module} ({tuple(delta.shape)} for {tuple(weight.shape)})")
    result = weight.double() + scale * delta.reshape(weight.shape)
    if (magnitude := parts.get("lora_magnitude_vector")) is not None:
        if config.fan_in_fan_out or weight.ndim != 2 or magnitude.numel() != len(weight):
            raise _unknown(folder, f"DoRA on {module}")
        result = result * (magnitude.double().flatten() / result.norm(dim=1))[:, None]
    elif config.use_dora:
        raise _foreign(folder, f"{module}, whose DoRA magnitude is missing")
    return result.float()


def _scale(config: AdapterConfig, module: str, rank: int) -> float:
    """alpha / rank, as peft has it; the rank is the matrix's own."""
    patterns = [k for k in config.alpha_pattern if re.match(rf"(?:.*\.)?(?:{k})$", module)]
    alpha = config.alpha_pattern[patterns[0]] if patterns else config.lora_alpha
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _config(folder: Path) -> AdapterConfig:
    todo = "Give the folder that peft's save_pretrained wrote."
    config = documents.load(folder / CONFIG, AdapterConfig, todo=todo)
    if config.peft_type.upper() != "LORA":
        raise _unknown(folder, f"peft_type {config.peft_type!r}")
    if config.init_lora_weights not in _INITS:
        raise _unknown(folder, f"init_lora_weights {config.init_lora_weights!r}, which changes the base's weights")
    own: dict[str, Any] = config.model_extra or {}
    if set_otherwise := sorted(k for k, v in own.items() if v and k not in _IDLE):
        raise _unknown(folder, f"settings that are not known: {listing(set_otherwise)}")
    for pattern in config.alpha_pattern:
        if not re.fullmatch(r"[\w.]{1,200}", pattern):  # names; a pattern of somebody else's is not run
            raise _unknown(folder, f"the alpha_pattern {pattern!r}")
    return config


class _Names:
    """The base's tensors by the names that an adapter may have for them (transformers renames between versions)."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {_canonical(name): name for name in names}

    def find(self, name: str) -> str | None:
        """The base's own name; also where one of the two has a prefix that the other lacks ("vit.")."""
        wanted = _canonical(name)
        if wanted in self.names:
            return self.names[wanted]
        ends = [n for n in self.names if f".{n}".endswith(f".{wanted}") or f".{wanted}".endswith(f".{n}")]
        return self.names[ends[0]] if len(ends) == 1 else None


def _canonical(name: str) -> str:
    """transformers 5 has `vit.layers.0.attention.q_proj` where files have `vit.encoder.layer.0.attention...query`."""
    name = re.sub(r"^(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?layers\.(\d+)\.", r"encoder.layer.\1.", name)
    return HUGGING_FACE.rename(re.sub(r"^(?:vit|deit|dinov2|dinov2_with_registers)\.", "", name))


def _module(name: str) -> str:
    """Of the tensor "a.b.weight": "b"."""
    return name.rpartition(".")[0].rpartition(".")[2]


def needs_a_checkpoint(source: str) -> VitedgeError:
    """The error for `--adapter` beside a model whose tensors no longer have their library's names."""
    return VitedgeError(
        f"An adapter can't be merged into '{source}'.",
        "Its layers are named as the library of its model names them.",
        "Give the checkpoint that it was trained on with --model.",
    )


def _foreign(folder: Path, name: str) -> VitedgeError:
    return VitedgeError(
        f"The adapter '{folder}' does not belong to this model.",
        f"It changes {name}, which the model has not, or has otherwise.",
        "Give the model that it was trained on with --model.",
    )


def _unknown(folder: Path, what: str) -> VitedgeError:
    return VitedgeError(f"The adapter '{folder}' can't be merged here: it has {what}.", "", MERGE)
