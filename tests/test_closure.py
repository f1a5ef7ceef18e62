"""A step's key covers the code that it can reach, and no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitedge.closure import ROOT, closure, code_version, library_versions

STEPS = {
    "import": ("vitedge.steps.source",),
    "prune": ("vitedge.steps.prune",),
    "distill": ("vitedge.steps.distil",),
    "condition": ("vitedge.steps.condition",),
    "qat": ("vitedge.steps.qat",),
    "model": ("vitedge.steps.model",),
    "export": ("vitedge.steps.export",),
    "quantize": ("vitedge.steps.quantize",),
    "build/onnxruntime": ("vitedge.steps.build", "vitedge.targets.onnxruntime"),
    "build/rknn": ("vitedge.steps.build", "vitedge.targets.rknn"),
}

# What each step is known to compute with, and what it has nothing to do with.
REACHED = {
    "import": ["vitedge.vit.model", "vitedge.vit.checkpoint.convert", "vitedge.data.preprocess_sources"],
    "prune": ["vitedge.prune.run", "vitedge.prune.linear", "vitedge.vit.model", "vitedge.data.preprocess"],
    "distill": ["vitedge.train.loop", "vitedge.train.losses"],
    "condition": ["vitedge.condition.rotate", "vitedge.condition.apply"],
    "qat": ["vitedge.quant.fake", "vitedge.train.blockwise", "vitedge.quant.rounding"],
    "export": ["vitedge.export.vit", "vitedge.targets.onnxruntime.runner"],
    "quantize": ["vitedge.quant.static", "vitedge.quant.qdq", "vitedge.quant.mixed"],
    "build/onnxruntime": ["vitedge.targets.onnxruntime.tune", "vitedge.quant.scheme", "vitedge.onnx_graph.editor"],
    "build/rknn": ["vitedge.targets.rknn.worker", "vitedge.targets.rewrites.mlp_groups", "vitedge.targets.rknn.search"],
}
APART = {
    "import": ["vitedge.prune.run", "vitedge.quant.static", "vitedge.report.page", "vitedge.targets.rknn.build"],
    "prune": ["vitedge.quant.static", "vitedge.train.loop", "vitedge.condition.rotate", "vitedge.cli.bench"],
    "condition": ["vitedge.prune.run", "vitedge.train.loop", "vitedge.quant.static"],
    "export": ["vitedge.prune.run", "vitedge.quant.static", "vitedge.targets.rknn.target", "vitedge.pipeline"],
    "quantize": ["vitedge.prune.run", "vitedge.train.loop", "vitedge.targets.tensorrt.build"],
    "build/onnxruntime": ["vitedge.targets.rknn.build", "vitedge.targets.tensorrt.build", "vitedge.train.loop"],
    "build/rknn": ["vitedge.targets.tensorrt.build", "vitedge.targets.openvino.graph", "vitedge.report.page"],
}


@pytest.mark.parametrize("step", STEPS)
def test_what_a_step_reaches(step: str) -> None:
    reached = closure(*STEPS[step])
    assert not [name for name in REACHED.get(step, []) if name not in reached]
    assert not [name for name in APART.get(step, []) if name in reached]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the sources, to be changed."""
    root = tmp_path_factory.mktemp("sources")
    shutil.copytree(ROOT / "vitedge", root / "vitedge", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("step", ["prune", "export", "build/rknn"])
def test_touching_a_module_changes_the_keys_of_the_steps_that_reach_it_and_no_other(step: str, copy: Path) -> None:
    before = code_version(*STEPS[step], root=copy)
    assert before == code_version(*STEPS[step])
    reached = closure(*STEPS[step], root=copy)
    for file in sorted((copy / "vitedge").rglob("*.py")):
        parts = file.relative_to(copy).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        data = file.read_bytes()
        file.write_bytes(data + b"\n# touched\n")
        changed = code_version(*STEPS[step], root=copy) != before
        file.write_bytes(data)
        assert changed == (name in reached), name
    assert code_version(*STEPS[step], root=copy) == before


def test_imports_of_all_kinds(tmp_path: Path) -> None:
    sources = {
        "__init__": "",
        "a": "import vitedge.b\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from vitedge.typed import T\n"
        "def f():\n    from vitedge.lazy import g\n    import torch\n"
        "try:\n    import numpy\nexcept ImportError: pass\n",
        "b": "from vitedge import c\n",
        "c": "",
        "lazy": "from vitedge.package import first\n",
        "typed": "",
        "package/__init__": "from vitedge.package.always import z\n_LAZY = {'first': 'vitedge.package.one',"
        " 'second': 'vitedge.package.two'}\ndef __getattr__(name): ...\n"
        "def third():\n    from vitedge.package import x\n",
        "package/one": "",
        "package/two": "",
        "package/always": "",
        "package/x": "",
    }
    for name, text in sources.items():
        file = tmp_path / "vitedge" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert sorted(closure("vitedge.a", root=tmp_path)) == [
        "vitedge",
        "vitedge.a",
        "vitedge.b",
        "vitedge.c",
        "vitedge.lazy",
        "vitedge.package",
        "vitedge.package.always",
        "vitedge.package.one",
    ]
    assert set(library_versions("vitedge.a", root=tmp_path)) == {"vitedge", "torch", "numpy"}
    with pytest.raises(ValueError, match="no module"):
        closure("vitedge.nothing", root=tmp_path)


def test_the_versions_of_the_libraries_are_named() -> None:
    import onnx
    import torch

    found = library_versions("vitedge.steps.export")
    assert found["torch"] == torch.__version__.partition("+")[0] and found["onnx"] == onnx.__version__
