"""Counts of multiply-accumulates and parameters, from the configuration alone."""

from __future__ import annotations

from vitedge.vit.config import BlockConfig, BlockTokens, ViTConfig


def attention_macs(config: ViTConfig, block: BlockConfig, tokens: BlockTokens) -> int:
    """MACs of one block's attention: q, k, v, scores, context, output."""
    n, m = tokens.keys, tokens.queries
    qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
    return config.width * (m * qk + n * qk + n * v + m * v) + m * n * (qk + v)


def mlp_macs(config: ViTConfig, block: BlockConfig, tokens: BlockTokens) -> int:
    """MACs of one block's MLP."""
    return 2 * config.width * block.hidden * tokens.mlp


def patch_macs(config: ViTConfig) -> int:
    """MACs of the patch embedding."""
    return config.grid**2 * config.patch_size**2 * config.channels * config.width


def model_macs(config: ViTConfig, *, exact_cuts: bool = False) -> int:
    """MACs of one image. With `exact_cuts`, a block counts only the tokens that are needed after it, as exported."""
    total = patch_macs(config) + config.width * config.classes
    for i, block in enumerate(config.blocks):
        tokens = config.block_tokens(i, exact_cuts=exact_cuts)
        total += attention_macs(config, block, tokens) + mlp_macs(config, block, tokens)
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
