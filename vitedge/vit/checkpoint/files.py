"""Tensors out of checkpoint files. No code of a checkpoint is ever run."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.kinds import SAVE, SUFFIXES, damaged, is_checkpoint, kind_of

INDEX = ".index.json"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors|\.bin)$")
_MOST_NUMBERS = 2**34  # of one tensor: 64 GiB in float32
_MOST_EXPANDED = 2**20  # numbers that an expanded tensor may have beyond what the file stores

# Plain data that training scripts leave beside the weights. Each is rebuilt from its values; none runs code.
_PLAIN: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.Counter,
    pathlib.PurePosixPath,
    pathlib.PosixPath,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdUSO"},
]
_MULTIARRAY: Any = getattr(np, "_core", None) or np.core
_NUMPY = {name: getattr(_MULTIARRAY.multiarray, name) for name in ("scalar", "_reconstruct")}
# numpy 1 and 2 name the module of these two differently; a file has the name of the numpy that wrote it.
_PLAIN += [(f, f"{m}.multiarray.{n}") for n, f in _NUMPY.items() for m in ("numpy.core", "numpy._core")]


class ShardIndex(BaseModel):
    """`model.safetensors.index.json`: which file holds which tensor."""

    model_config = ConfigDict(extra="ignore")
    weight_map: Annotated[dict[str, documents.RelativePath], Field(min_length=1)]


def read_checkpoint(path: Path) -> Mapping[Any, Any]:
    """What a checkpoint file holds: tensors by name, often below other keys. Shards are read by their index.

    Raises VitedgeError: no such file, damaged, no checkpoint, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise VitedgeError(f"There is no checkpoint '{path}'.", "", "Give the path of a file that exists.")
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if shard := _SHARD.fullmatch(path.name):
        index = path.with_name(f"{shard[1]}{shard[2]}{INDEX}")
        if not index.is_file():
            raise VitedgeError(
                f"'{path}' is one shard of a checkpoint, and the index of its shards is not there.",
                f"{index.name} says which file holds which tensor.",
                f"Copy {index.name} and all shards into one folder, and give the folder.",
            )
        return _read_shards(index)
    kind = kind_of(path)
    if kind == "torch" and not is_checkpoint(path):
        raise VitedgeError(
            f"'{path}' is not a checkpoint that vitedge reads.",
            f"Its name ends in '{path.suffix}'.",
            f"Give a file that ends in one of {', '.join(SUFFIXES)}, or a folder that holds one.",
        )
    try:
        if kind == "safetensors":
            return load_file(path)
        loaded = _read_npz(path) if kind == "npz" else _unpickle(path)
    except VitedgeError:
        raise
    except Exception as error:  # torch's and numpy's readers raise nearly anything on damaged bytes
        raise damaged(path, error) from error
    if not isinstance(loaded, Mapping) or not loaded:
        raise VitedgeError(f"'{path}' holds no state dict.", f"It holds a {type(loaded).__name__}.", f"{SAVE}")
    return loaded


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a flat checkpoint file by name, on the CPU. Raises VitedgeError."""
    loaded = read_checkpoint(path)
    if not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in loaded.items()):
        raise VitedgeError(f"'{path}' holds more than tensors by name.", "", SAVE)
    return dict(loaded)


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None and "global" not in str(error).lower():
            raise
        name = wanted[1] if wanted else "an unknown kind"
        whole = name.startswith(("timm.", "torchvision.", "transformers.", "torch.nn.", "__main__."))
        raise VitedgeError(
            f"'{path}' wants to run code while it is read, which is refused.",
            f"It holds an object of {name}"
            + (": a whole model was saved, not its state dict." if whole else ", beside or around the weights."),
            SAVE,
        ) from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        stored = sum(info.file_size for info in archive.infolist())
    if stored > 4 * _MOST_NUMBERS or stored > 2000 * path.stat().st_size:
        raise damaged(path, ValueError(f"It would unpack to {stored:,} bytes."))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _from_numpy(arrays[name]) for name in arrays.files}


def _from_numpy(array: np.ndarray) -> Tensor:
    # numpy has no bfloat16; JAX writes it as two raw bytes.
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _read_shards(index: Path) -> dict[str, Tensor]:
    todo = "Copy the index and all of its shards into one folder again."
    weights = documents.load(index, ShardIndex, todo=todo).weight_map
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weights.values())):
        file = documents.inside(index.parent, name, name=index, todo=todo)
        if not file.is_file():
            raise VitedgeError(f"The shard '{name}' of the checkpoint is missing.", f"{index} names it.", todo)
        if kind_of(file) == "npz":
            raise damaged(file, ValueError("a shard is a .safetensors or .bin file"))
        try:
            loaded = load_file(file) if kind_of(file) == "safetensors" else _unpickle(file)
            tensors |= {k: v for k, v in loaded.items() if weights.get(k) == name}
        except VitedgeError:
            raise
        except Exception as error:
            raise damaged(file, error) from error
    if missing := sorted(set(weights) - set(tensors)):
        raise VitedgeError(
            f"{len(missing)} tensors of '{index}' are not in the shards that it names.",
            f"{missing[0]}, for example.",
            todo,
        )
    return tensors


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raises VitedgeError that names the first tensors that are no plain, finite, stored floats."""
    wrong = [f"{name} is {why}" for name, tensor in tensors.items() if (why := _odd(tensor))]
    if wrong:
        raise VitedgeError(
            f"{len(wrong)} tensors of the checkpoint are no plain floating-point weights.",
            "; ".join(wrong[:3]) + ".",
            "Save the float model, before it was quantised or converted: " + SAVE,
        )
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise VitedgeError(
            f"The weights hold NaN or infinity, in {len(bad)} tensors: {listing(bad)}.",
            "A model with such weights computes nothing but NaN.",
            "Take a checkpoint from before the training diverged.",
        )


def _odd(tensor: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return "sparse, quantised, or without values"
    if not tensor.is_floating_point():
        return f"of type {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.element_size() < 2:
        return f"of type {str(tensor.dtype).removeprefix('torch.')}, 8-bit"
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > min(_MOST_NUMBERS, stored + _MOST_EXPANDED):
        return f"larger than what the file stores of it ({tuple(tensor.shape)})"
    return "empty" if tensor.numel() == 0 else ""


def listing(names: list[str], limit: int = 6) -> str:
    """The first names, and how many more."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
