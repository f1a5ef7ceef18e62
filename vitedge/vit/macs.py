"""Counts of multiply-accumulates and parameters, from the configuration alone."""

from __future__ import annotations

from vitedge.vit.config import BlockConfig, ViTConfig


def attention_macs(config: ViTConfig, block: BlockConfig, queries: int | None = None) -> int:
    """MACs of one block's attention (q, k, v, scores, context, output) with `queries` query tokens."""
    n = config.tokens
    m = n if queries is None else queries
    qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
    projections = config.width * (m * qk + n * qk + n * v + m * v)
    return projections + m * n * (qk + v)


def mlp_macs(config: ViTConfig, block: BlockConfig, tokens: int | None = None) -> int:
    """MACs of one block's MLP on `tokens` tokens (all of them by default)."""
    return 2 * config.width * block.hidden * (config.tokens if tokens is None else tokens)


def patch_macs(config: ViTConfig) -> int:
    """MACs of the patch embedding."""
    return config.grid**2 * config.patch_size**2 * config.channels * config.width


def model_macs(config: ViTConfig, *, exact_cuts: bool = False) -> int:
    """MACs of one image. With `exact_cuts`, the last block counts as exported: one query, one token's MLP."""
    total = patch_macs(config) + config.width * config.classes
    last = len(config.blocks) - 1
    for i, block in enumerate(config.blocks):
        cut = 1 if exact_cuts and i == last else None
        total += attention_macs(config, block, cut) + mlp_macs(config, block, cut)
    return total


def block_params(config: ViTConfig, block: BlockConfig) -> int:
    """Parameters of one block, its LayerNorms included."""
    w, qk, v = config.width, block.heads * block.qk_dim, block.heads * block.v_dim
    attention = 2 * (w * qk + qk) + (w * v + v) + (v * w + w) + 2 * w if block.heads else 0
    mlp = (w * block.hidden + block.hidden) + (block.hidden * w + w) + 2 * w if block.hidden else 0
    return attention + mlp


def model_params(config: ViTConfig) -> int:
    """Parameters of the model."""
    w = config.width
    stem = config.patch_size**2 * config.channels * w + w + w + config.tokens * w
    head = 2 * w + w * config.classes + config.classes
    return stem + sum(block_params(config, b) for b in config.blocks) + head
