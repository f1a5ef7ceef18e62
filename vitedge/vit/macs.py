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
    return config.patches * config.patch_size**2 * config.channels * config.width


def merge_macs(config: ViTConfig, index: int) -> int:
    """MACs of merging in block `index`: similarities and a one-hot product, or one product with a constant."""
    merge = config.blocks[index].merge
    if merge is None:
        return 0
    tokens = config.block_tokens(index).queries
    if not merge.matched:
        return tokens * merge.left * config.width
    second = (tokens - config.prefix) // 2
    return ((tokens - config.prefix - second) + (tokens - merge.left)) * second * config.width


def block_macs(config: ViTConfig, index: int) -> int:
    """MACs of one block."""
    block, tokens = config.blocks[index], config.block_tokens(index)
    return attention_macs(config, block, tokens) + merge_macs(config, index) + mlp_macs(config, block, tokens)


def model_macs(config: ViTConfig) -> int:
    """MACs of one image as exported: a block counts only the tokens that are needed after it."""
    blocks = sum(block_macs(config, i) for i in range(len(config.blocks)))
    return patch_macs(config) + config.width * config.classes + blocks


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
