"""The run folder: cache, hashes, lineage, lock, and what a kill leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from vitedge import files
from vitedge.bundle import Bundle
from vitedge.errors import VitedgeError
from vitedge.manifest import sha256_file


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
    assert not bundle.path("new").exists() and "a" not in Bundle.open(bundle.root).manifest.steps


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


def test_an_artifact_is_stale_where_what_it_was_made_from_is_gone_or_another(bundle) -> None:
    run(bundle, "a", "one")
    run(bundle, "b", "two", ["a/out.txt"])
    run(bundle, "c", "three", ["b/out.txt"])
    assert bundle.stale("c/out.txt", "a/out.txt") == ""
    run(bundle, "a", "one", seed=1)  # made again, but the same
    bundle.current("c/out.txt")
    run(bundle, "a", "other", seed=2)
    assert "made from 'a/out.txt', which is another one now" in bundle.stale("c/out.txt"), "two steps away"
    with pytest.raises(VitedgeError, match="earlier state of the run"):
        bundle.current("c/out.txt")
    run(bundle, "b", "two", ["a/out.txt"])
    run(bundle, "c", "three", ["b/out.txt"])
    assert bundle.stale("c/out.txt") == ""
    bundle.drop_step("b")
    assert "is no longer there" in bundle.stale("c/out.txt")
    assert "is no longer there" in Bundle.open(bundle.root).stale("c/out.txt")


def test_what_was_written_in_place_is_recorded_and_then_verified(bundle) -> None:
    run(bundle, "a")
    with bundle.lock():
        bundle.path("bench").mkdir()
        bundle.path("bench/pc.json").write_text("1")
        bundle.record("bench/pc", ["bench/pc.json"], ["a/out.txt"])
    assert Bundle.open(bundle.root).read("bench/pc.json") == b"1"
    bundle.path("bench/pc.json").write_text("2")
    with pytest.raises(VitedgeError, match="changed after vitedge wrote it") as caught:
        bundle.read("bench/pc.json")
    assert "vitedge bench" in caught.value.todo
    bundle.path("bench/pc.json").write_text("1")
    run(bundle, "a", "other", seed=2)
    assert "another one now" in bundle.stale("bench/pc.json")


def _tampered(bundle: Bundle, change) -> None:
    """The manifest with `change` made in it, and a digest that fits: somebody who knows how made it."""
    path = bundle.root / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    values.pop("digest", None)
    path.write_text(json.dumps(values))


OUTSIDE = {
    "above": lambda m: m["steps"]["a"].update(outputs=["../secret.txt"]),
    "absolute": lambda m: m["steps"]["a"].update(outputs=["/tmp/secret.txt"]),
    "artifact": lambda m: m["artifacts"].update({"../secret.txt": m["artifacts"]["a/out.txt"]}),
    "parent": lambda m: m["artifacts"]["a/out.txt"].update(parents={"../x": "0" * 64}),
    "link": lambda m: m["steps"]["a"].update(outputs=["link/secret.txt"]),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_manifest_never_leads_outside_the_run(bundle, tmp_path, kind: str) -> None:
    run(bundle, "a")
    secret = tmp_path / "secret.txt"
    secret.write_text("dear")
    (bundle.root / "link").symlink_to(tmp_path)
    _tampered(bundle, OUTSIDE[kind])
    with pytest.raises(VitedgeError):
        other = Bundle.open(bundle.root)
        run(other, "a", "new", seed=1)
        other.drop_step("a")
    assert secret.read_text() == "dear"


def test_no_link_in_a_run_leads_a_step_outside(bundle, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("a", ".unfinished"):
        (bundle.root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VitedgeError, match="outside"):
        run(bundle, "a")
    with pytest.raises(VitedgeError, match="outside"):
        bundle.drop_step("a")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_manifest_that_was_changed_is_refused(bundle) -> None:
    run(bundle, "a")
    path = bundle.root / "manifest.json"
    good = path.read_text()
    for before, after in (('"length": 5', '"length": 6'), ('"steps"', '"stepS"'), ('"bytes": 5', '"bytes": -5')):
        assert before in good
        path.write_text(good.replace(before, after))
        with pytest.raises(VitedgeError, match="is damaged"):
            Bundle.open(bundle.root)
    values = json.loads(good)
    del values["digest"]  # as earlier versions wrote it
    path.write_text(json.dumps(values))
    assert Bundle.open(bundle.root).facts("a") == {"length": 5}


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_is_a_plain_file(bundle, tmp_path, kind: str) -> None:
    lock, target = bundle.root / ".lock", tmp_path / "secret.txt"
    target.write_text("dear")
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(VitedgeError), bundle.lock():
        pass
    assert target.read_text() == "dear"


def test_a_refusal_leaves_no_run_folder_that_it_has_made(tmp_path) -> None:
    root = tmp_path / "run"
    bundle = Bundle.create(root)
    with pytest.raises(VitedgeError), bundle.lock():
        run(bundle, "a")
        raise VitedgeError("refused")
    assert not root.exists()
    for kind in (VitedgeError("a failure", exit_code=1), KeyboardInterrupt()):
        again = Bundle.create(root)
        with pytest.raises(type(kind)), again.lock():
            run(again, "a")
            raise kind
        assert Bundle.open(root).has("a/out.txt"), "a failure keeps what was done"
    with pytest.raises(VitedgeError), (opened := Bundle.open(root)).lock():
        raise VitedgeError("refused")
    assert opened.path("a/out.txt").exists(), "it was there before"


def test_the_next_lock_cleans_what_a_dead_process_left(bundle) -> None:
    run(bundle, "a")
    (bundle.root / "bench").mkdir()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_leave, args=(bundle.root,))
    process.start()
    process.join()
    mine = bundle.root / files.temporary_name("mine.json")
    mine.touch()
    assert len(list(bundle.root.rglob(".*.tmp*"))) == 4
    with bundle.lock():
        pass
    assert list(bundle.root.rglob(".*.tmp*")) == [mine], "a living process's stay"


def _leave(root: Path) -> None:
    (root / files.temporary_name("report.html")).touch()
    (root / "bench" / files.temporary_name("pc.json")).touch()
    (root / files.temporary_name("step")).mkdir()


def test_a_kill_at_the_first_write_leaves_a_folder_that_is_taken(tmp_path) -> None:
    root = tmp_path / "run"

    def killed() -> None:
        root.mkdir()
        (root / files.temporary_name("manifest.json")).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert list(root.iterdir())
    assert [p.name for p in Bundle.create(root).root.iterdir()] == ["manifest.json"]
