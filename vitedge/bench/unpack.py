"""Reading a pack on a board: nothing is trusted, nothing leaves the folder, every byte is checked."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitedge import __version__, documents
from vitedge.bench import from_bundle
from vitedge.bench.artifact import Artifact
from vitedge.bench.groups import Job
from vitedge.bench.pack import digest
from vitedge.bench.pack_index import INDEX, SCHEMA, PackFile, PackIndex
from vitedge.bench.schema import Data
from vitedge.errors import VitedgeError, printable
from vitedge.files import atomic_dir, clean, write_json
from vitedge.manifest import sha256_file
from vitedge.targets.metadata import read_metadata

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_MOST_INDEX = 64 * 2**20  # bytes


def unpack(pack: Path, into: Path | None = None) -> tuple[Path, PackIndex]:
    """The folder that the pack is unpacked to (`NAME.unpacked` beside it), and its index.

    A folder of the very same pack is taken as it is, once its files are checked.

    Raises:
        VitedgeError: no pack, truncated, altered, of another schema, or with paths that leave the folder.
    """
    folder = into or pack.with_name(pack.name + ".unpacked")
    clean(folder.parent)
    _need_file(pack)
    try:
        with tarfile.open(pack, "r:") as tar:
            index = _read_index(tar, pack)
            if not _is_there(folder, index):
                earlier = folder / "bench"
                with atomic_dir(folder) as fresh:
                    for path, facts in index.files.items():
                        _extract(tar, pack, path, facts, fresh / path)
                    write_json(fresh / INDEX, index.model_dump(mode="json", by_alias=True, exclude_unset=True))
                    if earlier.is_dir():  # records of an earlier pack: each is kept by its data's own digest
                        shutil.copytree(earlier, fresh / "bench", ignore=_links)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise _damaged(pack, f"it is no tar file, or was cut off ({error})") from error
    return folder, index


def _need_file(pack: Path) -> None:
    """Raises VitedgeError for what is no regular file: a FIFO would be waited for."""
    if not pack.exists():
        raise VitedgeError(f"There is no pack '{pack}'.", "", "Make one with `vitedge pack`.")
    if not pack.is_file():
        raise VitedgeError(f"'{pack}' is no pack.", "It is no regular file.", "Make one with `vitedge pack`.")


def _links(folder: str, names: list[str]) -> list[str]:
    """What is neither a plain file nor a plain folder."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if path.is_symlink() or not (path.is_dir() or path.is_file())]


def _read_index(tar: tarfile.TarFile, pack: Path) -> PackIndex:
    first = tar.next()
    if first is None or first.name != INDEX or not first.isreg() or first.size > _MOST_INDEX:
        raise _damaged(pack, f"it does not begin with {INDEX}")
    opened = tar.extractfile(first)
    try:
        index = documents.parse_json(opened.read() if opened else b"", INDEX)
    except VitedgeError as error:
        raise _damaged(pack, f"its {INDEX} is no JSON ({error.why})") from error
    schema = index.get("schema") if isinstance(index, dict) else None
    if type(schema) is not int:
        raise _damaged(pack, f"its {INDEX} has no schema")
    if schema != SCHEMA:
        raise VitedgeError(
            f"'{pack}' was made by another version of vitedge.",
            f"Its schema is {schema}; this version ({__version__}) reads {SCHEMA}.",
            "Use the same version on both machines.",
        )
    if index.get("digest") != digest(index):
        raise _damaged(pack, f"its {INDEX} was changed")
    files = index.get("files")
    for path in files if isinstance(files, dict) else ():
        if not _SAFE.fullmatch(path) or path == INDEX:
            raise _damaged(pack, f"the path {printable(repr(path))} leaves the folder or is not plain")
    try:
        return documents.validate(index, PackIndex, INDEX)
    except VitedgeError as error:
        raise _damaged(pack, f"its {INDEX} does not fit together ({error.why or error.what})") from error


def _extract(tar: tarfile.TarFile, pack: Path, path: str, facts: PackFile, to: Path) -> None:
    """One member, copied by hand: tarfile's own extraction would follow links and set modes."""
    try:
        member = tar.getmember(path)
    except KeyError:
        raise _damaged(pack, f"{path} is missing: it was cut off") from None
    opened = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if opened is None or member.size != facts.bytes:
        raise _damaged(pack, f"{path} is no file of {facts.bytes:,} bytes")
    to.parent.mkdir(parents=True, exist_ok=True)
    check = hashlib.sha256()
    with to.open("wb") as file:
        while chunk := opened.read(1 << 20):
            check.update(chunk)
            file.write(chunk)
    if check.hexdigest() != facts.sha256:
        raise _damaged(pack, f"{path} has another checksum")


def _is_there(folder: Path, index: PackIndex) -> bool:
    """Whether the folder holds this very pack, whole."""
    try:
        if documents.read_json(folder / INDEX).get("digest") != index.digest:
            return False
        paths = {documents.inside(folder, path): facts for path, facts in index.files.items()}
        return all(
            not path.is_symlink() and path.stat().st_size == facts.bytes and sha256_file(path) == facts.sha256
            for path, facts in paths.items()
        )
    except (OSError, VitedgeError, AttributeError):
        return False


def _damaged(pack: Path, why: str) -> VitedgeError:
    return VitedgeError(
        f"The pack '{printable(pack)}' is damaged.", f"It can't be used: {why}.", "Copy it again, or make it anew."
    )


def pack_jobs(folder: Path, index: PackIndex) -> list[Job]:
    """The artifacts of an unpacked pack, with what is known of each on this machine."""
    out = []
    for one in index.artifacts:
        below = folder / "artifacts" / one.name
        metadata = read_metadata(documents.read_bytes(below / "metadata.json"), f"{one.name}/metadata.json")
        artifact = Artifact(
            one.name, one.target, one.precision, below / one.file, one.platform, metadata, sha256=one.sha256
        )
        out.append(from_bundle.known_job(artifact, one.bytes))
    return out


class PackSource:
    """The ready tensors of an unpacked pack, read in pieces."""

    def __init__(self, folder: Path, index: PackIndex) -> None:
        self.folder, self.index = folder, index
        self.shape, self.classes, self.names = index.shape, index.classes, index.names
        labels = folder / "labels.npy"
        self.labels: np.ndarray | None = None
        if labels.is_file():
            try:
                self.labels = np.load(labels, allow_pickle=False)
            except (ValueError, EOFError, OSError, SyntaxError) as error:
                raise VitedgeError("The pack's labels can't be read.", f"{error}.", "Make the pack anew.") from error
            fits = self.labels.ndim in (1, 2) and self.labels.dtype.kind in "iu" and len(self.labels) == len(self)
            if not fits:
                raise VitedgeError("The pack's labels don't fit its images.", "", "Make the pack anew.")

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, start: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        each = int(np.prod(self.shape[1:]))
        for first in range(start, len(self), size):
            last = min(first + size, len(self))
            flat = np.fromfile(self.folder / "pixels.u8", np.uint8, (last - first) * each, offset=first * each)
            yield np.arange(first, last), flat.reshape(-1, *self.shape[1:])

    def reference(self, positions: np.ndarray) -> np.ndarray | None:
        if not self.classes or positions.size == 0:
            return None
        first, last = int(positions[0]), int(positions[-1]) + 1
        count, offset = (last - first) * self.classes, 4 * first * self.classes
        flat = np.fromfile(self.folder / "reference.f32", np.float32, count, offset=offset)
        return np.asarray(flat.reshape(-1, self.classes)[positions - first])

    def files(self, count: int) -> list[Path]:
        return sorted((self.folder / "samples").glob("*"))[:count]

    def facts(self) -> Data:
        return documents.validate(self.index.data, Data, "the pack's data")
