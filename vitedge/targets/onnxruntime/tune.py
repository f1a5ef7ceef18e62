"""The graph written in its possible forms, and the fastest of them kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitedge.documents import Json
from vitedge.onnx_graph.matcher import input_shape
from vitedge.targets.fastest import choose, median_times
from vitedge.targets.onnxruntime.rewrites import ATTENTION, GROUPS, Form, apply
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner

if TYPE_CHECKING:
    import onnx

    from vitedge.targets.onnxruntime.target import OnnxRuntimeOptions


def write_fastest(graph: Path, out: Path, options: OnnxRuntimeOptions, pixels: np.ndarray | None) -> Json:
    """Writes the graph to `out` in the fastest of the forms that `options` allow, and tells what was found.

    One choice after the other: first the attention, then the MLP's groups. Forms that come out as the same graph
    are not timed twice. pixels: images [N, H, W, C] to time with; noise where there are none.
    """
    import onnx

    model = onnx.load(graph)
    trials = _Trials(model, out, pixels)
    form = Form(
        ATTENTION[0] if options.attention == "auto" else options.attention,
        GROUPS[0] if options.mlp_groups == "auto" else options.mlp_groups,
    )
    if options.weight_type != "auto":
        form = replace(form, weights=options.weight_type)
    if options.attention == "auto":
        form = trials.fastest([replace(form, attention=name) for name in ATTENTION])
    if options.mlp_groups == "auto":
        form = trials.fastest([replace(form, groups=name) for name in GROUPS])
    rewritten, counts = apply(model, form)
    onnx.save(rewritten, out)
    operators = dict(Counter(node.op_type for node in rewritten.graph.node))
    return {"form": asdict(form), "timed_ms": trials.times, "rewrites": counts, "operators": operators}


def write_blocks(folder: Path, taps: Sequence[str]) -> dict[str, object]:
    """`model.onnx` of that folder with these values as further outputs, in `blocks/`; those that its form still has."""
    import onnx

    from vitedge.onnx_graph.editor import with_outputs

    model = onnx.load(folder / "model.onnx")
    made = {name for node in model.graph.node for name in node.output}
    there = [tap for tap in taps if tap in made]
    (folder / "blocks").mkdir()
    onnx.save(with_outputs(model, there), folder / "blocks/model.onnx")
    return {"artifact": "blocks/model.onnx", "taps": there}


class _Trials:
    def __init__(self, model: onnx.ModelProto, out: Path, pixels: np.ndarray | None) -> None:
        self.model, self.out = model, out
        self.times: dict[str, float] = {}
        shape = [max(d, 1) for d in input_shape(model)]
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        enough = pixels is not None and len(pixels) >= shape[0]
        self.pixels = np.ascontiguousarray(pixels[: shape[0]]) if enough and pixels is not None else noise

    def fastest(self, forms: Sequence[Form]) -> Form:
        import onnx

        written: dict[str, Path] = {}
        named: dict[str, Form] = {}
        seen: set[bytes] = set()
        for form in forms:
            rewritten, _ = apply(self.model, form)
            digest = sha256(rewritten.graph.SerializeToString(deterministic=True)).digest()
            if digest in seen:
                continue
            seen.add(digest)
            name = f"{form.attention} {form.groups}"
            named[name], written[name] = form, self.out.with_name(f"{name.replace(' ', '-')}.onnx")
            onnx.save(rewritten, written[name])
        try:
            if len(written) > 1:
                times = median_times(
                    {name: partial(OnnxRuntimeRunner, path) for name, path in written.items()}, self.pixels
                )
                self.times |= times
                return named[choose(times)]
            return forms[0]
        finally:
            for path in written.values():
                path.unlink()
