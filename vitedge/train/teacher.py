"""Another model that teaches a classifier: of any size, family and preprocessing, on the same classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitedge.data.classes import class_indices, mismatch
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.train.images import Normalizer
from vitedge.vit.checkpoint import load_model


class Teacher:
    """Another model of the same classes; of any size and preprocessing: images uint8 [B, 3, H, W] -> logits [B, C].

    order: its outputs in the order of the student's classes.
    """

    def __init__(self, module: nn.Module, preprocess: Preprocess, order: list[int], device: torch.device) -> None:
        self.module = module.eval().requires_grad_(False).to(device)
        self.normalize, self.size, self.order = Normalizer(preprocess), preprocess.size, order

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        x = self.normalize(pixels)
        if x.shape[-2:] != self.size:
            x = nn.functional.interpolate(x, size=self.size, mode="bilinear", antialias=True)
        return self.module(x)[:, self.order]


def load_teacher(source: str, names: list[str], device: torch.device) -> Teacher:
    """The model that `source` names, its outputs in the order of `names`. Raises VitedgeError for other classes."""
    loaded = load_model(source)
    order = list(range(loaded.model.config.classes))
    if loaded.classes is not None:
        index, _ = class_indices(names, loaded.classes, len(loaded.classes))
        if wrong := [name for name in names if isinstance(index[name], str)]:
            raise mismatch(f"The training data, for the teacher {source},", names, wrong, loaded.classes, "classes")
        order = [int(index[name]) for name in names]
    elif len(order) != len(names):
        raise VitedgeError(
            f"The teacher {source} has other classes.",
            f"It has {len(order)}, the training data {len(names)}; its names are not known.",
            "Give a teacher that was trained on these classes.",
        )
    return Teacher(loaded.model, loaded.preprocess, order, device)
