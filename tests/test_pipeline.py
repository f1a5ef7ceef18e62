"""The way from a checkpoint to an artifact, through the command line as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.command import vitedge
from vitedge.bundle import Bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder, shapes_folder) -> Path:
    """A folder in which a tiny ViT was compressed and built for ONNX Runtime."""
    root = tmp_path_factory.mktemp("work")
    vitedge(root, "compress", "--model", tiny_folder, "--calib", shapes_folder)
    vitedge(root, "build")
    return root


def test_bundle_holds_what_the_design_says(folder) -> None:
    run = folder / "vitedge-run"
    for name in ("vitedge.toml", "manifest.json", "onnx/float32.onnx", "build/onnxruntime-fp32/metadata.json"):
        assert (run / name).is_file()
    assert {p.name for p in (run / "model").iterdir()} == {
        "model.safetensors",
        "arch.json",
        "preprocess.json",
        "classes.txt",
    }
    bundle = Bundle.open(run)
    for name in bundle.manifest.artifacts:
        bundle.verified(name)
    facts = bundle.facts("export")
    assert facts["check_images"] == "40 calibration images"
    assert facts["onnx/float32.onnx"]["logit_difference"] < 1e-5
    metadata = json.loads((run / "build/onnxruntime-fp32/metadata.json").read_text())
    assert metadata["check"]["accepted"] is True and metadata["check"]["agreement"] == 1.0
    assert metadata["session"]["intra_op_threads"] >= 1


def test_nothing_is_done_twice(folder, tiny_folder, shapes_folder) -> None:
    before = (folder / "vitedge-run/manifest.json").read_bytes()
    done = vitedge(folder, "compress", "--model", tiny_folder, "--calib", shapes_folder)
    assert done.stderr.count("up to date") == 5
    assert "up to date" in vitedge(folder, "build").stderr
    assert (folder / "vitedge-run/manifest.json").read_bytes() == before


def test_predict(folder, shapes_folder) -> None:
    result = json.loads(vitedge(folder, "predict", shapes_folder, "--json", "--top", 3).stdout)
    assert len(result["images"]) == 40 and result["device"] == "cpu"
    top = result["images"][0]["top"]
    assert len(top) == 3 and top[0]["probability"] >= top[1]["probability"] > 0
    text = vitedge(folder, "predict", next(iter(shapes_folder.rglob("*.png")))).stdout
    assert "%" in text


def test_inspect_and_doctor(folder, tiny_folder) -> None:
    tables = json.loads(vitedge(folder, "inspect", "--json").stdout)["tables"]
    assert tables["Layers"]["rows"][-1][0] == "total"
    assert ["Softmax", 2] in tables["Operators"]["rows"]
    assert "2 heads of 16" in vitedge(folder, "inspect", tiny_folder).stdout
    assert any(t["target"] == "onnxruntime" for t in json.loads(vitedge(folder, "doctor", "--json").stdout)["targets"])


def test_batches_agree(tmp_path, folder, tiny_folder, shapes_folder) -> None:
    """Batch 1, batch 8 and a free batch give the same logits."""
    common = ["compress", "--model", tiny_folder, "--calib", shapes_folder, "--run"]
    vitedge(tmp_path, *common, "b8", "--batch", 8)
    vitedge(tmp_path, *common, "free", "--dynamic-batch")
    one = np.load(folder / "vitedge-run/onnx/logits.npy")
    for run in ("b8", "free"):
        np.testing.assert_allclose(np.load(tmp_path / run / "onnx/logits.npy"), one, atol=1e-5)


def test_without_calibration_images(tmp_path, tiny_folder) -> None:
    done = vitedge(tmp_path, "compress", "--model", tiny_folder)
    assert "images of noise" in done.stdout
    vitedge(tmp_path, "build")


def test_drawn_images_for_a_model_of_something_else(tmp_path, tiny_folder, shapes_folder) -> None:
    for name in ("model.safetensors", "arch.json", "preprocess.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    (tmp_path / "classes.txt").write_text("\n".join(f"animal{i}" for i in range(10)))
    done = vitedge(tmp_path, "compress", "--model", tmp_path, "--calib", shapes_folder, "--run", tmp_path / "run")
    assert "warning: " in done.stderr and "will not fit photographs" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("build",), 2, "There is no run in 'vitedge-run'"),
        (("build", "--target", "abacus"), 2, "There is no target 'abacus'"),
        (("compress", "--model", "nothing.pth"), 2, "There is no model 'nothing.pth'"),
        (("compress", "--config", "none.toml"), 2, "can't be read"),
        (("compress", "--calib-size", "0"), 2, "calib_size"),
        (("predict", "x.jpg"), 2, "There is no run"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_wrong_calls(tmp_path, arguments, code, words) -> None:
    done = vitedge(tmp_path, *arguments, code=code)
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_debug_shows_the_traceback(tmp_path) -> None:
    assert "Traceback" in vitedge(tmp_path, "build", "--debug", code=2).stderr


def test_an_artifact_changed_by_hand(folder, tmp_path) -> None:
    import shutil

    shutil.copytree(folder / "vitedge-run", tmp_path / "run")
    with (tmp_path / "run/build/onnxruntime-fp32/model.onnx").open("ab") as file:
        file.write(b"x")
    done = vitedge(tmp_path, "predict", "x.png", "--run", "run", code=1)
    assert "was changed after vitedge wrote it" in done.stderr and "vitedge build" in done.stderr


def test_config_file_and_unknown_option(tmp_path, tiny_folder, shapes_folder) -> None:
    (tmp_path / "a.toml").write_text(
        f'[model]\nmodel = "{tiny_folder}"\n[calib]\ncalib = "{shapes_folder}"\ncalib_size = 9\n'
    )
    vitedge(tmp_path, "compress", "--config", "a.toml")
    assert len(np.load(tmp_path / "vitedge-run/calib/pixels.npy")) == 9
    (tmp_path / "b.toml").write_text("[calib]\ncalib_sice = 9\n")
    assert "did you mean 'calib_size'" in vitedge(tmp_path, "compress", "--config", "b.toml", code=2).stderr


def test_prune_condition_quantize(tmp_path, tiny_folder, shapes_folder) -> None:
    """Every transform of the float model and INT8 on top of it; the dense model stays the reference."""
    import onnx

    common = ("--model", tiny_folder, "--calib", shapes_folder)
    done = vitedge(
        tmp_path, "compress", *common, "--prune", 0.2, "--align", 8, "--fit-steps", 4, "--quantize", "static"
    )
    assert "Pruned: " in done.stdout and "INT8: agreement" in done.stdout
    bundle = Bundle.open(tmp_path / "vitedge-run")
    before, after = bundle.facts("prune")["macs"]
    assert abs((1 - after / before) - 0.2) < 0.02
    assert all(step["logit_difference"] < 1e-4 for step in bundle.facts("condition")["steps"])
    assert bundle.has("onnx/reference.onnx") and bundle.has("quant/scheme.json")
    operators = {node.op_type for node in onnx.load(bundle.path("onnx/int8.onnx")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    vitedge(tmp_path, "build", "--precision", "int8")
    metadata = json.loads((tmp_path / "vitedge-run/build/onnxruntime-int8/metadata.json").read_text())
    assert metadata["check"]["agreement"] >= 0.85 and metadata["rewrites"]["integer_products"] > 0
    for name in ("10-prune", "20-condition", "30-quantize"):
        found = json.loads((tmp_path / f"vitedge-run/analysis/{name}.json").read_text())
        for table in found.get("tables", [found]):
            assert table["rows"] and all(len(row) == len(table["columns"]) for row in table["rows"])

    worst_first = vitedge(tmp_path, "analyze", "--images", 8).stdout
    assert "block0.mlp.fc1" in worst_first and "activation" in worst_first

    # Asking for less removes what belonged to more.
    vitedge(tmp_path, "compress", *common, "--no-condition")
    bundle = Bundle.open(tmp_path / "vitedge-run")
    assert not bundle.has("onnx/int8.onnx") and not bundle.has("onnx/reference.onnx")
    assert not (tmp_path / "vitedge-run/analysis/10-prune.json").exists()
    assert "no int8 graph" in vitedge(tmp_path, "build", "--precision", "int8", code=2).stderr


def test_sparsity_survives_to_every_graph(tmp_path, tiny_folder, shapes_folder) -> None:
    import onnx

    from vitedge.prune.zeros import check_zeros

    asked = ("--sparsity", "2:4", "--fit-steps", 5, "--quantize", "static")
    vitedge(tmp_path, "compress", "--model", tiny_folder, "--calib", shapes_folder, *asked)
    bundle = Bundle.open(tmp_path / "vitedge-run")
    assert "prune" not in bundle.manifest.steps
    facts = bundle.facts("sparsify")
    assert facts["zeros"] == pytest.approx(0.5, abs=0.01)
    for name in ("float32", "int8"):
        assert check_zeros(onnx.load(bundle.path(f"onnx/{name}.onnx")), facts) >= 0.499
    again = vitedge(tmp_path, "compress", "--model", tiny_folder, "--calib", shapes_folder, *asked)
    assert "sparsify: up to date" in again.stderr


def test_dynamic_needs_no_images_and_for_static_some_are_drawn(tmp_path, tiny_folder) -> None:
    done = vitedge(tmp_path, "compress", "--model", tiny_folder, "--quantize", "dynamic")
    assert "drawn" not in done.stderr
    vitedge(tmp_path, "build", "--precision", "int8")
    assert "needs calibration images" in vitedge(tmp_path, "analyze", code=2).stderr
    static = ("--quantize", "static", "--prune", 0.3, "--calib-size", 16, "--recover", "ridge")
    done = vitedge(tmp_path, "compress", "--model", tiny_folder, *static)
    assert "16 drawn ones stand in" in done.stderr and "--calib DIR" in done.stderr
    vitedge(tmp_path, "build", "--precision", "int8")
    result = vitedge(tmp_path, "bench", "--seconds", 0.05, "--launches", 1, "--json", "bench.json")
    data = json.loads((tmp_path / "bench.json").read_text())["data"]
    assert data["n"] == 16 and data["path"].startswith("drawn:textures") and data["calibration"]
    assert "has no labels" in result.stderr


def test_a_bound_that_int8_can_not_keep(tmp_path, tiny_folder, shapes_folder) -> None:
    common = ("--model", tiny_folder, "--calib", shapes_folder)
    done = vitedge(tmp_path, "compress", *common, "--quantize", "static", "--max-drop", 0)
    assert "nothing could stay in INT8 within --max-drop 0" in done.stderr
    assert "exactly its logits" in done.stdout and "0% of the MACs" in done.stdout
    assert "--max-drop 0: " in done.stdout and "stay in float; loses 0.00 points of top-1" in done.stdout
    vitedge(tmp_path, "build", "--precision", "int8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--importance", "taylor"), "--prune or --sparsity"),
        (("--observer", "mse"), "--quantize dynamic, static or qat"),
        (("--epochs", "3"), "--recover distill"),
        (("--prune", "1.5"), "share of 1.5"),
    ],
)
def test_flags_that_would_do_nothing_or_harm(tmp_path, tiny_folder, flags, words) -> None:
    done = vitedge(tmp_path, "compress", "--model", tiny_folder, *flags, code=2)
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.real
def test_trained_vit_on_photographs(tmp_path, shared_data) -> None:
    """ViT-Ti/16: the accuracy that torchvision measured, through the exported graph."""
    from vitedge.data.folder import open_dataset
    from vitedge.data.loader import iter_batches
    from vitedge.steps.source import read_preprocess
    from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner

    names = ("--model", shared_data / "vit_ti_16", "--classes", shared_data / "classes.txt")
    vitedge(tmp_path, "compress", *names, "--calib", shared_data / "calib", "--calib-size", 32, "--batch", 8)
    vitedge(tmp_path, "build")
    bundle = Bundle.open(tmp_path / "vitedge-run")
    dataset = open_dataset(shared_data / "val", class_count=1000)
    runner = OnnxRuntimeRunner(bundle.verified("build/onnxruntime-fp32/model.onnx"))
    batches = iter_batches(dataset, read_preprocess(bundle), 40)
    order = np.concatenate([np.argsort(-runner.infer(p), axis=1)[:, :5] for p, _ in batches])
    hits = order == dataset.labels[:, None]
    assert hits[:, 0].mean() == pytest.approx(0.734, abs=0.002)
    assert hits.any(1).mean() == pytest.approx(0.936, abs=0.002)
