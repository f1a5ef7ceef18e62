"""What a file is by its first bytes: a checkpoint that is read, or something else, called what it is."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from vitedge.errors import VitedgeError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".tar")
Kind = Literal["safetensors", "torch", "npz"]

SAVE = (
    "Save the plain state dict: torch.save(model.state_dict(), 'model.pth'), "
    "or safetensors.torch.save_file(model.state_dict(), 'model.safetensors')."
)
_HEAD = 512


def is_checkpoint(path: Path) -> bool:
    """Whether a file's name is a checkpoint's (`model_best.pth.tar` included)."""
    return path.suffix.lower() in SUFFIXES and (path.suffix.lower() != ".tar" or ".pth" in path.name.lower())


def kind_of(path: Path) -> Kind:
    """How the file is read. Raises VitedgeError that says what it is instead, and what to save or download."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise VitedgeError(f"'{path}' can't be read.", f"{error.strerror or error}.", "Check the path.") from error
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**30:
        return "safetensors"
    _refuse_others(path, head)
    return "safetensors" if path.suffix == ".safetensors" else "torch"


def _refuse_others(path: Path, head: bytes) -> None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise VitedgeError(f"'{path}' is empty.", "", "Copy or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise VitedgeError(
            f"'{path}' is a Git LFS pointer, not the checkpoint itself.",
            "The repository was cloned without its large files.",
            "Run `git lfs install && git lfs pull` in the repository, or download the file from its web page.",
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"{", b"[")) and b"\x00" not in head:
        raise VitedgeError(
            f"'{path}' is {'a web page' if start.startswith(b'<') else 'text in JSON'}, not a checkpoint.",
            "A download that needs a login or another address saves the server's answer under the file's name.",
            "Download it again, by the link of the raw file.",
        )
    for magic, what, todo in _FOREIGN:
        if head[: len(magic)] == magic:
            raise VitedgeError(f"'{path}' is {what}, which holds no state dict to read.", "", todo)
    # A protobuf whose first field is a small ir_version, as every ONNX file since 2017 begins.
    if path.suffix.lower() == ".onnx" or (head[0] == 8 and 3 <= head[1] < 32 and head[2:3] in (b"\x12", b"\x3a")):
        raise VitedgeError(f"'{path}' is an ONNX graph, which holds no state dict to read.", "", SAVE)


_FOREIGN = (
    (b"\x89HDF\r\n", "a Keras HDF5 file", SAVE),
    (b"\x1f\x8b", "a gzip archive", "Unpack it, and give the file in it."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it, and give the file in it."),
    (b"GGUF", "a GGUF file", SAVE),
)


def _zip_kind(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise damaged(path, error) from error
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise VitedgeError(
            f"'{path}' is TorchScript: a compiled program, not a state dict.",
            "vitedge needs the weights by their names and never runs a checkpoint's code.",
            "Save the state dict instead: torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), "
            "'model.pth'), and give model.pth.",
        )
    if any(
        name.endswith(("serialized_exported_program.json", "models/model.json", "archive_format")) for name in names
    ):
        raise VitedgeError(
            f"'{path}' is a program exported by torch.export (.pt2), not a state dict.",
            "vitedge needs the weights by their names and never runs a checkpoint's code.",
            "Save the state dict instead: torch.save(dict(torch.export.load(FILE).state_dict), 'model.pth'), "
            "and give model.pth.",
        )
    if "data.pkl" not in inner:
        raise VitedgeError(
            f"'{path}' is a zip archive, not a checkpoint.",
            f"It holds {', '.join(names[:3]) or 'nothing'}.",
            "Unpack it, and give the file or the folder in it.",
        )
    return "torch"


def damaged(path: Path, error: BaseException) -> VitedgeError:
    """The error for a file of the right kind that can't be read to its end."""
    lines = str(error).strip().splitlines()
    return VitedgeError(
        f"'{path}' can't be read: the file is truncated or damaged.",
        lines[0][:300] if lines else type(error).__name__,
        "Copy or download it again.",
    )
