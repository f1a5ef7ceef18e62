"""The one error that a user sees."""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = re.compile(r"[^\x20-\x7e\n\t]")


def printable(text: object, most: int = 300) -> str:
    """`text` without what a terminal or a page would act on, cut off at `most` characters."""
    cut = str(text)
    return _escaped(cut if len(cut) <= most else cut[: most - 3] + "...").replace("\n", "\\n").replace("\t", "\\t")


def plain(text: str) -> str:
    """`text` with its control characters escaped, but for line ends and tabs."""
    return _escaped(text) if _CONTROLS.search(text) else text


def _escaped(text: str) -> str:
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


class VitedgeError(Exception):
    """What failed, why, and what to do next.

    The command line prints the three parts and exits with `exit_code`: 2 for a wrong call or input,
    1 for a failure of something that was asked for correctly.
    """

    def __init__(self, what: str, why: str = "", todo: str = "", *, exit_code: int = 2) -> None:
        # They hold names of files and words of others.
        self.what, self.why, self.todo = plain(what), plain(why), plain(todo)
        self.exit_code = exit_code
        super().__init__(" ".join(part for part in (self.what, self.why, self.todo) if part))


# Package that the core does without -> the extra that brings it.
EXTRAS = {"torch": "compress", "torchvision": "compress", "onnx": "compress", "accelerate": "compress"}
EXTRAS |= {"jinja2": "report", "openvino": "openvino"}


def install_command(*extras: str) -> str:
    """What installs these extras on this machine: from the clone that runs, else the packages themselves, since
    vitedge is in no package index."""
    import importlib.metadata
    import shlex
    from pathlib import Path

    clone = Path(__file__).resolve().parent.parent
    if (clone / "setup.cfg").is_file():
        wanted = f"{clone}[{','.join(extras)}]"
        return f"pip install {shlex.quote(wanted)}"
    try:
        needed = importlib.metadata.requires("vitedge") or []
    except importlib.metadata.PackageNotFoundError:
        needed = []
    found = [line.partition(";")[0].strip() for line in needed if any(f'extra == "{e}"' in line for e in extras)]
    packages = found or [package for package, extra in EXTRAS.items() if extra in extras]
    return f"pip install {shlex.join(packages)}"


def missing_package(package: str, extra: str, purpose: str) -> VitedgeError:
    """The error for an optional package that is not installed, with the command that installs it."""
    return VitedgeError(
        f"{purpose} needs the package '{package}', which is not installed.",
        "It is no part of vitedge's core, which installs on a board.",
        f"Install it with: {install_command(extra)}",
    )
