"""The patch embedding's first operators, rewritten so that raw pixels enter the product as the integers they
are."""

from __future__ import annotations

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.onnx_graph.matcher import input_shape

# The nodes that the export writes between the pixels and the patches.
NODES = ("pixels.float", "pixels.nchw", "patch_embed", "patch_embed.flat", "patches")


def write_patches(g: GraphEditor, p: int) -> str:
    """uint8 [N, H, W, C] -> uint8 patches [N, tokens, p * p * C], by reshaping alone; p: side of a patch."""
    batch, height, width, channels = input_shape(g.model)
    rows, columns = height // p, width // p
    cut = g.constant("pixels.cut.shape", np.array([batch, rows, p, columns, p * channels], np.int64))
    flat = g.constant("pixels.patches.shape", np.array([batch, rows * columns, p * p * channels], np.int64))
    x = g.op("Reshape", ["pixels", cut], "pixels.cut")
    x = g.op("Transpose", [x], "pixels.grid", perm=[0, 1, 3, 2, 4])
    return g.op("Reshape", [x, flat], "pixels.patches")


def as_matrix(values: np.ndarray) -> np.ndarray:
    """A convolution's weight [width, C, p, p] as [p * p * C, width], in the order of `write_patches`."""
    return values.transpose(2, 3, 1, 0).reshape(-1, len(values))
