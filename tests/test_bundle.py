"""The run folder: cache, hashes, lineage, lock, and what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from vitedge.bundle import Bundle, code_version, sha256_file
from vitedge.errors import VitedgeError


def write(name: str, text: str):
    """A step's work that writes one file."""

    def work(folder: Path) -> dict:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return {"length": len(text)}

    return work


def run(bundle: Bundle, name: str = "a", text: str = "hello", inputs: list[str] | None = None, **options):
    return bundle.run_step(name, write(f"{name}/out.txt", text), options=options, inputs=inputs or [], code="1")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return Bundle.create(tmp_path / "run")


def test_a_step_is_run_once(bundle) -> None:
    assert not run(bundle, size=1).cached
    again = run(bundle, text="never written", size=1)
    assert again.cached and again.facts == {"length": 5}
    assert bundle.path("a/out.txt").read_text() == "hello"


@pytest.mark.parametrize("change", ["options", "code", "external", "tools"])
def test_a_change_redoes_it(bundle, change) -> None:
    recipe = {"options": {}, "code": "1", "external": {}, "tools": {}, "inputs": []}
    assert not bundle.run_step("a", write("a", "x"), **recipe).cached
    changed = recipe | {change: "2" if change == "code" else {"k": "v"}}
    assert not bundle.run_step("a", write("a", "x"), **changed).cached
    assert bundle.run_step("a", write("a", "x"), **changed).cached


def test_only_what_depends_on_a_change_is_redone(bundle) -> None:
    run(bundle, "a", "one")
    run(bundle, "b", "two", ["a/out.txt"])
    run(bundle, "a", "one", seed=1)  # redone, but with the same bytes
    assert run(bundle, "b", "two", ["a/out.txt"]).cached
    run(bundle, "a", "other", seed=2)
    assert not run(bundle, "b", "two", ["a/out.txt"]).cached


def test_lineage_and_hashes_stand_in_the_manifest(bundle) -> None:
    run(bundle, "a")
    run(bundle, "b", "two", ["a/out.txt"])
    manifest = json.loads((bundle.root / "manifest.json").read_text())
    entry = manifest["artifacts"]["b/out.txt"]
    assert entry["step"] == "b" and entry["bytes"] == 3
    assert entry["sha256"] == sha256_file(bundle.path("b/out.txt"))
    assert entry["parents"] == {"a/out.txt": sha256_file(bundle.path("a/out.txt"))}


def test_files_that_a_step_no_longer_makes_are_removed(bundle) -> None:
    bundle.run_step("a", write("old", "x"), options={"v": 1}, inputs=[], code="1")
    bundle.run_step("a", write("new", "x"), options={"v": 2}, inputs=[], code="1")
    assert not bundle.path("old").exists() and not bundle.has("old") and bundle.has("new")
    bundle.drop_step("a")
    assert not bundle.path("new").exists() and "a" not in Bundle.open(bundle.root).manifest["steps"]


def test_a_file_changed_by_hand_is_noticed(bundle) -> None:
    run(bundle, "a")
    bundle.path("a/out.txt").write_text("hellO")
    with pytest.raises(VitedgeError, match="changed after vitedge wrote it"):
        bundle.verified("a/out.txt")
    with pytest.raises(VitedgeError, match="changed after vitedge wrote it"):
        run(bundle, "b", "two", ["a/out.txt"])
    assert not run(bundle, "a").cached, "the step that made it makes it anew"
    assert bundle.verified("a/out.txt").read_text() == "hello"
    bundle.path("a/out.txt").unlink()
    with pytest.raises(VitedgeError, match="is gone"):
        bundle.verified("a/out.txt")


def test_a_failed_step_leaves_nothing(bundle) -> None:
    def work(folder: Path) -> dict:
        (folder / "half").write_text("x")
        raise VitedgeError("no")

    before = sorted(bundle.root.rglob("*"))
    with pytest.raises(VitedgeError):
        bundle.run_step("a", work, options={}, inputs=[], code="1")
    assert sorted(bundle.root.rglob("*")) == before


def _slow_step(root: Path, stage: str) -> None:
    bundle = Bundle.open(root)

    def work(folder: Path) -> dict:
        (folder / "one").write_text("1" * 1000)
        if stage == "work":
            _freeze(root)
        (folder / "two").write_text("2" * 1000)
        return {}

    if stage == "rename":
        # Killed between the renames: one new file is in place, the manifest is still the old one.
        import vitedge.bundle as module

        original = module.move_into_place
        module.move_into_place = lambda a, b: (original(a, b), _freeze(root))[0]
    with bundle.lock():
        bundle.run_step("a", work, options={"v": 2}, inputs=[], code="1")


def _freeze(root: Path) -> None:
    (root / "frozen").touch()
    time.sleep(60)


@pytest.mark.parametrize("stage", ["work", "rename"])
def test_killed_at_any_point_the_next_run_resumes(bundle, stage) -> None:
    def work(folder: Path) -> dict:
        for name in ("one", "two"):
            (folder / name).write_text("old")
        return {}

    bundle.run_step("a", work, options={"v": 1}, inputs=[], code="1")
    process = multiprocessing.get_context("fork").Process(target=_slow_step, args=(bundle.root, stage))
    process.start()
    while process.is_alive() and not (bundle.root / "frozen").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    again = Bundle.open(bundle.root)
    with again.lock():  # the dead process holds nothing
        record = again.run_step("a", work, options={"v": 1}, inputs=[], code="1")
    assert record.cached == (stage == "work"), "after half of the renames the old files are no longer whole"
    for name in ("one", "two"):
        assert again.verified(name).read_text() == "old"
    assert not (bundle.root / ".tmp").exists() or record.cached


def test_a_second_process_is_told(bundle) -> None:
    told = pytest.raises(VitedgeError, match=f"process number is {os.getpid()}")
    with bundle.lock(), told, Bundle.open(bundle.root).lock():
        pass
    with Bundle.open(bundle.root).lock():
        pass


def test_folders_that_are_no_run(tmp_path, unwritable) -> None:
    with pytest.raises(VitedgeError, match="no run in"):
        Bundle.open(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(VitedgeError, match="nothing of yours is overwritten"):
        Bundle.create(tmp_path)
    with pytest.raises(VitedgeError, match="could not be written"):
        Bundle.create(unwritable / "run")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    with pytest.raises(VitedgeError, match="is damaged"):
        Bundle.open(tmp_path / "bad")
    (tmp_path / "bad" / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(VitedgeError, match="another version"):
        Bundle.open(tmp_path / "bad")


def test_full_disk_inside_a_step(bundle) -> None:
    def work(folder: Path) -> dict:
        with open("/dev/full", "w") as device:
            device.write("x" * 10000)
        return {}

    with pytest.raises(VitedgeError, match="disk is full"):
        bundle.run_step("a", work, options={}, inputs=[], code="1")
    assert not bundle.has("a")


def test_code_version_follows_the_sources() -> None:
    assert code_version("vitedge.bundle") == code_version("vitedge.bundle")
    assert code_version("vitedge.bundle") != code_version("vitedge.config")
    assert code_version("vitedge.vit") != code_version("vitedge.export")
