from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

import pytest

from vitedge import files
from vitedge.errors import VitedgeError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_writes_bytes_text_json(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "new" / "a.bin", b"\0\r\n")
    files.write_text(tmp_path / "b.txt", "ä\n")
    files.write_json(tmp_path / "c.json", {"ä": [1, None]})
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"\0\r\n"
    assert (tmp_path / "b.txt").read_bytes() == "ä\n".encode()
    assert (tmp_path / "c.json").read_text(encoding="utf-8") == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'
    assert names(tmp_path) == ["b.txt", "c.json", "new"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "c.json", 1)
    with pytest.raises(VitedgeError, match=r"rows\.1\.top1 is NaN or infinite"):
        files.write_json(tmp_path / "c.json", {"rows": [{}, {"top1": float("nan")}]})
    assert (tmp_path / "c.json").read_text() == "1\n"


def test_failure_in_the_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".onnx"
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.onnx"]


def test_new_files_have_the_permissions_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    files.write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk(tmp_path: Path, full_disk: Path) -> None:
    with pytest.raises(VitedgeError) as caught, files.atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"begun")
        with open(full_disk, "wb") as device:  # the system's own ENOSPC
            device.write(b"x")
    assert caught.value.exit_code == 1
    assert "disk is full" in caught.value.why
    assert str(tmp_path / "a.bin") in caught.value.what
    assert names(tmp_path) == []


def test_full_disk_told_by_a_library_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="disk is full"), files.atomic_path(tmp_path / "a.bin"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_read_only_folder(unwritable: Path) -> None:
    with pytest.raises(VitedgeError) as caught:
        files.write_bytes(unwritable / "a.bin", b"x")
    assert caught.value.exit_code == 1 and str(unwritable) in caught.value.why
    with pytest.raises(VitedgeError):
        files.write_bytes(unwritable / "sub" / "a.bin", b"x")


def test_read_only_file_system_is_told(tmp_path: Path) -> None:
    error = files.write_error(OSError(errno.EROFS, os.strerror(errno.EROFS)), tmp_path / "a")
    assert error is not None and "can't be written to" in error.why and error.todo


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VitedgeError) as caught:
        files.write_bytes(tmp_path / "file" / "a.bin", b"x")
    assert caught.value.exit_code == 1


def test_an_error_about_another_file_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a.bin"):
        Path("/no/such/file").read_bytes()
    with pytest.raises(PermissionError), files.atomic_path(tmp_path / "a.bin"):
        raise PermissionError(errno.EACCES, "denied", "/somewhere/else")


def test_atomic_dir_replaces_the_whole_folder(tmp_path: Path) -> None:
    final = tmp_path / "build"
    with files.atomic_dir(final) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "old").write_bytes(b"")
    with files.atomic_dir(final) as folder:
        (folder / "new").write_bytes(b"")
    assert names(final) == ["new"]
    with pytest.raises(RuntimeError), files.atomic_dir(final) as folder:
        (folder / "half").write_bytes(b"")
        raise RuntimeError
    assert names(final) == ["new"] and names(tmp_path) == ["build"]


def test_replace_dir_keeps_the_old_folder_when_the_new_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        files.replace_dir(tmp_path / "missing", tmp_path / "final")
    assert names(tmp_path) == ["final"] and names(tmp_path / "final") == ["old"]


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "folder"])
def test_what_is_no_regular_file_is_never_replaced(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "out.json", tmp_path / "target"
    target.write_text("dear")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.ttyname(os.openpty()[1]))  # a device that may be lost
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(VitedgeError, match="is not replaced"):
        files.write_text(path, "new")
    assert path.lstat().st_mode == before.st_mode and path.lstat().st_ino == before.st_ino
    assert target.read_text() == "dear" and not [n for n in names(tmp_path) if "tmp" in n]


def test_an_output_that_the_user_named_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, fifo = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(target)
    files.write_output(link, "one")
    assert link.is_symlink() and target.read_text() == "one"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    files.write_output(fifo, "two")
    assert os.read(reader, 10) == b"two" and stat.S_ISFIFO(fifo.lstat().st_mode)
    os.close(reader)
    reader, slave = os.openpty()  # not /dev/null: root would destroy it where this fails
    files.write_output(os.ttyname(slave), "three")
    assert os.read(reader, 10) == b"three" and stat.S_ISCHR(os.stat(os.ttyname(slave)).st_mode)
    files.write_output(tmp_path / "plain", "four")
    assert (tmp_path / "plain").read_text() == "four"
    assert names(tmp_path) == ["fifo", "folder", "link", "plain"] and names(tmp_path / "folder") == ["target"]


def test_the_next_output_cleans_what_a_killed_one_left(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with files.output_path(tmp_path / "a.json") as temporary:
            temporary.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1
    files.write_output(tmp_path / "b.json", "x")
    assert names(tmp_path) == ["b.json"]


def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        with files.output_path(tmp_path / "a.json") as temporary:
            temporary.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    files.write_output(tmp_path / "b.json", "x")
    assert names(tmp_path) == ["b.json"]
    os.waitpid(child, 0)


def test_a_number_that_another_process_has_now_is_no_excuse(tmp_path: Path) -> None:
    mine = files.temporary_name("a.json")
    boot, pid, start, rest = mine.removeprefix(".a.").split("-")
    left = {
        "mine": mine,
        "a namesake's": f".a.{boot}-{pid}-{int(start) - 1}-{rest}",
        "dead": f".a.{boot}-{2**22 + 1}-5-{rest}",
        "another machine's": f".a.{'f' * 8}-{pid}-5-{rest}",
        "not ours": ".a.tmp.json",
    }
    for name in left.values():
        (tmp_path / name).touch()
    files.clean(tmp_path)
    assert names(tmp_path) == sorted([left["mine"], left["another machine's"], left["not ours"]])
    os.utime(tmp_path / left["another machine's"], (0, 0))
    files.clean(tmp_path)
    assert names(tmp_path) == sorted([left["mine"], left["not ours"]])


def test_a_folder_is_exchanged_at_once(tmp_path: Path, monkeypatch) -> None:
    """A kill between two renames would leave none: neither name is ever missing."""
    with files.atomic_dir(tmp_path / "set") as folder:
        (folder / "old").touch()
    renames: list[str] = []
    monkeypatch.setattr(files.os, "rename", lambda a, b: renames.append(str(b)))
    with files.atomic_dir(tmp_path / "set") as folder:
        (folder / "new").touch()
    assert renames == [] and names(tmp_path / "set") == ["new"] and names(tmp_path) == ["set"]
