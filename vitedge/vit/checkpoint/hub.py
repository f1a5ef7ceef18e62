"""Models of the Hugging Face Hub by name, through its own library: hf:ORG/NAME, hf:ORG/NAME@REVISION, timm:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

from vitedge.documents import printable
from vitedge.errors import VitedgeError, install_command

HUB, TIMM = "hf:", "timm:"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DESCRIPTIONS = ["*.json", "*.txt"]
# The first kind that there is: a model often lies there in several.
_WEIGHTS = (["*.safetensors"], ["*.bin"], ["*.pth", "*.pt"], ["*.npz"])


def is_hub(source: str) -> bool:
    """Whether `--model` names a model of the Hub."""
    return source.startswith((HUB, TIMM))


def fetch(source: str) -> Path:
    """The folder with what `source` names, downloaded into the Hub's own cache, or found there without a network.

    Raises VitedgeError where it can't be had, and says how to pass a folder.
    """
    name, _, revision = source.partition("@")
    wanted = _repository(name)
    manual = f"hf download {wanted} --local-dir DIR, then give --model DIR."
    if importlib.util.find_spec("huggingface_hub") is None:
        raise VitedgeError(
            f"'{printable(source)}' needs the package 'huggingface_hub'.",
            "",
            f"Install it: {install_command('compress')}. Or on another machine: {manual}",
        )
    hub = importlib.import_module("huggingface_hub")
    folder = Path()
    try:
        for patterns in _WEIGHTS:
            folder = Path(
                hub.snapshot_download(
                    wanted,
                    revision=revision or None,
                    allow_patterns=[*_DESCRIPTIONS, *patterns],
                    ignore_patterns=["*/*"],  # exports for other programs lie in sub-folders
                )
            )
            if any(found for pattern in patterns for found in folder.glob(pattern)):
                return folder
    except Exception as error:  # of the network, of the Hub, of its cache: the library's errors have no common base
        raise VitedgeError(
            f"The model '{printable(wanted)}' can't be had from the Hub.",
            f"{_words(error)}.",
            "Check its name and the network (a model behind a licence: hf auth login). Or where there is a network: "
            f"{manual}",
            exit_code=1,
        ) from error
    raise VitedgeError(
        f"The model '{printable(wanted)}' has no weights that are known.",
        f"Its files: {', '.join(sorted(path.name for path in folder.iterdir())) or 'none'}.",
        "Give a model with safetensors or PyTorch weights.",
    )


def _repository(name: str) -> str:
    """ORG/NAME on the Hub. Raises VitedgeError where that is none."""
    if name.startswith(HUB):
        found = name.removeprefix(HUB)
    else:
        found = f"timm/{_with_tag(name.removeprefix(TIMM).removeprefix('timm/'))}"
    if not _NAME.fullmatch(found):
        raise VitedgeError(
            f"'{printable(name)}' is no name of a model on the Hub.",
            "",
            "Write hf:ORG/NAME, such as hf:google/vit-base-patch16-224, or timm:NAME.",
        )
    return found


def _with_tag(name: str) -> str:
    """timm's name with its default weights, where it names none and timm is installed to tell them."""
    if "." in name or importlib.util.find_spec("timm") is None:
        return name
    known = importlib.import_module("timm").get_pretrained_cfg(name, allow_unregistered=True)
    tag = getattr(known, "tag", None)
    return f"{name}.{tag}" if tag else name


def _words(error: Exception) -> str:
    """The error's first line; a network that is not there says so at the end of a chain of errors."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return printable(text, 300).rstrip(".")
