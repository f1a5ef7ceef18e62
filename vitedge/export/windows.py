"""Windows and patch merging as ONNX nodes: reshapes, transposes of four dimensions, slices and their concatenation.

A block of tokens is moved as whole rows of its columns and channels, so that no transpose has six dimensions, which
NPUs don't take, and each copies the tensor once.
"""

from __future__ import annotations

import math

import numpy as np

from vitedge.onnx_graph.editor import GraphEditor
from vitedge.vit.geometry import Window
from vitedge.vit.windows import relative_places, shift_mask

Pair = tuple[int, int]


def to_blocks(g: GraphEditor, x: str, name: str, grid: Pair, size: Pair, width: int, batch: int | None) -> str:
    """[N, tokens, C] or [N, rows, columns, C] -> [N * rows / high, columns / wide, high, wide * C]."""
    (rows, columns), (high, wide) = grid, size
    first = -1 if batch is None else batch * rows // high
    x = g.op("Reshape", [x, g.shape(first, high, columns // wide, wide * width)], f"{name}.rows")
    return g.op("Transpose", [x], f"{name}.blocks", perm=[0, 2, 1, 3])


def to_windows(
    g: GraphEditor, x: str, names: tuple[str, str], grid: Pair, window: Window, width: int, batch: int | None
) -> str:
    """[N, tokens, C] -> [N * windows, area, C], see `vit.windows`; `names`: of what is made on the way, and of the
    result."""
    (name, result), padded, moved = names, window.padded(grid), window.moved(grid)
    pad = (padded[0] - grid[0], padded[1] - grid[1])
    if any(pad) or any(moved):
        x = g.op("Reshape", [x, g.shape(batch or -1, *grid, width)], f"{name}.grid")
        x = _padded(g, x, f"{name}.padded", pad) if window.pad_first else x
        x = _rolled(g, x, f"{name}.moved", padded if window.pad_first else grid, moved)
        x = x if window.pad_first else _padded(g, x, f"{name}.padded", pad)
    x = to_blocks(g, x, name, padded, window.size, width, batch)
    return g.op("Reshape", [x, g.shape(_windows(padded, window, batch), window.area, width)], result)


def from_windows(g: GraphEditor, x: str, name: str, grid: Pair, window: Window, width: int, batch: int | None) -> str:
    """The inverse of `to_windows`."""
    padded, moved, (high, wide) = window.padded(grid), window.moved(grid), window.size
    first = -1 if batch is None else batch * padded[0] // high
    x = g.op("Reshape", [x, g.shape(first, padded[1] // wide, high, wide * width)], f"{name}.blocks")
    x = g.op("Transpose", [x], f"{name}.rows", perm=[0, 2, 1, 3])
    if padded != grid or any(moved):
        x = g.op("Reshape", [x, g.shape(batch or -1, *padded, width)], f"{name}.grid")
        x = x if window.pad_first else _cropped(g, x, f"{name}.cropped", padded, grid)
        back = tuple(-shift for shift in moved)
        x = _rolled(g, x, f"{name}.moved", padded if window.pad_first else grid, back)
        x = _cropped(g, x, f"{name}.cropped", padded, grid) if window.pad_first else x
    return g.op("Reshape", [x, g.shape(batch or -1, math.prod(grid), width)], f"{name}.tokens")


def scores_bias(table: np.ndarray, grid: Pair, window: Window) -> np.ndarray:
    """What is added to the scores of the windows of one image, float32 [windows or 1, heads, area, area]."""
    places, mask = relative_places(window.size).numpy(), shift_mask(grid, window)
    bias = np.ascontiguousarray(table[places].transpose(2, 0, 1))[None]
    return bias if mask is None else bias + mask.numpy()[:, None]


def _windows(padded: Pair, window: Window, batch: int | None) -> int:
    return -1 if batch is None else batch * math.prod(padded) // window.area


def _padded(g: GraphEditor, x: str, name: str, pad: Pair) -> str:
    return g.op("Pad", [x, g.shape(0, 0, 0, 0, 0, *pad, 0)], name) if any(pad) else x


def _cropped(g: GraphEditor, x: str, name: str, padded: Pair, grid: Pair) -> str:
    return g.op("Slice", [x, g.shape(0, 0), g.shape(*grid), g.shape(1, 2)], name) if padded != grid else x


def _rolled(g: GraphEditor, x: str, name: str, grid: Pair, moved: tuple[int, ...]) -> str:
    """[N, rows, columns, C] with its rows and columns moved to the front by `moved`, the first ones to the end."""
    for axis, (side, shift) in enumerate(zip(grid, moved, strict=True), 1):
        if shift:
            at, part = shift % side, f"{name}.{'rows' if axis == 1 else 'columns'}"
            first = g.op("Slice", [x, g.shape(at), g.shape(side), g.shape(axis)], f"{part}.first")
            last = g.op("Slice", [x, g.shape(0), g.shape(at), g.shape(axis)], f"{part}.last")
            x = g.op("Concat", [first, last], part, axis=axis)
    return x
