"""What runs on a board imports neither torch nor onnx; `--help` imports next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

BOARD = [
    "vitedge.bundle",
    "vitedge.config",
    "vitedge.steps.build",
    "vitedge.cost.model",
    "vitedge.cost.store",
    "vitedge.data.folder",
    "vitedge.data.loader",
    "vitedge.data.shapes",
    "vitedge.targets.base",
    "vitedge.targets.onnxruntime.target",
    "vitedge.targets.onnxruntime.runner",
    "vitedge.targets.openvino.target",
    "vitedge.targets.openvino.runner",
    "vitedge.cli.build",
    "vitedge.cli.compress",
    "vitedge.cli.doctor",
    "vitedge.cli.predict",
    "vitedge.cli.inspect",
]
HEAVY = "{'torch', 'torchvision', 'onnx', 'accelerate', 'openvino', 'tensorrt', 'rknn'}"


def imported(code: str) -> str:
    script = f"import sys\n{code}\nprint(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("module", BOARD)
def test_board_modules(module: str) -> None:
    assert imported(f"import {module}") == "[]"


def test_all_targets_and_the_bench() -> None:
    code = "import vitedge.targets as t, pkgutil, importlib, vitedge.bench as b\n"
    code += "for n in t.names(): t.get(n).probe()\n"
    code += "for m in pkgutil.iter_modules(b.__path__): importlib.import_module('vitedge.bench.' + m.name)"
    assert imported(code) == "[]"


def test_help_is_light() -> None:
    code = "import runpy, io, contextlib\nsys.argv = ['vitedge', '--help']\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    code += "    runpy.run_module('vitedge', run_name='__main__')\n"
    code += "assert not {'numpy', 'pydantic', 'onnxruntime', 'PIL'} & set(sys.modules)"
    assert imported(code) == "[]"
