"""What a model gives instead of class logits: its embedding, or one of every patch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vitedge.vit.config import ViTConfig

Output = Literal["logits", "embedding", "patch-tokens"]


def with_output(config: ViTConfig, state: dict[str, Tensor], output: Output) -> tuple[ViTConfig, dict[str, Tensor]]:
    """The same model without its head: [B, width] of what its (first) head reads, or [B, patches, width] of the patches
    after the last LayerNorm. An embedding that the source projects stays as it is."""
    if output == "logits" or (output == "embedding" and config.activation == "none" and "patches" not in config.pool):
        return config, state
    width = config.last_width
    eye = {"head.weight": torch.eye(width), "head.bias": torch.zeros(width)}
    kept = {k: v for k, v in state.items() if not k.startswith(("head.", "heads."))}
    config = replace(config, classes=width, activation="none", normalize=False)
    if output == "embedding":
        return replace(config, pool=config.pool[:1]), kept | eye
    kept = {k: v for k, v in kept.items() if not k.startswith("pooling.")}
    return replace(config, pool=("patches",), pool_norm="tokens", pool_block=None), kept | eye
