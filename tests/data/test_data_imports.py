from __future__ import annotations

import subprocess
import sys


def test_the_room_imports_neither_torch_nor_onnx(repository) -> None:
    modules = [f"vitedge.data.{path.stem}" for path in (repository / "vitedge" / "data").glob("*.py")]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "PIL" in loaded and not loaded & {"torch", "torchvision", "onnx", "onnxruntime", "timm", "transformers"}
