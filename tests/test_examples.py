"""The notebooks under examples/, executed from their first cell to their last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes.ipynb"])
def test_notebook(name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("VITEDGE_EXAMPLE_MINUTES", "0.05")
    monkeypatch.setenv("VITEDGE_EXAMPLE_FOLDER", str(tmp_path / "shapes"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(repository / "examples" / name, as_version=4)
    assert all(cell["cell_type"] != "code" or not cell["outputs"] for cell in notebook.cells), "outputs are not kept"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = str([cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"])
    assert "onnxruntime-int8" in text and "at most 0.9" in text and "agreement with the trained model" in text
    assert (tmp_path / "shapes" / "run" / "report.html").is_file()
    assert (tmp_path / "shapes" / "int8.onnx").is_file()
