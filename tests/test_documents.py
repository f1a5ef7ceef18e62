"""One door for documents: whatever others wrote is bounded and validated, or ends as one VitedgeError."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitedge import documents
from vitedge.documents import Document, RelativePath
from vitedge.errors import VitedgeError


class Entry(Document):
    name: str
    file: RelativePath
    sizes: list[int] = []


GOOD = {"name": "a", "file": "build/x.onnx", "sizes": [1, 2]}

HOSTILE = {
    "empty": b"",
    "no JSON": b"{",
    "deep lists": b"[" * 100_000,
    "deep lists, closed": b"[" * 5000 + b"]" * 5000,
    "deep objects": b'{"a":' * 100_000,
    "deep behind a string": b'["[[[[", ' + b"[" * 70,
    "a million digits": b"[" + b"9" * 1_000_000 + b"]",
    "too large an integer": b"[18446744073709551617]",
    "NaN": b"[NaN]",
    "infinity": b"[-Infinity]",
    "1e999": b"[1e999]",
    "a lone surrogate": b'["\\ud800"]',
    "no UTF-8": b'["\xff"]',
    "unterminated string": b'["' + b"[" * 100,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_error(name: str) -> None:
    with pytest.raises(VitedgeError, match=r"'x\.json' is not valid JSON") as caught:
        documents.parse_json(HOSTILE[name], "x.json", todo="Do that.")
    assert caught.value.todo == "Do that." and len(caught.value.why) < 400


def test_deep_json_does_not_end_the_interpreter_in_a_small_stack() -> None:
    code = "import threading, sys; from vitedge import documents, errors; threading.stack_size(65536 * 4)\n"
    code += "def work():\n try: documents.parse_json(b'[' * 10**6, 'x')\n"
    code += " except errors.VitedgeError: print('refused')\n"
    code += "t = threading.Thread(target=work); t.start(); t.join()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


HOSTILE_TOML = {
    "no TOML": "a = ",
    "deep": "a = " + "[" * 50_000,
    "deep keys": ".".join("a" * 3000) + " = 1",
    "digits": "a = " + "9" * 10_000,
    "hexadecimal digits": "a = 0x" + "f" * 10_000,
    "nan": "a = nan",
}


@pytest.mark.parametrize("name", HOSTILE_TOML)
def test_hostile_toml_is_one_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(HOSTILE_TOML[name])
    with pytest.raises(VitedgeError, match="is not valid TOML"):
        documents.read_toml(path)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert documents.load(path, Entry) == Entry(**GOOD)
    assert documents.parse('{"a": 1.5}', dict[str, float], "x") == {"a": 1.5}
    assert json.loads(documents.dump(Entry(**GOOD))) == GOOD
    deep: object = 1
    for _ in range(documents.MOST_DEPTH):
        deep = [deep]
    assert documents.parse_json(json.dumps(deep), "x") == deep
    (tmp_path / "x.toml").write_text("[build.rknn]\nplatform = 'rk3588'\n")
    assert documents.read_toml(tmp_path / "x.toml") == {"build": {"rknn": {"platform": "rk3588"}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "name"),
        ({"more": 1}, "more"),
        ({"sizes": ["a", "b", "c", "d"]}, "and 1 more"),
        ({"file": "/etc/passwd"}, "no plain relative path"),
        ({"file": "../x"}, "no plain relative path"),
        ({"file": "a/../../x"}, "no plain relative path"),
        ({"file": "a//b"}, "no plain relative path"),
        ({"file": "a\u001b[31m"}, r"a\x1b"),
        ({"file": "a\0b"}, "no plain relative path"),
    ],
)
def test_wrong_values_are_named(change: dict, said: str) -> None:
    with pytest.raises(VitedgeError, match="does not hold what it should") as caught:
        documents.validate(GOOD | change, Entry, "m.json")
    assert said in caught.value.why and caught.value.why.isprintable()


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "large", "loop", "NUL"])
def test_only_regular_files_of_a_sane_size_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(documents.MOST_BYTES + 1)
    elif kind == "NUL":
        path = Path("a\0b")
    with pytest.raises(VitedgeError, match="can't be read"):
        documents.read_json(path)


def test_a_path_stays_inside_its_root_links_included(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    (root / "near").symlink_to("a")
    (root / "loop").symlink_to(root / "loop")
    assert documents.inside(root, "a/x.onnx") == root / "a/x.onnx"
    assert documents.inside(root, "near/x") == root / "near/x"
    for path in ("../x", "/x", "link/secret", "loop/x", "a\nb", "", ".", "x" * 5000):
        with pytest.raises(VitedgeError, match="outside"):
            documents.inside(root, path, name=root / "manifest.json")


def test_printable_leaves_nothing_that_a_terminal_acts_on() -> None:
    assert documents.printable("Grün [red] \x1b[31m\n\u202e\ud800") == "Grün [red] \\x1b[31m\\n\\u202e\\ud800"
    assert len(documents.printable("x" * 1000)) == 300


def test_nan_is_named_where_it_stands() -> None:
    with pytest.raises(VitedgeError, match=r"rows\.0\.p50 is NaN") as caught:
        documents.dump({"rows": [{"p50": float("inf")}]})
    assert caught.value.exit_code == 1
