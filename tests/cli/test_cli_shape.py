"""What every command has: examples, --json, help without noise, one kind of error."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.command import vitedge
from vitedge import __version__
from vitedge.cli import COMMANDS, EXAMPLES
from vitedge.cli import console as consoles


def call(monkeypatch, capsys, *arguments: object, status: int = 0) -> tuple[str, str]:
    """The command line in this process: stdout and stderr."""
    from vitedge.cli import main

    monkeypatch.setattr("sys.argv", ["vitedge", *map(str, arguments)])
    monkeypatch.setattr(consoles, "_printed", [])
    with pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    assert (ended.value.code or 0) == status, found.err
    return found.out, found.err


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(monkeypatch, capsys, flag) -> None:
    assert call(monkeypatch, capsys, flag)[0].strip() == f"vitedge {__version__}"


@pytest.mark.parametrize("words", [[], ["toolchain"]])
def test_no_words_are_answered_by_the_help_alone(monkeypatch, capsys, words) -> None:
    out, err = call(monkeypatch, capsys, *words)
    assert "install" in out.lower() and err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(monkeypatch, capsys, name) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = call(monkeypatch, capsys, name, "--help")[0]
    assert EXAMPLES[name] and EXAMPLES[name][0].split(" --")[0] in text
    assert ("<bool>" not in text and "--json" in text) or name == "toolchain"
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", ["install", "list", "remove"])
def test_help_of_toolchain(monkeypatch, capsys, name) -> None:
    text = call(monkeypatch, capsys, "toolchain", name, "--help")[0]
    assert "--json" in text and "<bool>" not in text


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_call_that_is_understood(monkeypatch, capsys, line) -> None:
    call(monkeypatch, capsys, *shlex.split(line)[1:], "--help")


def test_expert_options_stand_behind_help_all(monkeypatch, capsys) -> None:
    short = call(monkeypatch, capsys, "compress", "--help")[0]
    long = call(monkeypatch, capsys, "compress", "--help-all")[0]
    assert "--group-gain" not in short and "--help-all" in short
    assert "--group-gain" in long and "--train-batch" in long and "--min-heads" in long


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("comprss",), "Did you mean 'compress'?"),
        (("compress", "--prunee", "0.3"), "--prune"),
        (("compress", "--calib-size", "many"), "--calib-size"),
        (("build", "--target", "rkn"), "There is no target 'rkn'"),
    ],
)
def test_a_wrong_call_is_one_error_as_text_and_as_json(monkeypatch, capsys, tmp_path, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in call(monkeypatch, capsys, *arguments, status=2)[1]
    out, err = call(monkeypatch, capsys, *arguments, "--json", status=2)
    told = json.loads(out)["error"]
    assert words in f"{told['what']} {told['why']}" and told["exit_code"] == 2 and told["try"] in err


HUGE = "1" + 30 * "0"
BOUNDS = {
    "bench": [
        *("--batch 100000", "--seconds inf", "--seconds nan", "--contexts 100000", "--limit 0", "--threads 0"),
        *("--cores 0-99999999999", "--cores 3-1", "--cores a", "--sustained-seconds 1e12"),
    ],
    "compress": [
        *("--batch 100000", "--max-drop nan --quantize static", f"--seed {HUGE}", "--seed -1", "--image-size 0"),
        *("--image-size 100000", "--heads 0", "--calib-size 0", "--prune nan", "--prune 1.5", "--sparsity inf"),
        *("--massive-drop inf", "--group-size 0", "--config /dev/zero", "--config /"),
    ],
    "report": ["--max-drop nan", "--max-ms -1"],
    "predict": ["x.png --top 0"],
    "analyze": ["--images 0", "--top -1"],
    "sensitivity": ["--shares 0.1,nan", "--images -3", "--shares " + ",".join(["0.1"] * 1000)],
    "train": ["--data x --lr inf", "--data x --batch 10000000", "--data x --minutes nan", f"--data x --seed {HUGE}"],
    "pack": ["--limit -1", f"--seed {HUGE}"],
}


@pytest.mark.parametrize("line", [f"{name} {flags}" for name, lines in BOUNDS.items() for flags in lines])
def test_numbers_are_bounded_and_files_are_files(monkeypatch, capsys, tmp_path, line) -> None:
    """Refused before a run, a model or an image is read, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    _, err = call(monkeypatch, capsys, *line.split(), status=2)
    assert "error: " in err and not list(tmp_path.iterdir())
    names = [word.strip("-") for word in line.split() if word.startswith("--") and word not in ("--quantize", "--data")]
    assert any(word in err for word in (names[0], names[0].replace("-", "_"), "share of", "/dev/zero", "'/'")), err


def test_json_of_the_machine(monkeypatch, capsys) -> None:
    assert json.loads(call(monkeypatch, capsys, "doctor", "--json")[0])["targets"]
    assert isinstance(json.loads(call(monkeypatch, capsys, "toolchain", "list", "--json")[0]), list)


def test_completion_knows_the_commands() -> None:
    # The shell is named, not found out from the parent process: make starts the tests from sh.
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "vitedge", "--show-completion", "bash"]
    script = subprocess.run(command, capture_output=True, text=True, env=named)
    assert "_VITEDGE_COMPLETE" in script.stdout, script.stderr
    variables = {"_VITEDGE_COMPLETE": "complete_bash", "COMP_WORDS": "vitedge comp", "COMP_CWORD": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-m", "vitedge"], capture_output=True, text=True, env=variables)
    assert {"compress", "compare"} <= set(done.stdout.split())


def test_no_description_is_taken_for_markup() -> None:
    """Typer reads [words] in a help text as styles, and shows nothing of them."""
    from vitedge.config import COMMANDS as COMMAND_OPTIONS
    from vitedge.config import keywords_of

    for name in (*COMMAND_OPTIONS, "build"):
        for owners in keywords_of(name).values():
            assert not re.search(r"\[[a-z]", owners[0][1].description), owners[0][1].description


def test_nothing_is_said_twice(tmp_path) -> None:
    """A result on stdout as JSON stays the only document there."""
    done = vitedge(tmp_path, "report", "--json", code=2)
    assert len(re.findall(r"^\{", done.stdout, re.MULTILINE)) == 1


def test_a_value_out_of_bounds_names_the_help_of_its_own_command(monkeypatch, capsys) -> None:
    assert "`vitedge bench --help`" in call(monkeypatch, capsys, "bench", "--seconds", "0.01", status=2)[1]


def test_a_flag_of_several_sections_is_wrong_once(monkeypatch, capsys) -> None:
    _, err = call(monkeypatch, capsys, "compress", "--model", "vit_b_16", "--seed", 10**30, status=2)
    assert err.count("--seed") == 1 and "1 wrong option" in err
