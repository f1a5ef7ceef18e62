"""Writing files so that nothing half-written is ever left: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitedge.documents import dump
from vitedge.errors import VitedgeError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY}


def write_error(error: BaseException, path: Path) -> VitedgeError | None:
    """The user's error for a failed write to `path`, or None where `error` is about something else.

    Libraries written in Rust or C++ (safetensors, onnx) put the system's words into exceptions of their own,
    so a full disk is known by its text as well as by its number.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "No space left on device" in str(error):
        why = f"The disk is full, or a limit is reached ({os.strerror(number or errno.ENOSPC)})."
        todo = "Free some space or choose another folder, then run it again."
    elif number in _READ_ONLY or "Read-only file system" in str(error):
        why = f"The folder {path.parent} can't be written to ({os.strerror(number or errno.EROFS)})."
        todo = "Change its permissions or choose another folder."
    elif number in _NO_FOLDER:
        why, todo = f"{os.strerror(number or 0)}: {path}.", "Choose another path."
    else:
        return None
    return VitedgeError(f"{path} could not be written.", why, todo, exit_code=1)


def _temporary(path: Path) -> Path:
    # The suffix stays: np.save, Pillow and onnx choose or extend the name by it.
    stem = path.name.removesuffix(path.suffix)[:80]
    return path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


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


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well.

    The block writes the temporary file by any means (`onnx.save`, `numpy.save`, `open`); it is then fsynced
    and renamed over `path`, so that a reader sees the old file or the new one. When the block fails, the
    temporary file is removed and `path` stays as it was.

    Raises:
        VitedgeError: (exit code 1) full disk, or a folder that can't be written to.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _temporary(path)
    with _writing(path, temporary):
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


def move_into_place(file: Path, target: Path) -> None:
    """Renames a finished file to `target` (same file system), fsynced first, its folder made where missing."""
    make_folder(target.parent)
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


def replace_dir(temporary: str | Path, final: str | Path) -> None:
    """Puts the folder `temporary` in the place of `final` (same file system), its files fsynced first.

    POSIX can't rename a folder over a full one. The old one is put aside, and comes back if the rename fails;
    a kill between the two renames leaves `final` missing, never half-written.
    """
    temporary, final = Path(temporary), Path(final)
    aside = _temporary(final)
    with _writing(final, temporary):
        for folder, _, names in os.walk(temporary):
            for name in names:
                if (file := Path(folder, name)).is_file():
                    _sync(file)
            _sync(Path(folder))
        replaced = final.exists()
        if replaced:
            os.rename(final, aside)
        try:
            os.rename(temporary, final)
        except BaseException:
            if replaced:
                os.rename(aside, final)
            raise
        _sync(final.parent)
    if replaced:
        _remove(aside)


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
