"""README and documentation: their figures are those of benchmarks/results, and their code blocks run as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

QUICK = Path(__file__).parent / "quick"
PAGES = ("README.md", "README.zh.md", "docs/index.md")
BLOCK = re.compile(r"(?:<!-- (?P<mark>(?:not )?run[^>]*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)


class Block(NamedTuple):
    """A code block of a page, and what the comment above it says of running it."""

    mark: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(m["mark"] or "", m["language"], m["code"]) for m in found if m["language"] in ("bash", "python")]


def test_readme_is_short(repository: Path) -> None:
    for page in ("README.md", "README.zh.md"):
        assert len((repository / page).read_text(encoding="utf-8").splitlines()) <= 150, page


def test_figures_are_those_of_the_results(repository: Path) -> None:
    script = repository / "benchmarks" / "figures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_changed_figure_is_found(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import figures

    readme = (repository / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| **vitedge, ONNX Runtime** | INT8"))
    better = row.replace(" | INT8 | 0.", " | INT8 | 0.1")
    assert better != row and figures.rewrite(readme.replace(row, better)) == readme


@pytest.mark.parametrize("page", PAGES)
def test_each_block_says_whether_it_runs(repository: Path, page: str) -> None:
    for block in blocks(repository / page):
        assert block.mark == "run" or block.mark.startswith(("run: demo", "not run: ")), block


@pytest.fixture(scope="module")
def place(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with a model, images, and the commands of the environment that the tests run in."""
    import torch

    from vitedge.data.preprocess import Preprocess
    from vitedge.data.shapes import SHAPES, write_shapes
    from vitedge.vit.checkpoint import save_model
    from vitedge.vit.config import uniform
    from vitedge.vit.model import VisionTransformer, init_weights

    folder = tmp_path_factory.mktemp("newcomer")
    config = uniform(image_size=32, patch_size=8, width=64, depth=2, heads=2, hidden=128, classes=len(SHAPES))
    model = init_weights(VisionTransformer(config), seed=1).eval()
    with torch.no_grad():
        model.head.bias[0] += 10  # random weights are near ties, which INT8 would turn over
    save_model(folder / "my-vit", model)
    Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3).save(folder / "my-vit" / "preprocess.json")
    (folder / "my-vit" / "classes.txt").write_text("\n".join(SHAPES) + "\n")
    write_shapes(folder / "photographs", 32, size=32, split="calib")
    write_shapes(folder / "labelled", 40, size=32, split="test")
    # `make demo` without installing: the environment is there already, with this interpreter.
    for name in ("setup.cfg", "pyproject.toml", "Makefile"):
        (folder / name).write_bytes((repository / name).read_bytes())
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "vitedge").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vitedge "$@"\n')
    (binaries / "vitedge").chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    return folder


def run(place: Path, repository: Path, command: list[str]) -> str:
    path = os.pathsep.join([str(place / ".venv" / "bin"), os.environ["PATH"]])
    modules = os.pathsep.join([str(QUICK), str(repository)])
    env = {**os.environ, "PATH": path, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_blocks_run_in_a_fresh_folder(place: Path, repository: Path) -> None:
    """Each once, in the order of the pages, in one folder; blocks that several pages share run once."""
    done: set[str] = set()
    for page in PAGES:
        for block in blocks(repository / page):
            if block.mark != "run" or block.code in done:
                continue
            done.add(block.code)
            command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
            run(place, repository, [*command, block.code])
    assert (place / "vitedge-run" / "report.html").is_file()
    assert (place / "my-run" / "build" / "onnxruntime-int8").is_dir()


@pytest.mark.slow
def test_the_demo_runs(place: Path, repository: Path) -> None:
    commands = {block.code for page in PAGES for block in blocks(repository / page) if block.mark == "run: demo"}
    assert all(command.split("#")[0].strip() == "make demo" for command in commands) and commands
    out = run(place, repository, ["make", "demo"])
    assert "onnxruntime-int8" in out and "the model as it was trained" in out
    table = out[out.index("Accuracy") :]
    assert table.index("source") < table.index("onnxruntime-fp32") < table.index("onnxruntime-int8")
    assert (place / "demo-run" / "vitedge-run" / "report.html").is_file()
