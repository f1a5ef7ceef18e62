"""The `.npz` files of the original JAX releases (Vision Transformer, AugReg, big_vision), under timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitedge.errors import VitedgeError

_BLOCK = re.compile(r"encoderblock_(\d{1,6})/")
_PARTS = {
    r"LayerNorm_0": "norm1",
    r"LayerNorm_[12]": "norm2",
    r"MlpBlock_\d+/Dense_0": "mlp.fc1",
    r"MlpBlock_\d+/Dense_1": "mlp.fc2",
}
_STEM = {
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
    "pre_logits/kernel": "pre_logits.fc.weight",
    "pre_logits/bias": "pre_logits.fc.bias",
}


def is_jax(tensors: Mapping[str, object]) -> bool:
    """Whether these are the names of a flax ViT."""
    return any("MultiHeadDotProductAttention" in str(name) for name in tensors)


def to_timm(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Tensors under timm's names, and the number of heads, which the shapes of q, k and v tell.

    flax stores a Dense as [in, out], attention as [C, heads, dim] and [heads, dim, C], and a convolution as
    [h, w, in, out]. Raises VitedgeError for a file of another model.
    """
    named = {re.sub(r"^(?:opt/target|params|target)/", "", k): v for k, v in arrays.items()}
    result: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    heads: set[int] = set()
    for name, value in named.items():
        found = _BLOCK.search(name)
        if name in _STEM:
            result[_STEM[name]] = _turned(name, value)
        elif found and (
            part := re.search(r"MultiHeadDotProductAttention_\d+/(query|key|value|out)/(kernel|bias)", name)
        ):
            prefix = f"blocks.{found[1]}.attn."
            kind = "weight" if part[2] == "kernel" else "bias"
            if part[1] == "out":
                result[f"{prefix}proj.{kind}"] = value.reshape(-1, value.shape[-1]).T if kind == "weight" else value
                continue
            heads.add(value.shape[-2] if value.ndim >= 2 else 0)
            flat = value.reshape(value.shape[0], -1).T if kind == "weight" else value.reshape(-1)
            fused.setdefault(f"{prefix}qkv.{kind}", {})[part[1]] = flat
        elif found and (ours := _inside(name)):
            result[f"blocks.{found[1]}.{ours}"] = _turned(name, value)
        elif not re.search(r"opt/|step|state/", name):
            result[name] = value
    for name, parts in fused.items():
        if set(parts) != {"query", "key", "value"}:
            raise VitedgeError(
                "The .npz of a ViT is incomplete.", f"{name} has only {', '.join(parts)}.", "Download it again."
            )
        result[name] = torch.cat([parts[k] for k in ("query", "key", "value")])
    if len(heads) != 1 or min(heads) < 1:
        raise VitedgeError(
            "The .npz holds no ViT of one number of heads.", f"Found {sorted(heads)}.", "Give another file."
        )
    return {k: v.contiguous() for k, v in result.items()}, heads.pop()


def _inside(name: str) -> str:
    for pattern, ours in _PARTS.items():
        if re.search(rf"/{pattern}/(?:scale|kernel|bias)$", name):
            return f"{ours}.{'bias' if name.endswith('bias') else 'weight'}"
    return ""


def _turned(name: str, value: Tensor) -> Tensor:
    if name.endswith("kernel"):
        return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value
