"""Writing files so that nothing half-written is ever left: temporary name, fsync, rename.

Temporary names say which process they belong to; what a killed one left is removed by the next command (`clean`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitedge.documents import dump, printable
from vitedge.errors import VitedgeError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch.save says nothing of the system's reason; in practice it is a full disk.
_FULL_WORDS = ("No space left on device", "PytorchStreamWriter failed", "unexpected pos")
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY}


def write_error(error: BaseException, path: Path) -> VitedgeError | None:
    """The user's error for a failed write to `path`, or None where `error` is about something else.

    Libraries written in Rust or C++ (safetensors, onnx, torch) put the system's words into exceptions of their own,
    so a full disk is known by its text as well as by its number.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or any(words in str(error) for words in _FULL_WORDS):
        why = f"The disk is full, or a limit is reached ({os.strerror(number or errno.ENOSPC)})."
        todo = "Free some space or choose another folder, then run it again."
    elif number in _READ_ONLY or "Read-only file system" in str(error):
        why = f"The folder {path.parent} can't be written to ({os.strerror(number or errno.EROFS)})."
        todo = "Change its permissions or choose another folder."
    elif number == errno.ENOENT and not path.parent.exists():
        why, todo = f"The folder {path.parent} is gone: it was removed meanwhile.", "Run it again."
    elif number in _NO_FOLDER:
        why, todo = f"{os.strerror(number or 0)}: {path}.", "Choose another path."
    else:
        return None
    return VitedgeError(f"{path} could not be written.", why, todo, exit_code=1)


_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}\.tmp(\.[^/]*)?")
_OTHER_BOOT_S = 86400.0


def _owner() -> str:
    """What names this process, also after its number was given to another: boot, number, start in clock ticks."""
    return f"{_boot()}-{os.getpid()}-{process_start(os.getpid()) or 0}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "00000000"


def process_start(pid: int) -> int | None:
    """When a process started, in clock ticks; None for one that is gone, or that is dead and not yet waited for."""
    try:
        # The second field, the program's name, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def temporary_name(name: str) -> str:
    """A hidden name that says which process it belongs to, so that `clean` knows a dead one's.

    The suffix stays: np.save, Pillow and onnx choose or extend the name by it.
    """
    suffix = Path(name).suffix
    return f".{name.removesuffix(suffix)[:80]}.{_owner()}-{secrets.token_hex(4)}.tmp{suffix}"


def _temporary(path: Path) -> Path:
    return path.with_name(temporary_name(path.name))


def _is_left(path: Path) -> bool:
    """Whether it is a temporary file or folder whose process is gone."""
    if (match := _TEMPORARY.fullmatch(path.name)) is None:
        return False
    if match[1] != _boot():  # an earlier boot, or another machine that shares this folder and may be at work
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > _OTHER_BOOT_S
        return False
    return process_start(int(match[2])) != (int(match[3]) or None)


def clean(folder: Path, *, below: bool = False) -> None:
    """Removes what killed processes left in `folder` (and, with `below`, in its folders; links are not followed)."""
    try:
        found = list(os.scandir(folder))
    except OSError:
        return
    for entry in found:
        if _is_left(Path(entry.path)):
            with contextlib.suppress(OSError):
                _remove(Path(entry.path))
        elif below and entry.is_dir(follow_symlinks=False):
            clean(Path(entry.path), below=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, temporary: Path) -> Iterator[None]:
    """Removes `temporary` on any failure, and turns the system's refusals into the user's error.

    A missing permission is ours only where the system names a path below the folder written to: the block may
    read other files too.
    """
    try:
        yield
    except BaseException as error:
        _remove(temporary)
        named = getattr(error, "filename", None)
        foreign = (
            isinstance(error, OSError)
            and error.errno not in _FULL
            and isinstance(named, (str, Path))
            and path.parent not in (Path(named), *Path(named).parents)
        )
        told = None if foreign or isinstance(error, VitedgeError) else write_error(error, path)
        if told is None:
            raise
        raise told from error


def make_folder(path: Path) -> Path:
    """`path`, made with its parents where it was missing. Raises VitedgeError where that is refused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise (write_error(error, path) or error) from error
    return path


def _replaceable(path: Path) -> None:
    """Raises VitedgeError where `path` is a link, a FIFO or a device: a rename would replace it by a regular file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(mode := path.lstat().st_mode):
            kind = "link" if stat.S_ISLNK(mode) else "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"
            raise VitedgeError(
                f"{path} is not replaced.", f"It is a {kind}, no regular file.", "Choose another path.", exit_code=1
            )


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well.

    The block writes the temporary file by any means (`onnx.save`, `numpy.save`, `open`); it is then fsynced
    and renamed over `path`, so that a reader sees the old file or the new one. When the block fails, the
    temporary file is removed and `path` stays as it was. What a killed process left here is removed.

    Raises:
        VitedgeError: (exit code 1) full disk, a folder that can't be written to, a `path` that is no regular file.
    """
    path = Path(path)
    make_folder(path.parent)
    with _writing(path, temporary := _temporary(path)):
        _replaceable(path)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextmanager
def output_path(path: str | Path) -> Iterator[Path]:
    """`atomic_path` for a path that the user named, after `clean`: what is no regular file is written through.

    A link stays, and its target is written; a FIFO or a device (`/dev/stdout`, `/dev/null`) gets the bytes at the end.
    """
    path = Path(path)
    with contextlib.suppress(OSError, RuntimeError):  # a loop of links is refused below
        path = path.resolve() if path.is_symlink() else path
    try:
        special = not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    except OSError:
        special = False
    if special:
        with _writing(path, temporary := Path(tempfile.gettempdir()) / temporary_name(path.name)):
            yield temporary
            with temporary.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            temporary.unlink()
        return
    clean(path.parent)
    with atomic_path(path) as temporary:
        yield temporary


def move_into_place(file: Path, target: Path) -> None:
    """Renames a finished file to `target` (same file system), fsynced first, its folder made where missing."""
    make_folder(target.parent)
    _replaceable(target)
    _sync(file)
    os.replace(file, target)
    _sync(target.parent)


@contextmanager
def atomic_dir(final: str | Path) -> Iterator[Path]:
    """A new empty folder beside `final`, which replaces `final` when the block ends well, else is removed."""
    final = Path(final)
    make_folder(final.parent)
    temporary = _temporary(final)
    with _writing(final, temporary):
        temporary.mkdir()
        yield temporary
        replace_dir(temporary, final)


@contextmanager
def scratch_dir(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent` that goes when the block ends, or, where that was killed, with the next `clean`."""
    folder = parent / temporary_name(name)
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise write_error(error, folder) or error from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_dir(temporary: str | Path, final: str | Path) -> None:
    """Puts the folder `temporary` in the place of `final` (same file system), its files fsynced first.

    Linux exchanges the two at once. Where the file system can't, the old one is renamed first, and comes back if the
    second rename fails; a kill between the two leaves `final` missing, never half-written.
    """
    temporary, final = Path(temporary), Path(final)
    with _writing(final, temporary):
        for folder, _, names in os.walk(temporary):
            for name in names:
                if (file := Path(folder, name)).is_file():
                    _sync(file)
            _sync(Path(folder))
        if final.is_symlink() or not final.exists():
            if final.is_symlink():
                _replaceable(final)
            os.rename(temporary, final)
        elif not _exchange(temporary, final):
            aside = _temporary(final)
            os.rename(final, aside)
            try:
                os.rename(temporary, final)
            except BaseException:
                os.rename(aside, final)
                raise
            _remove(aside)
        _sync(final.parent)
    _remove(temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders at once; False where the system or the file system can't."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` atomically. Raises VitedgeError on a full disk or a read-only folder."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` in UTF-8, its line ends as they are, to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value`, plain or a pydantic model, as JSON atomically. Raises VitedgeError for NaN and infinity."""
    write_text(path, dump(value))


def write_output(path: str | Path, text: str) -> None:
    """Writes `text` to a path that the user named; see `output_path`."""
    with output_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextmanager
def locked(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`, which is no link and no device; it says the holder's process number.

    Raises VitedgeError where another process has it for longer than `wait_s`, or where it can't be made. `what`: what
    is being done to the folder, such as "working on".
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_lock(path) from error
        raise write_error(error, path) or error from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _no_lock(path)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    holder = printable(os.read(handle, 32).decode(errors="replace").strip())
                    raise VitedgeError(
                        f"Another vitedge process is {what} '{path.parent}'.",
                        f"Its process number is {holder}." if holder else "",
                        "Wait until it is done, or name another folder.",
                        exit_code=1,
                    ) from error
                time.sleep(0.2)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)  # releases the lock


def _no_lock(path: Path) -> VitedgeError:
    return VitedgeError(f"'{path}' is no regular file.", "A lock is a plain file.", "Remove it.")
