"""Exact rewrites of the graph for Rockchip's compiler, one a file, in the order in which they are applied."""

from __future__ import annotations

import onnx

from vitedge.onnx_graph.editor import GraphEditor, checked
from vitedge.targets.rknn.rewrites import patch_embed, pixels, windows

REWRITES = {"pixels": pixels.rewrite, "patch_embed": patch_embed.rewrite, "windows": windows.rewrite}


def apply(model: onnx.ModelProto, only: tuple[str, ...] | None = None) -> tuple[onnx.ModelProto, list[str]]:
    """A rewritten copy and the names of the rewrites that found something. `only`: those to try; all by default."""
    g = GraphEditor(model)
    done = [name for name, rewrite in REWRITES.items() if (only is None or name in only) and rewrite(g)]
    return checked(g.finish()), done
