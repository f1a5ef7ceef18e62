"""The notebooks under examples/, executed from their first cell to their last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Notebook -> what its outputs have to say, and the files that it leaves.
NOTEBOOKS = {
    "shapes.ipynb": (
        ("onnxruntime-int8", "at most 0.9", "agreement with the trained model"),
        ("run/report.html", "int8.onnx"),
    ),
    "own_data.ipynb": (
        ("onnxruntime-int8", "3 classes", "top-1"),
        ("mine-vit/classes.txt", "run/build/onnxruntime-int8"),
    ),
    "embeddings.ipynb": (("onnxruntime-int8", "cosine"), ("run/build/onnxruntime-int8",)),
}


def test_all_notebooks_are_executed(repository: Path) -> None:
    assert {path.name for path in (repository / "examples").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("VITEDGE_EXAMPLE_MINUTES", "0.05")
    monkeypatch.setenv("VITEDGE_EXAMPLE_FOLDER", str(tmp_path / "example"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(repository / "examples" / name, as_version=4)
    assert all(cell["cell_type"] != "code" or not cell["outputs"] for cell in notebook.cells), "outputs are not kept"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = str([cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"])
    words, files = NOTEBOOKS[name]
    assert all(word in text for word in words), text[-3000:]
    assert all((tmp_path / "example" / file).exists() for file in files)
