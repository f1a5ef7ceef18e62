"""Run folders and packs that somebody altered: no traceback, no crash, no file outside of the run folder.

1,400 altered documents, the same ones in each test run. Half of the run folders are altered by somebody who knows how:
the manifest's hashes fit, and its own digest is left out as earlier versions did.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import vitedge
from vitedge import cli
from vitedge.bench.pack import digest
from vitedge.bench.unpack import PackSource, pack_jobs, unpack
from vitedge.errors import VitedgeError

HOSTILE = [
    *(None, True, -1, 0, 2**31, 2**70, -0.0, 1e308, float("nan"), float("inf"), "", "x", "../secret.txt"),
    *("/etc/passwd", "a/../../secret.txt", "\x1b[2J\r\n", "[/red]", "<script>", "\ud800", "\0", "A" * 10_000),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"x": {"y": []}}),
]
BYTES = [
    b"",
    b"\0",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe",
    b"9" * 100_000,
    b"[NaN]",
    b"null",
    b"[]",
    b"{}",
]
SPECIAL = ["link", "loop", "fifo", "device", "folder", "missing"]
QUICK = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def places(value: object, at: tuple = ()) -> list[tuple]:
    """The paths of all values in a JSON document."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        found += places(one, (*at, key))
    return found


def altered(value: object, choose: Callable) -> object:
    """The document with one value replaced, removed, or added to."""
    copy = json.loads(json.dumps(value))
    found = places(copy)
    if not found:
        return choose(st.sampled_from(HOSTILE))
    *way, last = choose(st.sampled_from(found))
    inner = copy
    for key in way:
        inner = inner[key]
    how = choose(st.sampled_from(["replace", "replace", "replace", "remove", "add", "nest"]))
    if how == "remove":
        del inner[last]
    elif how == "add" and isinstance(inner, dict):
        inner[choose(st.sampled_from(["more", "schema", "../x", "\x1b"]))] = choose(st.sampled_from(HOSTILE))
    elif how == "nest":
        inner[last] = [inner[last]]
    else:
        inner[last] = choose(st.sampled_from(HOSTILE))
    return copy


def altered_bytes(data: bytes, choose: Callable) -> bytes:
    """Torn, flipped, or something else altogether."""
    how = choose(st.sampled_from(["cut", "flip", "insert", "other"]))
    if how == "other" or not data:
        return choose(st.sampled_from(BYTES))
    at = choose(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "insert":
        return data[:at] + choose(st.binary(min_size=1, max_size=8)) + data[at:]
    return data[:at] + bytes([data[at] ^ (1 << choose(st.integers(0, 7)))]) + data[at + 1 :]


def replaced(path: Path, kind: str, secret: Path) -> None:
    """Something that is no regular file, where there was one."""
    path.unlink()
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()


def signed(run: Path) -> None:
    """Hashes and sizes of the manifest as the files are now, without its digest."""
    path = run / "manifest.json"
    if not path.is_file() or path.is_symlink():
        return
    try:
        manifest = json.loads(path.read_text())
        for name, entry in manifest["artifacts"].items():
            file = run / name
            if file.is_file() and file.stat().st_size < 10**7:
                entry |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        manifest.pop("digest", None)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        return
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_folder: Path, shapes_folder: Path) -> Path:
    """A folder with a run that was built and measured, a pack of it, and an image."""
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    folder.mkdir()
    shutil.copytree(shapes_folder, folder / "set")
    calib = ("--calib", "set", "--calib-size", 8)
    vitedge(folder, "compress", "--model", tiny_folder, *calib, "--quantize", "static", "--run", "run")
    vitedge(folder, "build", "--run", "run", "--attention", "heads", "--mlp-groups", "joined")
    vitedge(folder, "bench", "--run", "run", "--data", "set", "--seconds", 0.05, "--launches", 1)
    vitedge(folder, "pack", "--run", "run", "--data", "set", "--limit", 4, "-o", "pack.tar")
    return folder


def documents(run: Path) -> list[str]:
    """What is read of a run: everything but graphs, weights and logs."""
    suffixes = {".json", ".toml", ".txt"}
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.suffix in suffixes)


def unharmed(folder: Path, before: set[str]) -> None:
    assert (folder / "secret.txt").read_text() == "secret"
    assert {path.name for path in folder.iterdir()} == before


def refused_or_done(work: Callable[[], object]) -> bool:
    """Whether it was refused; any other exception than ours goes on."""
    try:
        work()
        return False
    except VitedgeError as error:
        assert error.what and all(c.isprintable() or c in "\n\t" for c in f"{error}")
        return True


COMMANDS = {
    "predict": lambda run, image: ["predict", "--run", run, image, "--json"],
    "inspect": lambda run, image: ["inspect", "--run", run, "--json"],
    "report": lambda run, image: ["report", "--run", run],
}


@pytest.mark.parametrize(("command", "count"), [("predict", 400), ("inspect", 300), ("report", 300)])
def test_an_altered_run(command: str, count: int, good: Path, tmp_path: Path, capsys) -> None:
    names = documents(good / "run")
    image = next(path for path in sorted((good / "set").rglob("*")) if path.suffix in (".png", ".jpg", ".jpeg"))
    (tmp_path / "secret.txt").write_text("secret")
    run, refused = tmp_path / "run", 0
    run.mkdir()
    before = {path.name for path in tmp_path.iterdir()}

    @settings(QUICK, max_examples=count)
    @given(st.data())
    def alter(data: st.DataObject) -> None:
        nonlocal refused
        choose = data.draw
        shutil.rmtree(run)
        shutil.copytree(good / "run", run)
        file = run / choose(st.sampled_from(names))
        how = choose(st.sampled_from(["value", "value", "bytes", "special"]))
        if how == "value" and file.suffix == ".json":
            file.write_text(json.dumps(altered(json.loads(file.read_text()), choose)))
        elif how == "special":
            replaced(file, choose(st.sampled_from(SPECIAL)), tmp_path / "secret.txt")
        else:
            file.write_bytes(altered_bytes(file.read_bytes(), choose))
        if choose(st.booleans()):
            signed(run)
        arguments = [str(a) for a in COMMANDS[command](run, image)]
        refused += refused_or_done(lambda: cli.app(args=arguments, standalone_mode=False))
        unharmed(tmp_path, before)

    alter()
    capsys.readouterr()
    assert count / 20 < refused < count


def test_an_altered_pack(good: Path, tmp_path: Path) -> None:
    with tarfile.open(good / "pack.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    whole = (good / "pack.tar").read_bytes()
    (tmp_path / "secret.txt").write_text("secret")
    pack, refused, count = tmp_path / "pack.tar", 0, 400
    pack.touch()
    before = {path.name for path in tmp_path.iterdir()}

    def write(content: list[tuple[str, bytes]], kind: bytes, link: str) -> None:
        with tarfile.open(pack, "w") as tar:
            for name, body in content:
                member = tarfile.TarInfo(name)
                member.size = len(body)
                if kind != tarfile.REGTYPE and name == "labels.npy":
                    member.type, member.linkname, member.size = kind, link, 0
                tar.addfile(member, io.BytesIO(body))

    def use() -> None:
        folder, index = unpack(pack)
        pack_jobs(folder, index)
        source = PackSource(folder, index)
        for at, _ in source.batches(0, 3):
            source.reference(at)
        source.facts(), source.files(2)

    @settings(QUICK, max_examples=count)
    @given(st.data())
    def alter(data: st.DataObject) -> None:
        nonlocal refused
        choose = data.draw
        content = dict(members)
        how = choose(st.sampled_from(["index", "index", "index", "file", "bytes", "kind"]))
        kind = choose(st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]))
        index = json.loads(content["pack.json"])
        if how == "index":
            index = altered(index, choose)
        elif how == "file":
            name = choose(st.sampled_from([n for n in content if n != "pack.json"]))
            content[name] = altered_bytes(content[name], choose)
            index["files"][name] |= {
                "sha256": hashlib.sha256(content[name]).hexdigest(),
                "bytes": len(content[name]),
            }
        if isinstance(index, dict) and "digest" in index and choose(st.booleans()):
            index["digest"] = digest(index)
        content["pack.json"] = json.dumps(index).encode()
        if how == "bytes":
            pack.write_bytes(altered_bytes(whole, choose))
        else:
            link = choose(st.sampled_from(["/etc/passwd", "../secret.txt"]))
            write(list(content.items()), kind if how == "kind" else tarfile.REGTYPE, link)
        shutil.rmtree(tmp_path / "pack.tar.unpacked", ignore_errors=True)
        refused += refused_or_done(use)
        unharmed(tmp_path, before | {path.name for path in tmp_path.glob("pack.tar.unpacked")})

    alter()
    assert count / 4 < refused < count
