"""The worker's failures become one error each. A stand-in for the toolkit fails in the ways that the real one does."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from vitedge import targets, workers
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
    assert worker.worker.process.poll() is not None


@pytest.mark.parametrize("worker", ["raise OSError(28, 'No space left on device')"], indirect=True)
def test_a_full_disk_is_told_as_such(worker: Worker) -> None:
    error = failed(worker)
    assert "no space" in error.what
    assert "TMPDIR" in error.todo


@pytest.mark.parametrize("worker", ["return 0"], indirect=True)
def test_the_toolkits_prints_do_not_reach_the_answers_and_its_folder_goes(worker: Worker) -> None:
    assert worker.request("build_float", onnx="x.onnx", platform="rk3588", channels=3) == {}
    folder = worker.folder
    worker.close()
    assert not folder.exists()


@pytest.mark.parametrize("worker", ["return 0"], indirect=True)
def test_a_worker_whose_caller_was_killed_ends_and_cleans_up(worker: Worker) -> None:
    assert worker.request("build_float", onnx="x.onnx", platform="rk3588", channels=3) == {}
    process = worker.worker.process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
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


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


GARBAGE = [
    "null",
    "{}",
    "[]",
    "7",
    "no JSON",
    '{"ok": null}',
    '{"ok": false, "error": ""}',
    '{"ok": false}',
    "[" * 99999,
]
GARBAGE += ['{"ok": true, "x": NaN}', '{"ok": 1}', "\xff", '"\\ud800"', "{" * 50, ""]


@pytest.mark.parametrize("answer", GARBAGE, ids=range(len(GARBAGE)))
def test_an_answer_that_is_none_is_one_error(answer: str, tmp_path: Path) -> None:
    file = tmp_path / "answer"
    file.write_bytes(answer.encode("latin-1") + b"\n")
    python = script(tmp_path / "python", f"read line; cat {file}; sleep 60")
    with Worker(Toolchain(python, "2.5.0")) as worker, pytest.raises(VitedgeError, match="failed in build") as error:
        worker.request("build", limit=30)
    assert error.value.exit_code == 1 and error.value.why.strip() and error.value.todo


def test_a_flood_without_a_line_ends_at_the_time_limit(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "while :; do printf x; sleep 0.01; done")
    started = time.monotonic()
    with Worker(Toolchain(python, "2.5.0")) as worker, pytest.raises(VitedgeError, match="did not finish"):
        worker.request("build", limit=1)
    assert time.monotonic() - started < 30


def test_a_flood_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_MOST_LINE", 10**6)
    with Worker(Toolchain(script(tmp_path / "python", "exec cat /dev/zero"), "2.5.0")) as worker:
        with pytest.raises(VitedgeError, match="failed in build"):
            worker.request("build", limit=60)
        assert worker.worker.process.poll() is not None


def test_a_worker_that_reads_nothing_does_not_hold_us(tmp_path: Path) -> None:
    python = script(tmp_path / "python", "exec sleep 60")
    with Worker(Toolchain(python, "2.5.0")) as worker, pytest.raises(VitedgeError, match="did not finish"):
        worker.request("build", limit=1, names="x" * 10**6)


@pytest.mark.parametrize("kind", ["no permission", "no program", "folder"])
def test_an_interpreter_that_does_not_start_is_named(kind: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    if kind == "folder":
        python.mkdir()
    else:
        python.write_text("no program")
        python.chmod(0o644 if kind == "no permission" else 0o755)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VitedgeError, match="can't be started") as error:
        Worker(Toolchain(str(python), "2.5.0"))
    assert str(python) in error.value.what and sorted(tmp_path.iterdir()) == before
    if kind != "folder":
        with pytest.raises(VitedgeError, match="can't be started"):
            toolchain.find(str(python))


PROBES = {
    "hangs": ("sleep 600", "did not end within"),
    "floods": ("cat /dev/zero", "more than"),
    "floods slowly": ("while :; do printf x; sleep 0.01; done", "did not end within"),
    "says nothing": ("exit 0", "exit code 0"),
    "says something else": ("echo '\033[2J2.5.0'", "x1b"),
    "crashes": ("kill -SEGV $$", "SIGSEGV"),
}


@pytest.mark.parametrize("kind", PROBES)
def test_an_interpreter_that_answers_no_version(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "PROBE_S", 1.0)
    body, said = PROBES[kind]
    started = time.monotonic()
    with pytest.raises(VitedgeError) as error:
        toolchain.find(script(tmp_path / "python", body))
    assert said in error.value.why and error.value.why.isprintable() and time.monotonic() - started < 30


def environment(home: Path, name: str = "rknn-toolkit2-2.5.0", marker: bool = True) -> Toolchain:
    folder = home / name
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").touch()
    if marker:
        (folder / toolchain.MARKER).write_text("{}")
    return Toolchain(script(folder / "bin" / "python", "exit 1"), "2.5.0", str(folder))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(toolchain.PYTHON_VARIABLE, raising=False)
    return tmp_path / "home"


def test_remove_deletes_what_install_has_made_and_no_link(home: Path, tmp_path: Path) -> None:
    made = environment(home)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / toolchain.MARKER).touch()
    (home / "link").symlink_to(tmp_path / "mine")
    toolchain._remember([made, Toolchain("x", "2.5.0", str(home / "link"))])
    assert len(toolchain.remove()) == 2 and toolchain.installed() == []
    assert not Path(made.folder).exists() and (tmp_path / "mine" / toolchain.MARKER).exists()
    assert sorted(p.name for p in home.iterdir()) == ["link", "toolchains.json"]


def test_killed_while_it_removes_the_next_one_goes_on(home: Path) -> None:
    for name in ("one", "two"):
        environment(home, name)
    toolchain._remember([Toolchain("x", "2.5.0", str(home / name)) for name in ("one", "two")])
    if (child := os.fork()) == 0:
        shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        toolchain.remove()
    os.waitpid(child, 0)
    # Renamed in one go: no half of it is found under its name.
    assert not (home / "one").exists() and (home / "two" / "pyvenv.cfg").exists()
    toolchain.remove()
    assert [p.name for p in home.iterdir()] == ["toolchains.json"] and toolchain.installed() == []


def test_a_half_removed_environment_of_an_earlier_version_is_seen_and_goes(home: Path) -> None:
    made = environment(home, marker=False)
    (Path(made.folder) / "pyvenv.cfg").unlink()
    toolchain._remember([made])
    found = targets.get("rknn").diagnose()
    assert not found.can_build and "is broken" in found.reason and "toolchain install" in found.fix
    assert targets.get("rknn").probe().can_build, "the quick look can't tell"
    toolchain.remove()
    assert not Path(made.folder).exists() and toolchain.installed() == []


def test_install_makes_a_broken_one_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets as far as the interpreter that it was given, which has no venv."""
    made = environment(home)
    toolchain._remember([made])
    _free_space(monkeypatch, toolchain.SPACE)
    with pytest.raises(VitedgeError, match="no venv here"):
        toolchain.install(python=script(home / "python", "echo no venv here; exit 3"))
    assert not Path(made.folder).exists()


@pytest.mark.parametrize("text", ["[" * 10**6, "null", '{"rknn": [{"python": 7}]}', '{"rknn": {"a": 1}}', "\0"])
def test_a_broken_registry_counts_as_empty(text: str, home: Path) -> None:
    home.mkdir()
    (home / "toolchains.json").write_text(text)
    assert toolchain.installed() == []


def test_nothing_that_a_run_names_is_executed(home: Path, tmp_path: Path) -> None:
    """`metadata.json` once named the interpreter of the simulator."""
    touched = tmp_path / "touched"
    python = script(tmp_path / "python", f"touch {touched}; echo rknn-toolkit2 2.5.0")
    metadata = {"toolkit": "2.5.0", "rknn_python": python, "platform": "rk3588"}
    with pytest.raises(VitedgeError, match="not installed"):
        targets.get("rknn").open(tmp_path / "model.rknn", metadata)
    assert not touched.exists()
