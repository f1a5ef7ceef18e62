"""Where the model looks, before and after compression. The only room of the report that needs torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.bench.from_bundle import find_preprocess
from vitedge.bench.source import first_images
from vitedge.bundle import Bundle
from vitedge.errors import install_command
from vitedge.report.collect import Facts
from vitedge.report.flips import jpeg_url
from vitedge.reporter import Reporter

if TYPE_CHECKING:
    from vitedge.vit.architecture import Architecture

_PICTURES = 4
_SIDE = 128


def compare_attention(bundle: Bundle, facts: Facts, reporter: Reporter) -> dict[str, Any] | None:
    """{"note", "rows": [{"name", "images": [image, before, after]}]} of a few images.

    Flipped images come first. None where torch or the images are missing, or nothing was compressed.
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
        maps.append(rollout(read_model(bundle.path(folder)), prepared))
    rows = [
        {"name": name, "images": [_url(image), _url(lit(image, one)), _url(lit(image, other))]}
        for name, image, one, other in zip(names, pixels, *maps, strict=True)
    ]
    note = (
        "Attention rollout (Abnar and Zuidema, 2020) from [CLS] to the patches: the image, the model as it came, "
        "and the compressed model in float, before a target's own quantisation. Bright is where it looks."
    )
    return {"note": note, "rows": rows}


def rollout(model: Architecture, pixels: np.ndarray) -> np.ndarray:
    """How much each patch reaches [CLS], by attention rollout: float32 [B, 3, H, W] -> [B, grid, grid].

    Each block's attention is the mean over its heads, with half of the identity for the residual path
    (S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", 2020). The last block attends from
    [CLS] alone. Where tokens are merged, so is what reached them.
    """
    import torch

    from vitedge.tokens.matching import merge
    from vitedge.tokens.modules import merge_history

    model.eval()
    with torch.no_grad(), merge_history(model) as seen:  # groups [B, N] of merges, and probs [B, queries, N] here
        hooks = [
            site.register_forward_hook(lambda module, inputs, output: seen.append(output.mean(1)))
            for name, site in model.sites().items()
            if name.endswith("attention.probs")
        ]
        model(torch.from_numpy(pixels))
    for hook in hooks:
        hook.remove()
    flow, sizes = None, None
    for step in seen:
        if flow is None:
            flow = torch.eye(step.shape[-1]).expand(len(step), -1, -1)
        if step.is_floating_point():
            flow = 0.5 * flow[:, : step.shape[1]] + 0.5 * step @ flow
        else:
            flow, sizes = merge(flow, sizes, step, int(step.max()) + 1)
    if flow is None or not any(step.is_floating_point() for step in seen):
        raise ValueError("the model has no attention")
    patches = flow[:, 0, 1:].numpy()
    grid = round(patches.shape[-1] ** 0.5)
    return patches.reshape(-1, grid, grid)


def lit(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The image uint8 [H, W, 3], dark where `attention` [grid, grid] is low."""
    from PIL import Image

    low, high = attention.min(), np.percentile(attention, 98)
    scaled = np.clip((attention - low) / max(float(high - low), 1e-12), 0, 1)
    heat = Image.fromarray((255 * scaled).astype(np.uint8)).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
    weight = 0.15 + 0.85 * (np.asarray(heat, np.float32)[..., None] / 255) ** 0.6
    return (image * weight).astype(np.uint8)


def _choose(facts: Facts) -> tuple[np.ndarray, list[str]]:
    """A few images uint8 [n, H, W, 3] and their names: flipped ones, else the first."""
    source = facts.source
    assert source is not None
    flipped = list(dict.fromkeys(flip.index for one in facts.flips for flip in one.shown))[:_PICTURES]
    pixels, names = [], []
    for index in flipped:
        at, batch = next(source.batches(index, 1))
        if at[0] == index:
            pixels.append(batch[0])
            names.append(source.dataset.files[index])
    if pixels:
        return np.stack(pixels), names
    first = first_images(source, _PICTURES)
    return first, list(source.dataset.files[: len(first)])


def _url(image: np.ndarray) -> str:
    from PIL import Image

    return jpeg_url(Image.fromarray(image).resize((_SIDE, _SIDE)))
