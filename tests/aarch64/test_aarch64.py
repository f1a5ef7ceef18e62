"""vitedge's core on an emulated aarch64 machine: the arithmetic of Arm's kernels, no time. See make_root.sh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import vitedge

pytestmark = [pytest.mark.emulated, pytest.mark.slow]
HERE = Path(__file__).parent
# Largest difference of a probability between the machines: float sums differ in their last bits, and with INT8 one
# of these moves a value over a rounding step now and then.
TOLERANCE = {"fp32": 1e-4, "int8": 0.03}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The emulated machine's root folder, with vitedge's core installed."""
    missing = [tool for tool in ("qemu-aarch64-static", "debootstrap") if shutil.which(tool) is None]
    if os.geteuid() or missing:
        pytest.skip("needs root, and: apt-get install qemu-user-static debootstrap")
    base = Path(os.environ.get("VITEDGE_TEST_CACHE") or Path.home() / ".cache" / "vitedge-tests") / "aarch64"
    done = subprocess.run(["bash", HERE / "make_root.sh", base, HERE.parents[1]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("proc", "dev"):
        (base / "root" / name).mkdir(exist_ok=True)
    subprocess.run(["mount", "--rbind", "/dev", base / "root/dev"], check=True)
    subprocess.run(["mount", "--make-rslave", base / "root/dev"], check=True)
    try:
        yield base / "root"
    finally:
        subprocess.run(["umount", "-R", base / "root/dev"], check=False)


@pytest.fixture
def with_proc(root: Path) -> Iterator[None]:
    """The kernel's /proc, which measuring needs; without it the machine is an RK3588 by its device tree."""
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", root / "proc"], check=True)


def inside(root: Path, *command: object, code: int = 0) -> str:
    """Runs a command on the emulated machine; its stdout."""
    environment = ["PATH=/venv/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", "HOME=/trial", "COLUMNS=160"]
    words = ["chroot", root, "/usr/bin/env", "-i", "-C", "/trial", *environment, *command]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def run(root: Path, tiny_folder: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder made here, with an FP32 and an INT8 artifact, copied onto the emulated machine with its images."""
    made = tmp_path_factory.mktemp("aarch64") / "run"
    source = ("--model", tiny_folder, "--calib", shapes_folder)
    vitedge(made.parent, "compress", "--run", made, *source, "--quantize", "static")
    for precision in ("fp32", "int8"):
        vitedge(made.parent, "build", "--run", made, "--precision", precision)
    shutil.rmtree(root / "trial", ignore_errors=True)
    (root / "trial").mkdir()
    shutil.copytree(made, root / "trial/run")
    shutil.copytree(shapes_folder, root / "trial/images")
    return made


def table(answer: str) -> np.ndarray:
    """The probabilities [images, classes] that `predict --json` prints."""
    images = sorted(json.loads(answer)["images"], key=lambda image: Path(image["file"]).name)
    rows = np.zeros((len(images), 1 + max(t["index"] for image in images for t in image["top"])))
    for row, image in zip(rows, images, strict=True):
        for t in image["top"]:
            row[t["index"]] = t["probability"]
    return rows


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_same_answers_as_on_this_machine(root: Path, run: Path, shapes_folder: Path, with_proc, precision) -> None:
    common = ("predict", "--artifact", f"onnxruntime-{precision}", "--json", "--top", 100)
    there = table(inside(root, "vitedge", *common, "--run", "/trial/run", "/trial/images"))
    here = table(vitedge(run.parent, *common, "--run", run, shapes_folder).stdout)
    assert len(here) == 40 and there.shape == here.shape
    assert (there.argmax(1) == here.argmax(1)).all()
    assert np.abs(there - here).max() <= TOLERANCE[precision]


def test_bench_and_doctor(root: Path, run: Path, with_proc) -> None:
    data = ("--run", "/trial/run", "--data", "/trial/images", "--limit", 20, "--json", "/trial/bench.json")
    inside(root, "vitedge", "bench", *data, "--seconds", 0.05, "--launches", 1)
    result = json.loads((root / "trial/bench.json").read_text())
    assert result["host"]["machine"] == "aarch64"
    assert [row["status"] for row in result["rows"] if row["artifact"].startswith("onnxruntime")] == ["ok", "ok"]
    text = inside(root, "vitedge", "doctor")
    assert "Linux aarch64" in text and "onnxruntime" in text
    assert "torch " not in inside(root, "/venv/bin/python", "-m", "pip", "--version", code=1)


BOARD = """
import sys
from pathlib import Path
from vitedge.errors import VitedgeError
from vitedge.targets.rknn import board

assert board.platform_here() == "rk3588", board.platform_here()
board.device_trouble = lambda: None  # there is no NPU to open
print(board.probe("rknn", "rk3588").reason)
board.library_trouble = lambda: None  # on to the vendor's own check
try:
    board.BoardRunner(Path("/trial/x.rknn"), {"platform": "rk3588", "toolkit": "2.5.0"}, "rk3588")
except VitedgeError as error:
    print(error.what)
"""


def test_the_npu_runtime_is_reached_up_to_its_missing_library(root: Path, run: Path) -> None:
    """rknn-toolkit-lite2 imports, takes the chip from the device tree, and says that librknnrt.so is not there."""
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "board-compatible", tree / "compatible")
    (root / "trial/x.rknn").write_bytes(b"RKNN" + bytes(2000))
    (root / "trial/board.py").write_text(BOARD)
    done = subprocess.run(
        ["chroot", root, "/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "/venv/bin/python", "/trial/board.py"],
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "librknnrt.so is missing" in done.stdout and "The NPU's runtime did not start." in done.stdout
    assert "Can not find dynamic library on RK3588" in text  # the vendor's words
