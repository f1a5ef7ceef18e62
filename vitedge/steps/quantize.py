"""The step that quantises: the scheme in `quant/`, and `onnx/int8.onnx` out of it and the float graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.bundle import Bundle, StepRecord, code_version
from vitedge.files import write_json
from vitedge.quant.options import QuantOptions
from vitedge.quant.scheme import Scheme
from vitedge.reporter import Reporter
from vitedge.steps.export import FLOAT32, LOGITS, check_images, run_graph
from vitedge.steps.fidelity import fidelity
from vitedge.steps.model import FINAL
from vitedge.steps.source import PIXELS, float_batches, need_pixels, read_pixels, read_preprocess

INT8 = "onnx/int8.onnx"
QUANT = "quant"


def quantize_model(bundle: Bundle, mode: str, options: QuantOptions, reporter: Reporter) -> StepRecord:
    """`quant/scheme.*` and `onnx/int8.onnx`; mode "static" or "dynamic". The model is the final float one."""
    pixels = need_pixels(bundle, "Static quantisation") if mode == "static" else read_pixels(bundle)

    before = _before_conditioning(bundle)

    def work(folder: Path) -> dict[str, Any]:
        import onnx

        from vitedge.quant import calibrate, insert_qdq, quantize_dynamic, round_weights
        from vitedge.vit.checkpoint import read_model

        model, preprocess = read_model(bundle.path(FINAL)), read_preprocess(bundle)
        batches = None if pixels is None else float_batches(pixels, preprocess)
        count = "no" if pixels is None else str(len(pixels))
        with reporter.progress(f"quantising ({mode}, {count} pictures): values and layers", None) as advance:
            # What INT8 loses is counted from before conditioning, whose near-exact part may have cost something too.
            extra = {"reference": read_model(bundle.path(before))} if mode == "static" else {}
            make: Callable[..., Scheme] = calibrate if mode == "static" else round_weights
            scheme = make(model, batches, options, preprocess, lambda name: advance(1), **extra)
        scheme.save(folder / QUANT)
        insert = insert_qdq if mode == "static" else quantize_dynamic
        graph = insert(onnx.load(bundle.path(FLOAT32)), scheme)
        (folder / INT8).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(graph, folder / INT8)
        facts = compare(bundle, folder / INT8) | scheme.facts
        for warning in scheme.facts.get("warnings", []):
            reporter.warn(warning)
        facts["operators"] = dict(Counter(node.op_type for node in graph.graph.node))
        facts["size_ratio"] = (folder / INT8).stat().st_size / bundle.path(FLOAT32).stat().st_size
        write_json(folder / "analysis" / "30-quantize.json", quantize_table(mode, scheme, facts) | {"step": "quantize"})
        return facts

    return bundle.run_step(
        "quantize",
        work,
        options=asdict(options) | {"mode": mode},
        inputs=[f"{FINAL}/model.safetensors", f"{FINAL}/arch.json", FLOAT32, LOGITS, f"{before}/model.safetensors"]
        + ([PIXELS] if pixels is not None else []),
        code=code_version("vitedge.quant", "vitedge.vit.model"),
    )


def _before_conditioning(bundle: Bundle) -> str:
    """The folder of the model that conditioning started from; the final one's where there was no conditioning."""
    read = bundle.manifest["steps"].get("condition", {}).get("inputs", {})
    return next((p.rpartition("/")[0] for p in read if p.endswith("/model.safetensors")), FINAL)


def compare(bundle: Bundle, graph: Path) -> dict[str, Any]:
    """Agreement and logit SQNR of a graph with the float one, on the pictures that graphs are compared on."""
    images, kind = check_images(read_pixels(bundle), read_preprocess(bundle), bundle)
    expected = np.load(bundle.verified(LOGITS))
    return {"check_images": f"{len(images)} {kind}"} | fidelity(run_graph(graph, images), expected)


def quantize_table(mode: str, scheme: Scheme, facts: dict[str, Any]) -> dict[str, Any]:
    """What was quantised, and how near the result is on calibration pictures."""
    rows = [
        ["Linears with INT8 weights", len(scheme.weights)],
        ["activations in INT8", len(scheme.activations)],
        ["share of INT8 MACs", scheme.facts.get("int8_macs")],
        ["size, as a share of FP32", facts["size_ratio"]],
        ["agreement with FP32", facts["agreement"]],
        ["logit SQNR (dB)", facts["sqnr_db"]],
    ]
    title = f"Quantisation: {mode}" + (f", preset {scheme.preset}" if mode == "static" else "")
    return {"title": title, "columns": ["what", "value"], "rows": rows, "note": f"On {facts['check_images']}."}
