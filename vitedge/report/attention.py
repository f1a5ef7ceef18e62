"""Where the model looks, before and after compression. The only room of the report that needs torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitedge.bench.from_bundle import find_preprocess
from vitedge.bench.source import first_images
from vitedge.bundle import Bundle
from vitedge.documents import printable
from vitedge.errors import install_command
from vitedge.report.collect import Facts
from vitedge.report.flips import jpeg_url
from vitedge.reporter import Reporter

if TYPE_CHECKING:
    import torch

    from vitedge.vit.architecture import Architecture
    from vitedge.vit.config import ViTConfig

_IMAGES = 4
_BLOCKS = 6
_SIDE = 112


@dataclass(frozen=True)
class AttentionRow:
    """One image, and for each of its models the maps over it, block by block, as data: URLs."""

    name: str
    image: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of a few images; `blocks` numbers the columns."""

    note: str
    blocks: tuple[int, ...]
    rows: tuple[AttentionRow, ...]


def compare_attention(bundle: Bundle, facts: Facts, reporter: Reporter) -> AttentionMaps | None:
    """Where the model looked before and after compression, on a few images; flipped ones come first.

    None where torch or the images are missing, or nothing was compressed.
    """
    weights = [f"{folder}/model.safetensors" for folder in ("source", "model")]
    if facts.source is None or not all(bundle.has(path) for path in weights):
        return None
    before, after = (bundle.manifest.artifacts[path].sha256 for path in weights)
    if before == after:
        return None
    if importlib.util.find_spec("torch") is None:
        reporter.info(f"no attention maps: they need torch ({install_command('compress')})")
        return None
    from vitedge.vit.checkpoint import read_model

    pixels, names = _choose(facts)
    prepared = find_preprocess(bundle).normalize(pixels)
    maps = []
    for folder in ("source", "model"):
        bundle.verified(f"{folder}/model.safetensors")
        maps.append(rollouts(read_model(bundle.path(folder)), prepared))
    depth = min(len(one) for one in maps)
    blocks = tuple(dict.fromkeys(np.linspace(0, depth - 1, min(_BLOCKS, depth)).round().astype(int).tolist()))
    rows = [
        AttentionRow(
            printable(name), _url(image), *(tuple(_url(colored(image, one[k][at])) for k in blocks) for one in maps)
        )
        for at, (name, image) in enumerate(zip(names, pixels, strict=True))
    ]
    note = (
        "Attention rollout (Abnar and Zuidema, 2020): from dark over red to yellow, how much each patch has reached "
        "[CLS] after the block named above. First line: the model as it came; second line: the compressed model in "
        "float, before a target's own quantisation."
    )
    return AttentionMaps(note, blocks, tuple(rows))


def rollout(model: Architecture, pixels: np.ndarray) -> np.ndarray:
    """How much each patch reaches what the head reads: the last of `rollouts`, [B, rows, columns]."""
    return np.asarray(rollouts(model, pixels)[-1])


def rollouts(model: Architecture, pixels: np.ndarray) -> np.ndarray:
    """How much each patch reaches what the head reads, after each block: [B, 3, H, W] -> [blocks, B, rows, columns].

    Each block's attention is the mean over its heads, with half of the identity for the residual path
    (S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", 2020). Where tokens are merged, so is what
    reached them; where a layer makes one of several, it is their mean.
    """
    import torch

    from vitedge.tokens.matching import merge
    from vitedge.tokens.modules import merge_history

    model.eval()
    pooled: list[torch.Tensor] = []
    blocks = iter([i for i, block in enumerate(model.encoder()) if block.attention is not None])
    with torch.no_grad(), merge_history(model) as seen:  # groups [B, N] of merges, and probs [B, queries, N] here
        hooks = [
            site.register_forward_hook(lambda module, inputs, output: seen.append(output.mean(1)))
            for name, site in model.sites().items()
            if name.endswith("attention.probs") and name.startswith("block")
        ]
        if "pool.attention.probs" in model.sites():
            site = model.sites()["pool.attention.probs"]
            hooks.append(site.register_forward_hook(lambda module, inputs, output: pooled.append(output.mean(1)[:, 0])))
        model(torch.from_numpy(pixels))
    for hook in hooks:
        hook.remove()
    flow, sizes, after = None, None, []
    for step in seen:
        if flow is None:
            flow = torch.eye(model.config.tokens).expand(len(pixels), -1, -1)
        if step.is_floating_point():
            flow = _attended(model, next(blocks), step, flow)
            after.append(_read(model.config, flow, sizes, pooled))
        else:
            flow, sizes = merge(flow, sizes, step, int(step.max()) + 1)
    if not after:
        raise ValueError("the model has no attention")
    patches = np.stack(after)
    return patches.reshape(*patches.shape[:2], *model.config.grid)


def _attended(model: Architecture, index: int, probs: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """What of the patches is in each token after the attention of block `index`, [B, queries, N]; `flow`: before it."""
    from vitedge.vit.stages import means_of_read
    from vitedge.vit.windows import from_windows, to_windows

    config = model.config
    start = flow.shape[1]
    for at in range(index + 1):  # a stage began before it, also with a block without attention
        stage, tokens = config.blocks[at].stage, config.block_tokens(at).mlp
        if stage and start > tokens:
            flow = means_of_read(flow, config.block_grid(at - 1), stage)
            start = tokens
    window, reduction, grid = config.blocks[index].window, config.blocks[index].reduction, config.block_grid(index)
    if window is None:
        read = flow if reduction is None else means_of_read(flow, grid, reduction)
        return 0.5 * flow[:, : probs.shape[1]] + 0.5 * probs @ read
    return 0.5 * flow + 0.5 * from_windows(probs @ to_windows(flow, grid, window), grid, window)


def _read(config: ViTConfig, flow: torch.Tensor, sizes: torch.Tensor | None, pooled: list[torch.Tensor]) -> np.ndarray:
    """What of the image's patches the head would read after a block, [B, patches]; flow: [B, tokens, N]."""
    import torch

    read = torch.zeros(flow.shape[:2])
    share = torch.ones(flow.shape[:2]) if sizes is None else sizes.float()
    for part in config.pool:
        if part == "attention" and pooled[0].shape == read.shape:
            read += pooled[0]
        elif part in config.prefix_tokens:
            read[:, config.prefix_tokens.index(part)] += 1
        else:
            read[:, config.prefix :] += share[:, config.prefix :] / share[:, config.prefix :].sum(1, keepdim=True)
    return (read[:, None] @ flow)[:, 0, config.prefix :].numpy()


# Dark violet over red and orange to light yellow, evenly brighter: what is printed in grey keeps its order.
_COLOURS = np.array([[0, 0, 20], [80, 18, 123], [183, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)


def colored(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The image uint8 [H, W, 3] in grey under the colours of `attention` [grid, grid], bright where it is large."""
    from PIL import Image

    low, high = attention.min(), np.percentile(attention, 99)
    scaled = np.clip((attention - low) / max(float(high - low), 1e-12), 0, 1)
    heat = Image.fromarray((255 * scaled).astype(np.uint8)).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
    at = np.asarray(heat, np.float32) / 255 * (len(_COLOURS) - 1)
    colours = np.stack([np.interp(at, np.arange(len(_COLOURS)), _COLOURS[:, c]) for c in range(3)], -1)
    grey = image.mean(-1, keepdims=True)
    return (0.35 * grey + 0.65 * colours).astype(np.uint8)


def _choose(facts: Facts) -> tuple[np.ndarray, list[str]]:
    """A few images uint8 [n, H, W, 3] and their names: flipped ones, else the first."""
    source = facts.source
    assert source is not None
    flipped = list(dict.fromkeys(flip.index for one in facts.flips for flip in one.shown))[:_IMAGES]
    pixels, names = [], []
    for index in flipped:
        at, batch = next(source.batches(index, 1))
        if at[0] == index:
            pixels.append(batch[0])
            names.append(source.dataset.files[index])
    if pixels:
        return np.stack(pixels), names
    first = first_images(source, _IMAGES)
    return first, list(source.dataset.files[: len(first)])


def _url(image: np.ndarray) -> str:
    from PIL import Image

    if image.shape[-1] != 3:  # grey, or channels that no screen has
        image = image.mean(-1).astype(np.uint8)
    return jpeg_url(Image.fromarray(image).convert("RGB").resize((_SIDE, _SIDE)))
