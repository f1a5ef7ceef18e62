"""A ViT with massive activations: one unit of the second block writes to the tokens of a certain patch."""

from __future__ import annotations

import torch
from torch import Tensor

from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

SOURCE, UNIT = 1, 7


def sink_model() -> VisionTransformer:
    """Five blocks of width 32; unit 7 of block 1 writes 300 times the usual norm to grey patches."""
    config = uniform(image_size=48, patch_size=8, width=32, depth=5, heads=2, hidden=64, classes=10)
    model = init_weights(VisionTransformer(config), seed=4).eval()
    with torch.no_grad():
        model.pos_embedding.mul_(0.1)
        for block in model.encoder():
            for linear in (block.attention.q, block.attention.k):
                linear.weight.mul_(2)
        _aim(model)
    return model


def sink_images(count: int, seed: int = 0) -> Tensor:
    """Noise [count, 3, 48, 48] in which two or three patches of 36 are bright and even."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 8, 6, 8, generator=generator)
    for image in x:
        for place in torch.randperm(36, generator=generator)[: 2 + int(torch.randint(0, 2, (1,), generator=generator))]:
            image[:, place // 6, :, place % 6] = 3.0
    return x.reshape(count, 3, 48, 48)


def _aim(model: VisionTransformer) -> None:
    """Turns the unit's row to what the bright patches have and the others have not."""
    block = model.blocks[SOURCE]
    x = model.embed(sink_images(32, seed=9))
    bright = sink_images(32, seed=9).reshape(32, 3, 6, 8, 6, 8).std((1, 3, 5)).flatten(1) < 1e-6
    read = block.norm2(block.attend(model.blocks[0](x)))
    inside, outside = read[:, 1:][bright], read[:, 1:][~bright]
    row = torch.linalg.solve(torch.cov(outside.T) + 0.05 * torch.eye(32), inside.mean(0) - outside.mean(0))
    scores = (inside @ row).min(), torch.cat([outside @ row, read[:, 0] @ row]).max()
    assert scores[0] > scores[1]
    scale = 40 / (scores[0] - scores[1])
    block.mlp.fc1.weight[UNIT] = row * scale
    block.mlp.fc1.bias[UNIT] = -scale * (scores[1] + 0.2 * (scores[0] - scores[1]))
    block.mlp.fc2.weight[:, UNIT] *= 60
