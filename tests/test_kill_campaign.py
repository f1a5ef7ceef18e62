"""Killed at any change that it makes to the file system, a command leaves what the next one finishes, and nothing else.

30 points in every test run; 150 over the six commands where slow tests are run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import vitedge
from tests.kill_campaign import left

DRIVER = Path(__file__).with_name("kill_campaign.py")
COMPRESS = ("compress", "--model", "model", "--calib", "set", "--calib-size", "8", "--quantize", "dynamic")
FORM = ("--attention", "heads", "--mlp-groups", "joined")
COMMANDS = {
    "compress": (*COMPRESS, "--run", "new"),
    "build": ("build", "--run", "run", *FORM, "--precision", "int8"),
    "bench": ("bench", "--run", "run", "--data", "set", "--seconds", "0.05", "--launches", "1"),
    "report": ("report", "--run", "run"),
    "train": ("train", "--model", "model", "--data", "set", "--out", "trained", "--epochs", "1", "--head-epochs", "0"),
    "pack": ("pack", "--run", "run", "--data", "set", "-o", "out/pack.tar"),
}
# A training that was begun is gone on with, or refused: it might be another one.
AGAIN = {"train": "--resume"}
POINTS = {"compress": 40, "build": 30, "bench": 12, "report": 30, "train": 26, "pack": 12}


@pytest.fixture(scope="module")
def started(tmp_path_factory, tiny_folder: Path, shapes_folder: Path) -> Path:
    """A folder with a model, images, and a run that was built and measured."""
    folder = tmp_path_factory.mktemp("campaign") / "start"
    shutil.copytree(tiny_folder, folder / "model")
    shutil.copytree(shapes_folder, folder / "set")
    vitedge(folder, *COMPRESS, "--run", "run")
    vitedge(folder, "build", "--run", "run", *FORM)
    vitedge(folder, *COMMANDS["bench"])
    return folder


def killed(started: Path, tmp_path: Path, name: str, points: int) -> None:
    done = subprocess.run(
        [sys.executable, DRIVER, started, tmp_path / "work", str(points), AGAIN.get(name, ""), *COMMANDS[name]],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[1]), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    log = tmp_path / "log"
    assert done.returncode == 0, done.stderr + (log.read_text()[-2000:] if log.exists() else "")
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["wrong"] == [], "\n".join(found["wrong"]) + "\n" + log.read_text()[-2000:]
    assert found["points"] == points and found["changes"] > 2


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_is_made_good_by_the_next_run(started: Path, tmp_path: Path, name: str) -> None:
    killed(started, tmp_path, name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_150_points_is_made_good(started: Path, tmp_path: Path, name: str) -> None:
    killed(started, tmp_path, name, POINTS[name])


# Command -> what is there once it works.
BEGUN = {
    "compress": "new/.step.*",
    "build": "run/.step.*",
    "bench": "run/bench/work/*/logs/*",
    "train": "trained/.lock",
    "pack": "run/.pack.*",
}


@pytest.mark.parametrize("name", BEGUN)
def test_sigterm_ends_a_command_with_its_children_and_the_next_run_finishes(
    started: Path, tmp_path: Path, name: str
) -> None:
    work, scratch = tmp_path / "work", tmp_path / "tmp"
    shutil.copytree(started, work)
    shutil.rmtree(work / "run" / "bench", ignore_errors=True)
    scratch.mkdir()
    token = f"stopped-{os.getpid()}-{name}"
    command = [*COMMANDS[name], *(("--fresh",) if name == "bench" else ())]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitedge", *command],
        cwd=work,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[1]), "TMPDIR": str(scratch), "VITEDGE_CAMPAIGN": token},
    )
    while process.poll() is None and not list(work.glob(BEGUN[name])):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert err.splitlines()[-1] == "terminated; the same command continues where it stopped" and "Traceback" not in err
    assert not list(Path("/dev/shm").glob(f"vitedge-row-{process.pid}-*")) and not list(scratch.glob("*vitedge*"))
    assert not [path for path in work.rglob(".*") if path.name != ".lock" and path.name != ".unfinished"]
    # A child that was just being started ends as soon as it looks for its parent.
    deadline = time.monotonic() + 60
    while left(token) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left(token) == []
    vitedge(work, *command, *AGAIN.get(name, "").split())
