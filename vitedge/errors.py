"""The one error that a user sees."""

from __future__ import annotations


class VitedgeError(Exception):
    """What failed, why, and what to do next.

    The command line prints the three parts and exits with `exit_code`: 2 for a wrong call or input,
    1 for a failure of something that was asked for correctly.
    """

    def __init__(self, what: str, why: str = "", todo: str = "", *, exit_code: int = 2) -> None:
        self.what = what
        self.why = why
        self.todo = todo
        self.exit_code = exit_code
        super().__init__(" ".join(part for part in (what, why, todo) if part))


def missing_package(package: str, extra: str, purpose: str) -> VitedgeError:
    """The error for an optional package that is not installed, with the command that installs it."""
    return VitedgeError(
        f"{purpose} needs the package '{package}', which is not installed.",
        "It is no part of vitedge's core, which installs on a board.",
        f"Install it with: pip install 'vitedge[{extra}]'",
    )
