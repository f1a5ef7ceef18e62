"""The patch embedding's first operators, rewritten so that raw pixels enter the product as the integers they
are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vitedge.quant.graph import GraphEditor, misfit

if TYPE_CHECKING:
    import onnx

# The nodes that the export writes between the pixels and the patches.
NODES = ("pixels.float", "pixels.nchw", "patch_embed", "patch_embed.flat", "patches")


def patch_size(model: onnx.ModelProto) -> int:
    """Side of a patch in pixels, from the convolution's kernel."""
    for node in model.graph.node:
        if node.name == "patch_embed":
            return next(int(a.ints[0]) for a in node.attribute if a.name == "kernel_shape")
    raise misfit("It has no node 'patch_embed'.")


def emit_patches(g: GraphEditor) -> str:
    """uint8 [N, H, W, C] -> uint8 patches [N, tokens, p * p * C], by reshaping alone."""
    shape = [d.dim_value for d in g.graph.input[0].type.tensor_type.shape.dim]
    p = patch_size(g.model)
    batch, rows, columns, channels = shape[0] or -1, shape[1] // p, shape[2] // p, shape[3]
    cut = g.constant("pixels.cut.shape", np.array([batch, rows, p, columns, p * channels], np.int64))
    flat = g.constant("pixels.patches.shape", np.array([batch, rows * columns, p * p * channels], np.int64))
    x = g.emit("Reshape", ["pixels", cut], "pixels.cut")
    x = g.emit("Transpose", [x], "pixels.grid", perm=[0, 1, 3, 2, 4])
    return g.emit("Reshape", [x, flat], "pixels.patches")


def as_matrix(values: np.ndarray) -> np.ndarray:
    """A convolution's weight [width, C, p, p] as [p * p * C, width], in the order of `emit_patches`."""
    return values.transpose(2, 3, 1, 0).reshape(-1, len(values))
