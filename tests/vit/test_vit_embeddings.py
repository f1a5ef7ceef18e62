"""A model that gives embeddings, the whole way: pruned and taught, trained in INT8, built, judged with embeddings of
class names, classified with, reported, served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitedge
from tests.vit.variants import VARIANTS, make
from vitedge.data.preprocess import Preprocess
from vitedge.data.shapes import SHAPES
from vitedge.errors import VitedgeError
from vitedge.metrics import directions
from vitedge.steps.predict import Predictor
from vitedge.train.losses import distillation, output_distance
from vitedge.vit.checkpoint import save_model

FAST = {"align": 4, "head_align": 4, "min_hidden": 8, "fit_steps": 2, "minutes": 0.03}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes_folder) -> vitedge.api.Run:
    root = tmp_path_factory.mktemp("embeddings")
    save_model(root / "model", make(replace(VARIANTS["clip"], channels=3)))
    Preprocess(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3).save(root / "model/preprocess.json")
    given = {"calib": str(shapes_folder), "calib_size": 40, "prune": 0.1, "recover": "distill", "quantize": "qat"}
    made = vitedge.compress(root / "model", run=root / "run", preset="full", **given, **FAST)
    for precision in ("fp32", "int8"):
        made.build("onnxruntime", precision=precision, attention="parts", mlp_groups="apart")
    return made


@pytest.fixture(scope="module")
def texts(run, shapes_folder) -> Path:
    """Embeddings of the class names: where the source model has the mean of each class's images, so that they fit."""
    rng = np.random.default_rng(0)
    with Predictor(run.bundle, "onnxruntime-fp32") as predictor:
        found = {Path(one.file).name: one.embedding for one in predictor.predict([shapes_folder], 5)}
    lines = (Path(shapes_folder) / "labels.csv").read_text().split()[1:]
    rows = rng.normal(size=(len(SHAPES), 24))
    for number in range(len(SHAPES)):
        own = [found[Path(file).name] for file, label in (line.split(",") for line in lines) if int(label) == number]
        rows[number] = np.mean(own, 0) if own else rows[number]
    np.savez(run.root.parent / "texts.npz", names=list(SHAPES), embeddings=rows.astype(np.float32))
    return run.root.parent / "texts.npz"


def test_what_taught_it_is_the_direction(run) -> None:
    for step in ("distill", "qat"):
        assert 0 <= run.steps[step]["kl"][1] <= run.steps[step]["kl"][0] < 1
    facts = {artifact.name: artifact.facts["check"] for artifact in run.artifacts}
    assert facts["onnxruntime-fp32"]["accepted"] and facts["onnxruntime-int8"]["sqnr_db"] > 3


def test_max_drop_counts_cosine_and_no_classes(run, shapes_folder, tmp_path) -> None:
    given = {"calib": str(shapes_folder), "calib_size": 40, "quantize": "static", "preset": "full", "max_drop": 0.01}
    made = vitedge.compress(run.root.parent / "model", run=tmp_path / "run", **given)
    mixed = made.steps["quantize"]["mixed"]
    assert mixed["metric"] == "cosine" and mixed["float"] and mixed["tried"][0]["lost"] > 0.01, mixed["tried"]
    assert mixed["tried"][-1]["lost"] + mixed["tried"][-1]["error"] <= 0.01


def test_it_is_judged_as_its_users_feel_it(run, texts, shapes_folder) -> None:
    result = run.bench(shapes_folder, text_embeddings=texts, launches=1, seconds=0.05)
    source, int8 = result.row("source"), result.row("onnxruntime-int8")
    assert source.cosine_mean is None and source.top1 is not None and source.knn_top1 is not None
    assert 0.3 < int8.cosine_mean < 1 and 0 < int8.overlap_at_5 < 1 and int8.agreement <= int8.recall_at_5
    assert int8.delta_top1 == pytest.approx(int8.top1 - source.top1)
    with np.load(texts) as arrays:
        rows = directions(arrays["embeddings"])
    with Predictor(run.bundle, "onnxruntime-fp32") as predictor:
        said = {
            Path(one.file).name: np.argmax(rows @ np.array(one.embedding))
            for one in predictor.predict([shapes_folder], 5)
        }
    labels = dict(line.split(",") for line in (Path(shapes_folder) / "labels.csv").read_text().split()[1:])
    right = np.mean([said[Path(file).name] == int(label) for file, label in labels.items()])
    assert result.row("onnxruntime-fp32").top1 == pytest.approx(right) and right > 2 / len(SHAPES)
    html = run.report().read_text()
    assert "cosine" in html and 'id="flips"' not in html and 'id="classes"' not in html


def test_it_classifies_with_text_embeddings_and_embeds_without(run, texts, shapes_folder) -> None:
    named = run.predict(shapes_folder, text_embeddings=texts, artifact="onnxruntime-fp32")
    assert named.activation == "softmax" and named[0].top[0].name in SHAPES
    bare = run.predict(shapes_folder, artifact="onnxruntime-fp32")
    assert bare.activation == "none" and len(bare[0].embedding) == 24 and not bare[0].top
    assert np.linalg.norm(bare[0].embedding) == pytest.approx(1, abs=1e-4)
    assert json.loads(json.dumps(bare.to_dict()))["images"][0]["embedding"][0] == bare[0].embedding[0]


def test_a_server_gives_either(run, texts, shapes_folder) -> None:
    pytest.importorskip("fastapi")
    from vitedge.serve.measures import Measures
    from vitedge.serve.models import Models
    from vitedge.serve.options import ServeOptions

    output = np.array(run.predict(shapes_folder, artifact="onnxruntime-fp32")[0].embedding, np.float32)
    plain = Models(run.root, ServeOptions(), Measures())
    assert np.allclose(plain.says(output, 5)["embedding"], output, atol=1e-6) and plain.outputs is None
    named = Models(run.root, ServeOptions(text_embeddings=str(texts)), Measures())
    best = named.says(output, 3)["top"]
    assert len(best) == 3 and best[0]["class"] in SHAPES and named.outputs == len(SHAPES)


def test_a_model_with_classes_takes_none(tiny_folder, texts, shapes_folder, tmp_path) -> None:
    run = vitedge.compress(tiny_folder, run=tmp_path / "run", condition=False)
    run.build("onnxruntime", precision="fp32", attention="parts", mlp_groups="apart")
    for call in (run.predict, run.bench):
        with pytest.raises(VitedgeError, match="gives embeddings"):
            call(shapes_folder, text_embeddings=texts)


def test_the_distance_of_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 5, generator=generator) for _ in range(2))
    assert torch.equal(output_distance(a, b, 2.0, "softmax"), distillation(a, b, 2.0))
    assert float(output_distance(3 * a, a, 1.0, "none")) == pytest.approx(0, abs=1e-6)
    expected = 1 - torch.nn.functional.cosine_similarity(a, b).mean()
    assert float(output_distance(a, b, 1.0, "none")) == pytest.approx(float(expected), abs=1e-6)
    several = output_distance(a, b, 1.0, "sigmoid")
    p, q = torch.distributions.Bernoulli(logits=b), torch.distributions.Bernoulli(logits=a)
    assert float(several) == pytest.approx(float(torch.distributions.kl_divergence(p, q).sum(1).mean()), rel=1e-4)
    assert float(output_distance(a[:, :1], a[:, :1], 1.0, "softmax")) == pytest.approx(0, abs=1e-6)
