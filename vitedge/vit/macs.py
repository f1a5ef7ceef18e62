"""Counts of multiply-accumulates and parameters, from the configuration alone."""

from __future__ import annotations

from vitedge.vit.block import BlockConfig, BlockTokens
from vitedge.vit.config import ViTConfig


def attention_macs(width: int, block: BlockConfig, tokens: BlockTokens) -> int:
    """MACs of one block's attention: q, k, v, scores, context, output, and what reduces keys and values."""
    if not block.heads:
        return 0
    n, m = tokens.keys, tokens.queries
    qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
    own = width * (m * qk + n * qk + n * v + m * v) + m * tokens.seen(block) * (qk + v)
    return own + reduce_macs(width, block, tokens) + average_macs(width, tokens)


def reduce_macs(width: int, block: BlockConfig, tokens: BlockTokens) -> int:
    """MACs of the Linear that leaves fewer tokens for keys and values; 0 where there is none."""
    return tokens.keys * block.reduction.joined * width * width if block.reduction else 0


def average_macs(width: int, tokens: BlockTokens) -> int:
    """MACs of the product with a constant that means are taken by, where the parts of the grid are not equal."""
    return tokens.averaged * tokens.keys * width


def mlp_macs(width: int, block: BlockConfig, tokens: BlockTokens) -> int:
    """MACs of one block's MLP, its depthwise convolution included."""
    return ((3 if block.gated else 2) * width + depthwise_taps(block)) * block.hidden * tokens.mlp


def depthwise_taps(block: BlockConfig) -> int:
    """Weights of each unit's filter; 0 where there is none."""
    return 9 if block.depthwise else 0


def stage_macs(config: ViTConfig, index: int) -> int:
    """MACs of the patch merging, or of the convolution, before block `index`; 0 where no stage begins."""
    stage = config.blocks[index].stage
    if stage is None:
        return 0
    return config.block_tokens(index).mlp * stage.kernel**2 * config.block_width(index - 1) * stage.width


def pre_macs(config: ViTConfig) -> int:
    """MACs of the Linear before the first block."""
    return config.tokens * config.width**2 if config.pre_linear else 0


def head_macs(config: ViTConfig) -> int:
    """MACs of one head."""
    return config.last_width * config.classes * (config.last_patches if "patches" in config.pool else 1)


def pool_macs(config: ViTConfig) -> int:
    """MACs of attention pooling: keys and values of all tokens, and one token's MLP."""
    block, n, width = config.pool_block, config.block_tokens(len(config.blocks) - 1).mlp, config.last_width
    if block is None:
        return 0
    query = width * block.heads * block.qk_dim  # a constant
    return attention_macs(width, block, BlockTokens(n, 1, 1)) - query + mlp_macs(width, block, BlockTokens(n, 1, 1))


def patch_macs(config: ViTConfig) -> int:
    """MACs of the patch embedding, its stem included."""
    if config.stem is not None:
        return sum(placed.macs for placed in config.stem_layers())
    return config.patches * config.patch_size**2 * config.channels * config.width


def patch_params(config: ViTConfig) -> int:
    """Parameters of the patch embedding, its stem included."""
    if config.stem is not None:
        return sum(placed.params for placed in config.stem_layers())
    return config.patch_size**2 * config.channels * config.width + config.width


def merging_macs(config: ViTConfig, tokens: int, left: int, *, matched: bool) -> int:
    """MACs of merging `tokens` into `left`: similarities and a one-hot product, or one product with a constant."""
    if not matched:
        return tokens * left * config.width
    second = (tokens - config.prefix) // 2
    return ((tokens - config.prefix - second) + (tokens - left)) * second * config.width


def merge_macs(config: ViTConfig, index: int) -> int:
    """MACs of the merge in block `index`."""
    merge, tokens = config.blocks[index].merge, config.block_tokens(index).queries
    return merging_macs(config, tokens, merge.left, matched=merge.matched) if merge else 0


def block_macs(config: ViTConfig, index: int) -> int:
    """MACs of one block."""
    block, tokens, width = config.blocks[index], config.block_tokens(index), config.block_width(index)
    own = stage_macs(config, index) + attention_macs(width, block, tokens)
    return own + merge_macs(config, index) + mlp_macs(width, block, tokens)


def model_macs(config: ViTConfig) -> int:
    """MACs of one image as exported: a block counts only the tokens that are needed after it."""
    blocks = sum(block_macs(config, i) for i in range(len(config.blocks)))
    heads = head_macs(config) * len(config.pool)
    return patch_macs(config) + pre_macs(config) + blocks + pool_macs(config) + heads


def block_params(w: int, block: BlockConfig) -> int:
    """Parameters of one block of the width `w`, its LayerNorms included; without the patch merging before it."""
    qk, v = block.heads * block.qk_dim, block.heads * block.v_dim
    attention = 2 * (w * qk + qk) + (w * v + v) + (v * w + w) + 2 * w if block.heads else 0
    attention += 4 * block.qk_dim if block.heads and block.qk_norm else 0
    if block.heads and block.window:
        rows, columns = block.window.size
        attention += block.heads if block.cosine else 0
        attention += (2 * rows - 1) * (2 * columns - 1) * block.heads
    if block.heads and block.reduction:
        attention += block.reduction.joined * w * w + 3 * w
    first = w * block.hidden + block.hidden
    mlp = (2 if block.gated else 1) * first + (block.hidden * w + w) + 2 * w if block.hidden else 0
    return attention + mlp + (depthwise_taps(block) + 1) * block.hidden * block.depthwise


def stage_params(config: ViTConfig, index: int) -> int:
    """Parameters of what begins a stage before block `index`, its LayerNorms included; 0 where no stage begins."""
    stage, before = config.blocks[index].stage, config.block_width(index - 1)
    if stage is None:
        return 0
    merged = stage.kernel**2 * before
    norms = before + stage.width if stage.overlaps else stage.width if config.post_norm else merged
    return 2 * norms + merged * stage.width + stage.width


def pool_params(config: ViTConfig) -> int:
    """Parameters of attention pooling: its query is a constant, and no LayerNorm of its own stands before it."""
    pool, w = config.pool_block, config.last_width
    return block_params(w, pool) - w * pool.heads * pool.qk_dim - 2 * w if pool else 0


def model_params(config: ViTConfig) -> int:
    """Parameters of the model."""
    w, last = config.width, config.last_width
    stem = patch_params(config) + config.prefix * w
    stem += (config.tokens * w if config.positions else 0) + (2 * w if config.norm_pre else 0)
    stem += w * w + w if config.pre_linear else 0
    heads = (last * config.classes + config.classes) * len(config.pool)
    blocks = sum(block_params(config.block_width(i), b) + stage_params(config, i) for i, b in enumerate(config.blocks))
    return stem + blocks + 2 * last + pool_params(config) + heads
