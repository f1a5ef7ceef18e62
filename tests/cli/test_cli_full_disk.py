"""A disk that is full: every command ends in one message, and leaves no temporary file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command import vitedge

QUICK = ("--seconds", 0.05, "--launches", 1, "--limit", 4)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a small disk of that many KiB."""
    mounted: list[Path] = []

    def make(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("a tmpfs can't be mounted by this user")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, shapes_folder: Path) -> Path:
    """A run folder with an artifact and a bench result."""
    folder = tmp_path_factory.mktemp("made")
    vitedge(folder, "compress", "--model", tiny_folder, "--calib", shapes_folder, "--quantize", "static")
    vitedge(folder, "build")
    vitedge(folder, "bench", "--data", shapes_folder, *QUICK)
    return folder / "vitedge-run"


def size_kib(folder: Path) -> int:
    """What the files of a folder take on a tmpfs: whole pages."""
    return sum(4 * -(-f.stat().st_size // 4096) for f in folder.rglob("*") if f.is_file())


def one_message(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1 and "space" in done.stderr, done.stderr
    left = [f for f in folder.rglob("*") if ".tmp" in f.name or f.name.startswith(".vitedge-")]
    assert not left, left


@pytest.mark.parametrize("kib", [48, 200, 400])
def test_compress(disk, tiny_folder: Path, shapes_folder: Path, kib: int) -> None:
    folder = disk(kib)
    done = vitedge(folder, "compress", "--model", tiny_folder, "--calib", shapes_folder, code=1)
    one_message(done, folder)


@pytest.mark.parametrize("command", ["bench", "report", "pack", "build"])
def test_on_a_run_whose_disk_is_full(disk, made: Path, shapes_folder: Path, command: str) -> None:
    folder = disk(size_kib(made) + 64)
    shutil.copytree(made, folder / "vitedge-run", ignore=shutil.ignore_patterns(".lock", "work"))
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes((free.f_bavail - 1) * free.f_bsize))
    extra: tuple[object, ...] = {
        "bench": ("--data", shapes_folder, *QUICK),
        "build": ("--precision", "int8"),
    }.get(command, ())
    one_message(vitedge(folder, command, *extra, code=1), folder)


@pytest.mark.parametrize("kib", [48, 160])
def test_train(disk, tiny_folder: Path, shapes_folder: Path, kib: int) -> None:
    folder = disk(kib)
    flags = ("--epochs", 1, "--head-epochs", 0, "--out", folder / "trained")
    one_message(vitedge(folder, "train", "--model", tiny_folder, "--data", shapes_folder, *flags, code=1), folder)
