"""The Python API: the same options and the same files as the command line."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitedge
from tests.command import vitedge as command_line
from vitedge.config import COMMANDS, RunConfig, keywords_of, sections_of
from vitedge.options import fields_of

QUICK = {"prune": 0.2, "align": 8, "fit_steps": 4, "quantize": "static"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, shapes_folder) -> vitedge.Run:
    """The whole way in Python: compressed, built, measured."""
    root = tmp_path_factory.mktemp("api") / "vitedge-run"
    made = vitedge.compress(tiny_folder, calib=shapes_folder, run=root, **QUICK)
    made.build("onnxruntime", precision="int8")
    return made


def test_importing_loads_no_torch_and_knows_all_names() -> None:
    code = "import sys, vitedge; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); "
    code += "import vitedge.prune, vitedge.condition, vitedge.export, vitedge.api; assert 'torch' not in sys.modules; "
    code += "assert all(callable(getattr(vitedge, n)) for n in vitedge.__all__); "
    code += "import vitedge.export.vit; assert callable(vitedge.export) and callable(vitedge.prune)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(vitedge.__all__) <= set(dir(vitedge))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        vitedge.compres  # noqa: B018


FUNCTIONS = {
    "compress": vitedge.compress,
    "build": vitedge.Run.build,
    "bench": vitedge.Run.bench,
    "pack": vitedge.Run.pack,
    "report": vitedge.Run.report,
    "predict": vitedge.Run.predict,
    "analyze": vitedge.Run.analyze,
    "sensitivity": vitedge.Run.sensitivity,
    "inspect": vitedge.inspect,
    "train": vitedge.fine_tune,
    "load": vitedge.load,
    "prune": vitedge.prune,
    "condition": vitedge.condition,
    "quantize": vitedge.quantize,
    "distill": vitedge.distill,
    "export": vitedge.export,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_keyword_is_an_option_with_its_default_and_help(name: str) -> None:
    shown = inspect.signature(FUNCTIONS[name]).parameters
    for keyword, owners in keywords_of(name).items():
        field = owners[0][1]
        assert keyword in shown, keyword
        if shown[keyword].kind is inspect.Parameter.KEYWORD_ONLY and shown[keyword].default is not None:
            assert shown[keyword].default == field.default
        assert field.description, f"{name}: {keyword} has no help"
        if f" {keyword} = " in (FUNCTIONS[name].__doc__ or ""):
            assert field.description in (FUNCTIONS[name].__doc__ or "")


def test_every_section_of_a_command_is_one_of_the_configuration() -> None:
    for name in (*COMMANDS, "build"):
        for section, kind in sections_of(name).items():
            if name != "build":
                held = RunConfig.model_fields[section].annotation
                assert inspect.isclass(held) and issubclass(held, kind)
            assert all(field.description for field in fields_of(kind))


def test_the_same_files_as_the_command_line(run, tmp_path, tiny_folder, shapes_folder) -> None:
    flags = [word for k, v in QUICK.items() for word in (f"--{k.replace('_', '-')}", v)]
    command_line(tmp_path, "compress", "--model", tiny_folder, "--calib", shapes_folder, *flags)
    manifest = json.loads((tmp_path / "vitedge-run/manifest.json").read_text())
    ours = run.bundle.manifest
    compressed = {n: a.sha256 for n, a in ours.artifacts.items() if not n.startswith(("build/", "analysis/8"))}
    assert compressed == {name: a["sha256"] for name, a in manifest["artifacts"].items()}
    assert (tmp_path / "vitedge-run/vitedge.toml").read_text() == (run.root / "vitedge.toml").read_text()


def test_a_run_opened_again(run) -> None:
    again = vitedge.open(run.root)
    (built,) = again.artifacts
    assert (built.name, built.precision, built.accepted) == ("onnxruntime-int8", "int8", True)
    assert built.path.is_file() and built.agreement is not None and built.agreement >= 0.85
    assert "onnxruntime-int8" in repr(again) and again.config.prune.prune == 0.2
    with pytest.raises(vitedge.VitedgeError, match="no run"):
        vitedge.open(run.root / "none")


def test_bench_report_and_pack(run, shapes_folder, tmp_path) -> None:
    found = run.bench(shapes_folder, seconds=0.05, launches=1, gate="top1-drop=100")
    assert [(row.role, row.status) for row in found.rows] == [("source", "ok"), ("artifact", "ok")]
    assert found.broken_gates() == []
    assert len(found.broken_gates("p50-ms=0.000001")) == 1
    assert found.to_dict()["data"]["n"] == 40
    assert "agreement" in found.to_dataframe().columns
    assert run.report(tmp_path / "r.html").is_file() and (tmp_path / "r.md").is_file()
    packed = run.pack(tmp_path / "p.tar", data=shapes_folder, limit=4)
    assert packed.images == 4 and packed.artifacts == ["onnxruntime-int8"]
    assert vitedge.bench_pack(tmp_path / "p.tar", seconds=0.05, launches=1).rows[1].status == "ok"


def test_predict(run, shapes_folder) -> None:
    files = sorted(shapes_folder.rglob("*.png"))[:3]
    found = run.predict(*files, top=2)
    assert [one.file for one in found] == [str(file) for file in files] and len(found) == 3
    assert all(len(one.top) == 2 and one.top[0].probability >= one.top[1].probability for one in found)
    assert found[0].to_dict()["top"][0]["class"] == found[0].top[0].name and found.device == "cpu"


def test_what_was_analysed_is_in_the_run_and_goes_with_its_model(run, tmp_path, tiny_folder, shapes_folder) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copy = vitedge.open(tmp_path / "run")
    found = copy.analyze(images=4, top=3)
    assert len(found.errors) > 3 == len(found.table.rows) and found.errors == copy.analyze(images=4).errors
    assert copy.bundle.has("analysis/50-layer-error.json")
    assert copy.inspect().tables["Layers"].rows[-1][0] == "total"
    vitedge.compress(tiny_folder, calib=shapes_folder, run=copy.root, **QUICK | {"prune": 0.3})
    assert not copy.bundle.has("analysis/50-layer-error.json")
    image = next(shapes_folder.rglob("*.png"))
    with pytest.raises(vitedge.VitedgeError, match="is another one now"):
        copy.predict(image)
    with pytest.raises(vitedge.VitedgeError, match="earlier state"):
        copy.predict(image, artifact="onnxruntime-int8")
    copy.build(precision="int8")
    assert copy.predict(image)[0].top


def test_in_memory_as_in_a_run(run, tiny_folder, shapes_folder, tmp_path) -> None:
    dense = vitedge.load(tiny_folder)
    pixels = vitedge.images(shapes_folder, dense)
    before = dense.logits(pixels)
    small = vitedge.prune(dense, pixels, prune=0.2, align=8, fit_steps=4)
    quantized = vitedge.quantize(vitedge.condition(small, pixels), pixels)
    ours, theirs = quantized.logits(pixels), run.model().logits(pixels)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(dense.logits(pixels), before)
    path = vitedge.export(quantized, tmp_path / "int8.onnx")
    assert path.read_bytes() == run.bundle.verified("onnx/int8.onnx").read_bytes()
    assert "GMACs" in repr(quantized) and run.model("source").scheme is None
    again = vitedge.load(small.save(tmp_path / "small"))
    np.testing.assert_array_equal(again.logits(pixels), small.logits(pixels))


def test_training_in_memory(tiny_folder, shapes_folder) -> None:
    dense = vitedge.load(str(tiny_folder))
    pixels = vitedge.images(shapes_folder, dense, calib_size=36)
    assert pixels.shape == (36, 32, 32, 3)
    small = vitedge.prune(dense, pixels, prune=0.2, align=8, recover="ridge")
    taught = vitedge.distill(small, pixels, epochs=1, holdout=8, train_precision="fp32")
    assert taught.report.images == 28 and taught.module.config == small.module.config
    tuned = vitedge.fine_tune(dense, shapes_folder, epochs=0.5, head_epochs=0, batch=8)
    assert tuned.report["part"] == "validation" and tuned.classes == dense.classes
    trained = vitedge.quantize(dense, pixels, "qat", epochs=0.5, block_steps=1, holdout=8)
    assert trained.mode == "qat" and trained.scheme is not None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: vitedge.prune(model, np.zeros((2, 32, 32, 3), np.uint8)), "Nothing is to be pruned"),
        (lambda model: vitedge.load(model, hads=2), "Did you mean 'heads'"),
        (lambda model: vitedge.load(model, heads=0), "--heads"),
        (lambda model: vitedge.load("no/such/model"), "no model"),
        (lambda model: vitedge.compress(model, importance="taylor"), "--prune or --sparsity"),
        (lambda model: vitedge.compress(model, calib_size=float("inf")), "calib_size"),
        (lambda model: vitedge.fine_tune(model), "nothing to train on"),
    ],
)
def test_wrong_calls_are_one_error(call, words, tiny_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = vitedge.load(tiny_folder) if "prune(" in inspect.getsource(call) and words.startswith("Nothing") else None
    with pytest.raises(vitedge.VitedgeError) as caught:
        call(model or str(tiny_folder))
    assert words in str(caught.value)
    assert not list(Path(tmp_path).iterdir())
