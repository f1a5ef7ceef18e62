"""The bundle's graph made ready for the compiler, and proved to compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitedge.errors import VitedgeError
from vitedge.onnx_graph.matcher import input_shape
from vitedge.onnx_graph.session import open_session, run_images

# Share of the logits' range that the rewrites may move them by.
TOLERANCE = 1e-5
# Images that the rewrites are checked on.
CHECKED = 4


def prepare(
    source: Path, target: Path, pixels: np.ndarray | None, only: tuple[str, ...] | None = None
) -> tuple[list[int], list[str]]:
    """Writes the rewritten graph; the shape of the input [N, H, W, C], and the rewrites that were applied.

    pixels: uint8 [N, H, W, C] to check them on, or None for images of noise.
    only: the rewrites to apply; all by default. Raises VitedgeError where the
    rewritten graph computes anything else.
    """
    import onnx

    from vitedge.targets.rknn import rewrites

    model = onnx.load(source)
    shape = list(input_shape(model))
    rewritten, done = rewrites.apply(model, only)
    onnx.save(rewritten, target)
    if pixels is None or not len(pixels):
        pixels = np.random.default_rng(0).integers(0, 256, (CHECKED, *shape[1:]), dtype=np.uint8)
    before, after = run_graph(source, pixels[:CHECKED]), run_graph(target, pixels[:CHECKED])
    difference = float(np.abs(after - before).max() / (np.ptp(before) or 1))
    if not difference <= TOLERANCE:
        raise VitedgeError(
            "The rewrites for RKNN changed the model.",
            f"Logits differ by {difference:.2g} of their range, more than {TOLERANCE:g}: {', '.join(done)}.",
            "This is a fault of vitedge: please report it with the model's configuration.",
            exit_code=1,
        )
    return shape, done


def run_graph(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Float32 logits [N, classes] in ONNX Runtime of uint8 [N, H, W, C], one image at a time."""
    return np.concatenate([outputs[0] for outputs in run_images(open_session(path), pixels)])


def constants(path: Path) -> set[str]:
    """The names of the graph's initialisers."""
    import onnx

    return {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer}
