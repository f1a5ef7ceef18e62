"""Every end of a command that is not a good one: one message, an exit status, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitedge.errors import VitedgeError

REPOSITORY = Path(__file__).resolve().parents[2]


def started(code: str, folder: Path, **options) -> subprocess.Popen[str]:
    """A process in which `vitedge compress` is this code."""
    # A job in the background starts with Ctrl-C ignored; the test must not depend on how it was started.
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "import sys\nfrom vitedge import cli\nfrom vitedge.cli import failures\n"
    script += f"sys.argv = ['vitedge', 'compress', *{options.pop('arguments', [])!r}]\n"
    body = textwrap.indent(textwrap.dedent(code), "    ")
    script += f"def app(args, **options):\n{body}\ncli.app = app\ncli.main()\n"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        text=True,
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder), **options},
    )


def ended(code: str, folder: Path, status: int, **options) -> str:
    process = started(code, folder, **options)
    _, err = process.communicate()
    assert process.returncode == status, err
    return err


def test_a_fault_of_ours_is_a_message_and_a_report_file(tmp_path: Path) -> None:
    err = ended("raise TypeError('\\x1b[31mNoneType [/red] is not\\nsubscriptable')", tmp_path, 70)
    assert "vitedge failed where it should not" in err and "Traceback" not in err and "\x1b" not in err
    assert "TypeError" in err and "[/red]" in err
    (report,) = tmp_path.glob("vitedge-*.txt")
    assert str(report) in err.replace("\n", "")
    text = report.read_text()
    assert "Traceback" in text and "TypeError" in text and "vitedge 0" in text and "'compress'" in text
    assert "Traceback" in ended("raise TypeError", tmp_path, 70, arguments=["--debug"])


FAILURES = {
    "full disk": ("raise OSError(28, 'No space left on device', '/x/a')", "The disk is full"),
    "full disk, says torch": ("raise RuntimeError('PytorchStreamWriter failed writing file')", "disk is full"),
    "read-only": ("raise OSError(30, 'Read-only file system', '/x/a')", "can't be written to"),
    "folder removed": ("open('gone/a.txt', 'w')", "is gone"),
    "folder removed while it is read": ("open('gone.txt')", "'gone.txt' failed"),
    "any other refusal of the system": ("raise ConnectionResetError(104, 'reset by peer')", "reset by peer"),
    "memory": ("raise MemoryError('Unable to allocate 5 TiB')", "not enough memory"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_the_system_refuses_is_one_message(kind: str, tmp_path: Path) -> None:
    code, said = FAILURES[kind]
    err = ended(code, tmp_path, 1)
    assert said in err and "Traceback" not in err and not list(tmp_path.glob("vitedge-*.txt"))


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    err = ended("raise ModuleNotFoundError('No module', name='onnx.helper')", tmp_path, 2)
    assert "'onnx'" in err and f"pip install '{REPOSITORY}[compress]'" in err


def test_names_that_are_no_text_are_printed_escaped(tmp_path: Path) -> None:
    code = """
    from vitedge.cli.console import out, ConsoleReporter
    out.print('a\\udcffb \\x1b]0;title\\x07', markup=False)
    ConsoleReporter().warn('[/red] \\u202e')
    """
    process = started(code, tmp_path, PYTHONIOENCODING="ascii")
    shown, err = process.communicate()
    assert process.returncode == 0, err
    assert shown == "a\\udcffb \\x1b]0;title\\x07\n" and "[/red] \\u202e" in err


STOPS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]


@pytest.mark.parametrize(("number", "status", "word"), STOPS)
def test_stopped_it_cleans_up_and_says_so_in_one_line(number: int, status: int, word: str, tmp_path: Path) -> None:
    code = """
    import subprocess, time
    from pathlib import Path
    from vitedge.files import atomic_path
    with atomic_path(Path('a.txt')) as temporary:
        temporary.write_text('half')
        with subprocess.Popen(['sleep', '60']) as child:
            Path('ready').write_text(str(child.pid))
            try:
                time.sleep(60)
            finally:
                child.kill()
    """
    process = started(code, tmp_path)
    while process.poll() is None and not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status and err.count("\n") == 1 and word in err and "continues" in err
    assert [p.name for p in tmp_path.iterdir()] == ["ready"]


def test_stopped_within_a_real_command(tmp_path: Path) -> None:
    """Through typer, which has its own way with Ctrl-C."""
    script = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "import sys, time\nfrom pathlib import Path\nfrom vitedge import cli\n"
    script += "import vitedge.doctor as doctor\n"
    script += "def probe(*a): Path('ready').touch(); time.sleep(60)\n"
    script += "doctor.targets.get = probe\nsys.argv = ['vitedge', 'doctor']\ncli.main()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    while process.poll() is None and not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err) == (143, "terminated; the same command continues where it stopped\n")


def test_a_reader_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    err = ended("print('x' * 100000, flush=True)", tmp_path, 141, stdout=write)
    os.close(write)
    assert err == ""


def test_an_error_holds_nothing_that_a_terminal_acts_on() -> None:
    error = VitedgeError("'a\x1b[2J\u202e' is\nwrong", "\x00", "ä\ttry")
    assert (error.what, error.why, error.todo) == ("'a\\x1b[2J\\u202e' is\nwrong", "\\x00", "ä\ttry")
    assert str(error) == "'a\\x1b[2J\\u202e' is\nwrong \\x00 ä\ttry"
