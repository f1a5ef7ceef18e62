"""The worker's failures become one error each. A stand-in for the toolkit fails in the ways that the real one does."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from vitedge.errors import VitedgeError
from vitedge.targets.rknn import toolchain
from vitedge.targets.rknn.client import Worker, last_words
from vitedge.targets.rknn.toolchain import Toolchain

STANDIN = """
import os, signal, sys, time

class RKNN:
    def __init__(self, verbose=True, verbose_file=None): pass
    def config(self, **kwargs): return None
    def load_onnx(self, model): return 0
    def release(self): pass
    def build(self, do_quantization):
        os.write(1, b"\\x1b[31mE build: the convolution is too large\\x1b[0m\\n")
        BEHAVIOUR
"""


@pytest.fixture
def worker(tmp_path: Path, request: pytest.FixtureRequest):
    package = tmp_path / "packages" / "rknn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "api.py").write_text(STANDIN.replace("BEHAVIOUR", request.param))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Worker(Toolchain(str(python), "2.5.0"), log=tmp_path / "build.log") as made:
        yield made


def failed(worker: Worker, limit: float = 60) -> VitedgeError:
    with pytest.raises(VitedgeError) as error:
        worker.request("build_float", limit=limit, onnx="x.onnx", platform="rk3588", channels=3)
    assert error.value.exit_code == 1
    return error.value


@pytest.mark.parametrize("worker", ["return -1"], indirect=True)
def test_a_return_of_minus_one_is_an_error_with_the_compilers_words(worker: Worker) -> None:
    error = failed(worker)
    assert "build returned -1" in error.why
    assert "the convolution is too large" in error.why
    assert "\x1b" not in error.why
    assert "build.log" in error.todo
    assert "the convolution is too large" in worker.log.read_text()


@pytest.mark.parametrize("worker", ["raise ValueError('no such layer')"], indirect=True)
def test_an_exception_is_an_error_and_the_worker_lives_on(worker: Worker) -> None:
    assert "ValueError: no such layer" in failed(worker).why
    assert "ValueError: no such layer" in failed(worker).why


@pytest.mark.parametrize("worker", ["os.kill(os.getpid(), signal.SIGSEGV)"], indirect=True)
def test_a_crash_names_the_signal_and_the_last_words(worker: Worker) -> None:
    error = failed(worker)
    assert "SIGSEGV" in error.what
    assert "the convolution is too large" in error.why


@pytest.mark.parametrize("worker", ["time.sleep(600)"], indirect=True)
def test_a_hang_is_stopped(worker: Worker) -> None:
    error = failed(worker, limit=1.5)
    assert "did not finish" in error.what
    assert "--time-limit" in error.todo
    assert worker.process.poll() is not None


@pytest.mark.parametrize("worker", ["raise OSError(28, 'No space left on device')"], indirect=True)
def test_a_full_disk_is_told_as_such(worker: Worker) -> None:
    error = failed(worker)
    assert "no space" in error.what
    assert "TMPDIR" in error.todo


@pytest.mark.parametrize("worker", ["return 0"], indirect=True)
def test_the_toolkits_prints_do_not_reach_the_answers_and_its_folder_goes(worker: Worker) -> None:
    assert worker.request("build_float", onnx="x.onnx", platform="rk3588", channels=3)["ok"]
    folder = worker.folder
    worker.close()
    assert not folder.exists()


@pytest.mark.parametrize("worker", ["return 0"], indirect=True)
def test_a_worker_whose_caller_was_killed_ends_and_cleans_up(worker: Worker) -> None:
    assert worker.request("build_float", onnx="x.onnx", platform="rk3588", channels=3)["ok"]
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(timeout=60) == 0
    assert not worker.folder.exists()


def test_too_little_space_is_told_before_anything_starts() -> None:
    with pytest.raises(VitedgeError, match="no space"):
        Worker(Toolchain(sys.executable, "2.5.0"), space=10**18)


def test_the_workers_script_imports_nothing_of_vitedge() -> None:
    import vitedge.targets.rknn.client as client

    text = Path(client.__file__).with_name("worker.py").read_text()
    assert "import vitedge" not in text and "from vitedge" not in text


def test_last_words_prefer_errors_and_drop_what_every_build_prints() -> None:
    log = "I loading\nE RKNN: [1] Unkown op target: 0\nE RKNN: [2] failed to bind\n-----\nD done\n"
    assert last_words(log) == "E RKNN: [2] failed to bind"
    assert last_words("I one\nI two\n") == "I one | I two"
    assert last_words("") == ""


def test_without_a_toolchain_the_error_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path))
    monkeypatch.delenv(toolchain.PYTHON_VARIABLE, raising=False)
    with pytest.raises(VitedgeError) as error:
        toolchain.find()
    assert "vitedge toolchain install rknn" in error.value.todo


def test_a_python_without_the_toolkit_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="has no rknn-toolkit2"):
        toolchain.find(sys.executable)
    with pytest.raises(VitedgeError, match="does not exist"):
        toolchain.find(str(tmp_path / "nowhere"))


def test_a_remembered_environment_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path))
    monkeypatch.delenv(toolchain.PYTHON_VARIABLE, raising=False)
    toolchain._remember([Toolchain(str(tmp_path / "env" / "bin" / "python"), "2.5.0", str(tmp_path / "env"))])
    with pytest.raises(VitedgeError, match="is gone"):
        toolchain.find()


def test_remove_deletes_environments_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path / "home"))
    folders = [tmp_path / "env", tmp_path / "documents"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "pyvenv.cfg").touch()
    toolchain._remember([Toolchain(str(f / "bin" / "python"), "2.5.0", str(f)) for f in folders])
    assert len(toolchain.remove()) == 2
    assert not folders[0].exists() and folders[1].exists()
    assert toolchain.installed() == []


def _free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """What the disk has is the machine's matter, not the tests'."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))


def test_install_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path / "home"))
    _free_space(monkeypatch, toolchain.SPACE)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no venv here >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(VitedgeError, match="no venv here"):
        toolchain.install(into=tmp_path / "env", python=str(python))
    assert not (tmp_path / "env").exists() and toolchain.installed() == []


def test_install_without_space_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path / "home"))
    _free_space(monkeypatch, toolchain.SPACE - 1)
    with pytest.raises(VitedgeError, match="no space for the RKNN toolchain") as error:
        toolchain.install(into=tmp_path / "env", python=sys.executable)
    assert "--into" in error.value.todo
    assert not (tmp_path / "env").exists() and toolchain.installed() == []


def test_install_does_not_take_a_folder_that_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(VitedgeError, match="not empty"):
        toolchain.install(into=tmp_path / "mine", python=sys.executable)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
