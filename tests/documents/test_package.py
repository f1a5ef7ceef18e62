"""The wheel and the source distribution: built, checked as the package index checks them, and whole."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vitedge


@pytest.mark.slow
def test_distributions_build_and_pass_twine(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("twine")
    tree = tmp_path / "tree"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = repository / name
        if source.is_file() and not name.startswith(("tests/", "calib/shapes/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    files = sorted((tmp_path / "dist").iterdir())
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout + checked.stderr
    wheel = next(file for file in files if file.suffix == ".whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"vitedge-{vitedge.__version__}-")
    for needed in ("report/templates/report.html", "serve/static/page.js", "bench/bench.schema.json", "py.typed"):
        assert f"vitedge/{needed}" in names
    assert any(name.endswith("/LICENSE") for name in names)
    source = next(file for file in files if file.suffix == ".gz")
    with tarfile.open(source) as archive:
        assert any(name.endswith("/README.md") for name in archive.getnames())


def test_one_version_everywhere(repository: Path) -> None:
    version = vitedge.__version__
    assert f"\nversion: {version}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")
    changes = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changes.index(f"## [{version}] - ") == changes.index("## [")
