"""timm's config.json, and timm's own model of the architecture that it names, which knows what no file says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from torch import Tensor

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.fields import ClassCount, Count, Eps, Settings, Side

TODO = "Give the complete folder, as the library's save_pretrained or save_for_hf wrote it."
# Architectures whose registration is the plain ViT with LayerNorm's eps 1e-6 -> heads, width.
PLAIN = re.compile(r"(?:vit|deit|deit3)_(tiny|small|medium|base|large|huge|giant|gigantic)_patch\d+_\d+")
SHAPES = {"tiny": (3, 192), "small": (6, 384), "medium": (8, 512), "base": (12, 768), "large": (16, 1024)}
SHAPES |= {"huge": (16, 1280), "giant": (16, 1408), "gigantic": (16, 1664)}


class TimmArgs(Settings):
    """`model_args` of timm's VisionTransformer; keys beside these, and those of training, are refused."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    img_size: Side | tuple[Side, Side] | None = None
    patch_size: Side | tuple[Side, Side] | None = None
    in_chans: Count | None = None
    num_classes: ClassCount | None = None
    embed_dim: Count | None = None
    depth: Count | None = None
    num_heads: Count | tuple[Count, ...] | None = None  # several: one a stage
    global_pool: str | None = None
    fc_norm: bool | None = None
    act_layer: str | None = None
    norm_layer: str | None = None
    norm_eps: Eps | None = None

    def told(self) -> dict[str, Any]:
        """As timm's constructor takes them; its norms and the head are said otherwise."""
        return self.model_dump(exclude_unset=True, exclude={"norm_eps", "num_classes"})


class TimmConfig(Settings):
    """`config.json` as timm's save_for_hf and push_to_hf_hub write it."""

    architecture: str = ""
    num_classes: ClassCount | None = None
    global_pool: str | None = None
    label_names: Any = None
    label_descriptions: dict[str, str] | None = None
    model_args: TimmArgs = TimmArgs()
    pretrained_cfg: dict[str, Any] = {}


def read_timm(path: Path) -> TimmConfig:
    """Of a config.json of timm's. Raises VitedgeError."""
    values = documents.read_json(path, todo=TODO)
    return documents.validate(values, TimmConfig, path, todo=TODO)


def is_plain(name: str) -> bool:
    """Whether timm registers the plain ViT under that name."""
    return PLAIN.fullmatch(name) is not None


def misfit(model: Any, tensors: Mapping[str, Tensor]) -> str:
    """Width and depth of timm's model where the tensors have others, in words; "" where they agree."""
    stem, blocks = tensors.get("patch_embed.proj.weight"), getattr(model, "blocks", None)
    if stem is None or blocks is None:
        return ""
    depth = len({n.split(".")[1] for n in tensors if re.match(r"blocks\.\d+\.", n)})
    return (
        ""
        if (len(stem), depth) == (model.embed_dim, len(blocks))
        else (f"width {model.embed_dim} and {len(blocks)} blocks, the tensors have width {len(stem)} and {depth}")
    )


def pooling(config: TimmConfig) -> str | None:
    """timm's `global_pool`: what the constructor was told, else what save_for_hf noted of the model, else what its
    registration says; None where nothing does."""
    if config.model_args.global_pool is not None:
        return config.model_args.global_pool
    noted = config.global_pool or config.pretrained_cfg.get("global_pool")
    return noted if isinstance(noted, str) else None


def constructor_arguments(name: str, config: TimmConfig, tensors: Iterable[str] | None = None) -> dict[str, Any]:
    """What timm's constructor is told: model_args and the pooling, and by the names of the checkpoint's tensors
    whether the mean has a LayerNorm of its own (fc_norm), and whether there is a head."""
    import timm

    arguments = config.model_args.told()
    pool, classes = pooling(config), config.num_classes
    if pool is not None:
        arguments["global_pool"] = pool
    if tensors is not None:
        names = set(tensors)
        if pool == "avg" and "norm.weight" in names and "fc_norm.weight" not in names:
            module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
            if not module.startswith("swin_transformer"):  # which has no such norm
                arguments.setdefault("use_fc_norm" if module == "eva" else "fc_norm", False)
        if classes is None and not any(n.startswith("head") for n in names):
            classes = 0
    return arguments if classes is None else {**arguments, "num_classes": classes}


def timm_model(path: Path, name: str, config: TimmConfig, tensors: Iterable[str] | None = None) -> Any:
    """timm's model of that name, without memory; `tensors` as in `constructor_arguments`.

    Raises VitedgeError: timm is not there, does not have it, or can't make it.
    """
    try:
        import timm
    except ImportError:
        raise VitedgeError(
            f"'{path}' names timm's architecture '{name}', which vitedge does not know by heart.",
            "Its activation, norms and heads are in timm's own code.",
            "Install timm, so that it can be asked: pip install timm.",
        ) from None
    import torch

    if not timm.is_model(name):
        raise VitedgeError(
            f"'{path}' names the architecture '{name}', which this timm does not have.",
            f"timm is {timm.__version__}.",
            "Update timm, or give the weights as a file of their own with --heads and --preprocess.",
        )
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **constructor_arguments(name, config, tensors))
    except Exception as error:
        raise VitedgeError(f"timm can't make the architecture '{name}' of '{path}'.", str(error)[:300], TODO) from error
