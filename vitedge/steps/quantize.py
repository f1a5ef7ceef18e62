"""The step that quantises: the scheme in `quant/`, and `onnx/int8.onnx` out of it and the float graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from vitedge.bench.from_bundle import find_activation
from vitedge.bundle import Bundle, StepRecord
from vitedge.files import write_json
from vitedge.manifest import Facts
from vitedge.metrics import fidelity
from vitedge.quant.options import METRICS, QuantOptions
from vitedge.quant.scheme import ARRAYS_NAME, JSON_NAME, Scheme
from vitedge.reporter import Reporter
from vitedge.steps.export import FLOAT32, LOGITS, REFERENCE, check_images, check_sparsity, run_graph
from vitedge.steps.model import FINAL
from vitedge.steps.scheme import make_scheme, quantize_graph
from vitedge.steps.source import PIXELS, need_pixels, read_pixels, read_preprocess
from vitedge.steps.transform import TRAINED, before_conditioning
from vitedge.tables import Cell, Table, to_json

INT8 = "onnx/int8.onnx"
QUANT = "quant"


def quantize_model(bundle: Bundle, mode: str, options: QuantOptions, reporter: Reporter) -> StepRecord:
    """`quant/scheme.*` and `onnx/int8.onnx`; mode "static", "dynamic" or "qat". The model is the final float one.

    With "qat" the scheme is there already: see `steps.qat`.
    """
    pixels = need_pixels(bundle, "Static quantisation") if mode == "static" else read_pixels(bundle)
    learned = [f"{TRAINED}/{name}" for name in (JSON_NAME, ARRAYS_NAME)] if mode == "qat" else []
    against = REFERENCE if mode == "qat" else LOGITS

    before = before_conditioning(bundle, FINAL)

    def work(folder: Path) -> Facts:
        import onnx

        from vitedge.vit.checkpoint import read_model

        if mode == "qat":
            scheme = Scheme.load(bundle.path(TRAINED))
        else:
            # What INT8 loses is counted from before conditioning, whose near-exact part may have cost something too.
            model, reference = (read_model(bundle.path(folder)) for folder in (FINAL, before))
            scheme = make_scheme(mode, model, pixels, read_preprocess(bundle), options, reporter, reference)
        scheme.save(folder / QUANT)
        graph = quantize_graph(mode, onnx.load(bundle.path(FLOAT32)), scheme)
        (folder / INT8).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(graph, folder / INT8)
        check_sparsity(bundle, folder / INT8)
        facts = compare(bundle, folder / INT8, against) | scheme.facts
        for warning in scheme.facts.get("warnings", []) if mode != "qat" else []:
            reporter.warn(warning)
        facts["operators"] = dict(Counter(node.op_type for node in graph.graph.node))
        facts["size_ratio"] = (folder / INT8).stat().st_size / bundle.path(FLOAT32).stat().st_size
        table = quantize_table(mode, scheme, facts)
        write_json(folder / "analysis" / "30-quantize.json", to_json(table, step="quantize"))
        return facts

    return bundle.run_step(
        "quantize",
        work,
        options=options.model_dump() | {"mode": mode},
        inputs=[f"{FINAL}/model.safetensors", f"{FINAL}/arch.json", FLOAT32, against, f"{before}/model.safetensors"]
        + learned
        + ([PIXELS] if pixels is not None else []),
        modules=("vitedge.steps.quantize",),
    )


def compare(bundle: Bundle, graph: Path, against: str) -> Facts:
    """Agreement and logit SQNR of a graph on the images that graphs are compared on, with those logits or graph.

    Training changes the float graph as well: what it made is held against the model that taught it.
    """
    images, kind = check_images(read_pixels(bundle), read_preprocess(bundle), bundle)
    path = bundle.verified(against)
    expected = run_graph(path, images) if against == REFERENCE else np.load(path)
    name = "the source model" if against == REFERENCE else "the float model before quantisation"
    found = fidelity(expected, run_graph(graph, images), find_activation(bundle))
    return {"check_images": f"{len(images)} {kind}", "reference": name, **found}


def quantize_table(mode: str, scheme: Scheme, facts: Facts) -> Table:
    """What was quantised, and how near the result is on calibration images."""
    left = scheme.facts.get("float_stem_macs")
    rows: list[list[Cell]] = [
        ["Linears with INT8 weights", len(scheme.weights)],
        ["activations in INT8", len(scheme.activations)],
        ["share of INT8 MACs", scheme.facts.get("int8_macs")],
        *([["share of MACs in the stem, which stays float", left]] if left is not None else []),
        ["size, as a share of FP32", facts["size_ratio"]],
        ["agreement", facts["agreement"]],
        ["logit SQNR (dB)", facts["sqnr_db"]],
    ]
    mixed = scheme.facts.get("mixed") if mode == "static" else None
    if mixed:
        lost, points = mixed["tried"][-1], METRICS[mixed["metric"]]
        rows += [
            [f"tensors in float for --max-drop {mixed['max_drop']:g}", len(mixed["float"])],
            [f"points of {points} lost, estimated on {mixed['images']} held-out images", lost["lost"]],
            ["its standard error", lost["error"]],
        ]
    title = f"Quantisation: {mode}" + (f", preset {scheme.preset}" if mode != "dynamic" else "")
    return Table(title, ["figure", "value"], rows, f"On {facts['check_images']}, against {facts['reference']}.")
