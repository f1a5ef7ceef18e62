"""Tensors out of checkpoint files. No code of a checkpoint is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitedge.errors import VitedgeError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# Where trainers put the state dict inside their checkpoints.
_NESTED = ("state_dict", "model", "model_state_dict", "module")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors`, `.pth`, `.pt` or `.bin` file, on the CPU. Raises VitedgeError."""
    if not path.is_file():
        raise VitedgeError(f"There is no checkpoint '{path}'.", "", "Give the path of a file that exists.")
    if path.suffix not in SUFFIXES:
        raise VitedgeError(
            f"'{path}' is not a checkpoint that vitedge reads.",
            f"Its name ends in '{path.suffix}'.",
            f"Give a file that ends in one of {', '.join(SUFFIXES)}, or a folder that holds one.",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise VitedgeError(
                f"'{path}' wants to run code while it is read, which is refused.",
                str(error).splitlines()[0],
                "Save the plain state dict: torch.save(model.state_dict(), 'model.pth'), "
                "or safetensors.torch.save_file(model.state_dict(), 'model.safetensors').",
            ) from error
        raise _damaged(path, error) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> VitedgeError:
    return VitedgeError(
        f"'{path}' can't be read: the file is truncated or damaged.",
        str(error).splitlines()[0] if str(error) else type(error).__name__,
        "Copy or download it again.",
    )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise VitedgeError(
            f"'{path}' holds no state dict.",
            f"It holds a {type(loaded).__name__}.",
            "Save model.state_dict() alone.",
        )
    # DistributedDataParallel and torch.compile put a prefix before every name.
    return {k.removeprefix("module.").removeprefix("_orig_mod."): v for k, v in loaded.items()}
