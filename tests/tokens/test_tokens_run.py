"""Merged tokens on the whole way of a run: pruning, distillation, conditioning, QAT with everything in INT8, graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.command import vitedge
from vitedge import open as open_run
from vitedge import targets
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.metrics import agreement
from vitedge.quant import simulate
from vitedge.quant.scheme import Scheme
from vitedge.steps.build import float_graph
from vitedge.steps.export import CONSTANT, FLOAT32, run_graph
from vitedge.steps.source import read_preprocess
from vitedge.vit.checkpoint import read_model
from vitedge.vit.config import ViTConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_folder, shapes_folder) -> Path:
    root = tmp_path_factory.mktemp("merged")
    small = ["--align", 16, "--min-hidden", 16, "--fit-steps", 3, "--epochs", 60]
    merged = ["--prune", 0.12, "--prune-by", "tokens", "--recover", "distill", "--quantize", "qat", "--preset", "full"]
    vitedge(root, "compress", "--model", tiny_folder, "--calib", shapes_folder, *merged, *small)
    return root


def test_every_step_keeps_the_merge(root) -> None:
    bundle = Bundle.open(root / "vitedge-run")
    merges = [block["merge"] for block in json.loads((bundle.root / "model/arch.json").read_text())["blocks"]]
    assert merges[0]["matched"] and len(merges[0]["groups"]) == 17 and merges[1] is None
    facts = bundle.facts("export")
    share = 1 - facts[FLOAT32]["macs"] / facts["onnx/reference.onnx"]["macs"]
    assert share == pytest.approx(bundle.facts("prune")["removed"]) and share >= 0.12
    assert facts[FLOAT32]["operators"]["TopK"] == 1 and "TopK" not in facts[CONSTANT]["operators"]
    scheme = json.loads((bundle.root / "quant/scheme.json").read_text())
    assert {"block0.residual1", "block0.merged"} <= set(scheme["activations"])
    tables = json.loads(vitedge(root, "inspect", "--json").stdout)["tables"]
    assert "block0.merge" in [row[0] for row in tables["Layers"]["rows"]]


def test_an_int8_artifact_computes_as_simulated(root) -> None:
    # Whether so small a model keeps its classes in INT8 is the rounding's, so `accepted` may be either.
    artifact = open_run(root / "vitedge-run").build("onnxruntime", precision="int8")
    bundle = Bundle.open(root / "vitedge-run")
    assert artifact.facts["macs"] == bundle.facts("export")[FLOAT32]["macs"]
    pixels, preprocess = np.load(bundle.path("calib/pixels.npy")), read_preprocess(bundle)
    simulated = simulate(read_model(bundle.path("model")), Scheme.load(bundle.path("quant")), preprocess)
    with torch.inference_mode():
        expected = simulated(torch.from_numpy(preprocess.normalize(pixels))).numpy()
    runner = targets.get("onnxruntime").open(artifact.path, artifact.facts, threads=1)
    assert agreement(expected, np.concatenate([runner.infer(image[None]) for image in pixels])) >= 0.9
    runner.close()


def test_a_target_that_cannot_sort_gets_constant_groups(root) -> None:
    bundle = Bundle.open(root / "vitedge-run")
    assert float_graph(bundle, targets.get("onnxruntime"))[0] == FLOAT32
    graph, logits = float_graph(bundle, targets.get("rknn"))
    assert graph == CONSTANT and targets.get("rknn").check(bundle.path(graph), "int8", None) == []
    pixels = np.load(bundle.path("calib/pixels.npy"))[:8]
    assert np.allclose(run_graph(bundle.path(graph), pixels), np.load(bundle.path(logits))[:8], atol=1e-4)


def test_without_them_it_is_told_what_to_do(root) -> None:
    bundle = Bundle.open(root / "vitedge-run")
    config = json.loads((bundle.root / "model/arch.json").read_text())
    config["blocks"][0]["merge"]["groups"] = []
    with pytest.raises(VitedgeError, match="cannot sort"):
        ViTConfig.from_dict(config).merged_alike()
