"""ToMe's own patch (facebookresearch/ToMe, arXiv 2210.09461) on timm's ViT, exported by torch.onnx: a peer of merging.

Its repository is not on the package index: a clone of it is named on the command line, and read as it stands.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from vitedge.vit.architecture import Architecture


def timm_weights(model: Architecture) -> dict[str, Tensor]:
    """The weights of a dense model by timm's names."""
    ours, found = model.state_dict(), {}
    names = {"class_token": "cls_token", "pos_embedding": "pos_embed", "patch_embed": "patch_embed.proj"}
    names |= {"attention.out": "attn.proj"}
    for name, value in ours.items():
        if ".attention.q." in name:
            parts = [ours[name.replace(".q.", f".{part}.")] for part in "qkv"]
            found[name.replace("attention.q", "attn.qkv")] = torch.cat(parts)
        elif ".attention.k." not in name and ".attention.v." not in name:
            for old, new in names.items():
                name = name.replace(old, new)
            found[name] = value
    return found


def patched(model: Architecture, clone: Path, left: dict[int, int]) -> torch.nn.Module:
    """timm's model with ToMe's patch, and the tokens that are left after the attention of a block."""
    from timm.models.vision_transformer import VisionTransformer

    if str(clone) not in sys.path:
        sys.path.insert(0, str(clone))
    import tome

    config, block = model.config, model.config.blocks[0]
    theirs = VisionTransformer(
        config.image_size, config.patch_size, num_classes=config.classes, embed_dim=config.width,
        depth=len(config.blocks), num_heads=block.heads, mlp_ratio=block.hidden / config.width,
    )  # fmt: skip
    theirs.load_state_dict(timm_weights(model))
    theirs.eval()
    tome.patch.timm(theirs)
    tokens, removed = config.tokens, []
    for index in range(len(config.blocks)):
        removed.append(tokens - left.get(index, tokens))
        tokens = left.get(index, tokens)
    theirs.r = removed
    return theirs


def export_tome(model: Architecture, clone: Path, left: dict[int, int], out: Path) -> None:
    """Writes the ONNX graph: normalised float images [1, 3, H, W] -> logits. The exporter breaks the module."""
    config = model.config
    image = torch.zeros(1, config.channels, *config.image_size)
    with torch.inference_mode():
        theirs = patched(model, clone, left)
        torch.onnx.export(theirs, (image,), out, dynamo=True, external_data=False, verbose=False)
