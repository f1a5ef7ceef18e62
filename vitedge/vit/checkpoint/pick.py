"""The one ViT in what a checkpoint file holds: below other keys, behind prefixes, beside EMA weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.files import listing
from vitedge.vit.checkpoint.kinds import SAVE
from vitedge.vit.checkpoint.layout import LAYOUTS

# What wrappers put into names at any depth: torch.compile, FSDP, activation checkpointing.
_SEGMENTS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_EMA = re.compile(r"(?<![a-z])(?:ema|ewma|averaged)(?![a-z])")
# Counters and losses beside a model; what they hold never reaches the logits.
_HARMLESS = re.compile(
    r"(?:^|[._])(?:n_averaged|num_updates|decay|initted|step|epoch|criterion|loss|loss_fn|metrics?|"
    r"\w*(?:acc|accuracy|f1|auroc|metric|loss))(?:$|\.)",
    re.IGNORECASE,
)
_DEEPEST = 6
# Patch embedding -> attribute of the library's class that is the classifier.
_HEAD_OF = {"patch_embed.proj.weight": "head", "conv_proj.weight": "heads"}
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")


@dataclass(frozen=True)
class Found:
    """One ViT of a checkpoint.

    Attributes:
        tensors: by the library's own names.
        where: the keys and the prefix that it stood behind; "" at the top.
        others: what else the file holds that could have been meant, for people.
        foreign: names of tensors beside it that belong to nothing known.
        heads: number of heads that the training script's own settings in the file name, or None.
    """

    tensors: dict[str, Tensor]
    where: str = ""
    others: tuple[str, ...] = ()
    foreign: tuple[str, ...] = field(default=())
    heads: int | None = None

    @property
    def ema(self) -> bool:
        """Whether these are averaged weights, by their name."""
        return bool(_EMA.search(self.where.lower().replace("_", " ")))


def pick(loaded: Mapping[Any, Any], weights: str | None, source: str, anchors: tuple[str, ...] | None = None) -> Found:
    """The ViT in it: the only one; of two, the EMA weights (as timm takes them); else the one that `weights` names.

    Raises VitedgeError where there is none, where several are left, and where tensors that the file holds beside it
    may be part of the model.
    """
    found = [f for node, path in _walk(loaded) for f in _of_node(node, path, anchors)]
    headed = [f for f in found if any("head" in k or k.startswith("classifier") for k in f.tensors)]
    found = headed or found
    if not found:
        return _nothing_known(loaded, source)
    chosen = _choose(found, weights, source)
    if chosen.foreign:
        raise VitedgeError(
            f"'{source}' holds more than the ViT{' below ' + repr(chosen.where) if chosen.where else ''}.",
            f"{len(chosen.foreign)} tensors may be part of the model: {listing(list(chosen.foreign))}.",
            _with_its_head(chosen),
        )
    others = tuple(f.where or "the file's top" for f in found if f is not chosen)
    return Found(chosen.tensors, chosen.where, others, (), _heads_in(loaded))


def _with_its_head(found: Found) -> str:
    """What to do with a ViT in a module of the user's own."""
    layers = {re.sub(r"\.(?:weight|bias)$", "", name) for name in found.foreign}
    head = next((head for anchor, head in _HEAD_OF.items() if anchor in found.tensors), "")
    vit = found.where.rstrip(".").rpartition(".")[2]
    text = "Save the state dict of the ViT alone, with its head in it: "
    if len(layers) == 1 and head and not any(name.startswith(head + ".") for name in found.tensors):
        own = layers.pop()
        return f"{text}model.{vit}.{head} = model.{own} (where nothing else stands between them); " + (
            f"torch.save(model.{vit}.state_dict(), 'model.pth')."
        )
    return f"{text}torch.save(vit.state_dict(), 'model.pth')."


def _choose(found: list[Found], weights: str | None, source: str) -> Found:
    names = ", ".join(repr(f.where or "model") for f in found)
    if weights is None:
        left = found if len(found) == 1 else [f for f in found if f.ema]
        if len(found) > 2 or len(left) != 1:
            raise VitedgeError(
                f"'{source}' holds {len(found)} ViTs: {names}.",
                "Which one is meant can't be told.",
                f"Name it: --weights {found[0].where.rstrip('.') or 'model'}.",
            )
        return left[0]
    if weights in ("ema", "model"):
        left = [f for f in found if f.ema == (weights == "ema")]
    else:
        left = [f for f in found if f.where.rstrip(".") == weights.rstrip(".")] or [
            f for f in found if weights in f.where
        ]
    if len(left) != 1:
        raise VitedgeError(
            f"'{source}' has {'no' if not left else 'several'} weights '{weights}'.",
            f"It holds {names}.",
            "Give one of these names in full with --weights, or leave it out."
            if left or len(found) > 1
            else "Leave --weights out.",
        )
    return left[0]


def _walk(node: Mapping[Any, Any], path: str = "", depth: int = 0) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Every mapping in it that has tensors by name, with the keys on the way."""
    tensors = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield tensors, path
    for key, value in node.items():
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _walk(value, f"{path}{key}.", depth + 1)


def _of_node(node: dict[str, Tensor], path: str, anchors: tuple[str, ...] | None) -> list[Found]:
    """The ViTs in one flat state dict, each behind its own prefix; those of the first of `anchors` that is there."""
    tensors = {_SEGMENTS.sub("", name): tensor for name, tensor in node.items()}
    prefixes: dict[str, str] = {}
    if anchors is None:
        anchors = tuple(layout.anchor for layout in LAYOUTS)
    else:
        anchors = tuple(a for a in anchors if any(f".{name}".endswith(f".{a}") for name in tensors))[:1]
    for anchor in anchors:
        for name in tensors:
            at = name.rfind(anchor)
            if at >= 0 and name[at:] == anchor and (at == 0 or name[at - 1] == "."):
                prefixes.setdefault(name[:at], anchor)
    result = []
    for prefix in prefixes:
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        foreign = [
            name
            for name in tensors
            if not any(name.startswith(p) for p in prefixes) and not _HARMLESS.search(name) and prefix
        ]
        inner = {n: t for n, t in inner.items() if not (n == "n_averaged" or (prefix == "" and _HARMLESS.search(n)))}
        result.append(Found(inner, path + prefix, (), tuple(foreign)))
    return result


def _nothing_known(loaded: Mapping[Any, Any], source: str) -> Found:
    """The largest state dict in it, whatever its names are: the layouts then say what is wrong with it."""
    nodes = sorted(_walk(loaded), key=lambda found: len(found[0]))
    if not nodes:
        raise VitedgeError(
            f"'{source}' holds no state dict.", f"It holds {listing([repr(k) for k in loaded], 4)}.", SAVE
        )
    tensors, where = nodes[-1]
    return Found({_SEGMENTS.sub("", k): v for k, v in tensors.items()}, where, (), (), _heads_in(loaded))


def _heads_in(loaded: Mapping[Any, Any]) -> int | None:
    """The number of heads in the settings that a training script saved beside the weights, where they name one."""
    values: set[int] = set()

    def collect(node: Any, depth: int) -> None:
        node = node if isinstance(node, Mapping) else getattr(node, "__dict__", None)
        if not isinstance(node, Mapping) or depth > 3:
            return
        for key, value in node.items():
            if key in _HEADS and type(value) is int and 0 < value < 4096:
                values.add(value)
            elif not isinstance(value, Tensor):
                collect(value, depth + 1)

    collect({k: v for k, v in loaded.items() if not isinstance(v, Tensor)}, 0)
    return values.pop() if len(values) == 1 else None
