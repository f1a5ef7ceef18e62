"""What a float transform is, and how another one is added from outside. Imports no torch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitedge.condition.options import ConditionOptions
from vitedge.errors import VitedgeError

if TYPE_CHECKING:
    from vitedge.condition.ranges import Batches
    from vitedge.vit.architecture import Architecture


@dataclass(frozen=True)
class Applied:
    """What a transform did.

    Attributes:
        chosen: what it chose, in words or as a table (JSON-able).
        exact: False where it changed the model's function, within a budget of its own.
        model: the new model where it could not be changed in place.
    """

    chosen: object = None
    exact: bool = True
    model: Architecture | None = None


@dataclass(frozen=True)
class Transform:
    """One float transform. After each, the logits are compared with those before it.

    Attributes:
        name: in reports and errors.
        apply: changes the model in place (or returns another) on normalised calibration images.
        wanted: whether the options ask for it.
        switch: the option that leaves it out, for the error message.
        all_images: it is given all calibration images, not the first `options.images` alone.
    """

    name: str
    apply: Callable[[Architecture, Batches, ConditionOptions], Applied]
    wanted: Callable[[ConditionOptions], bool] = lambda _: True
    switch: str = ""
    all_images: bool = False


_OUTSIDE: list[tuple[str, Transform]] = []


def register(transform: Transform, *, before: str = "") -> None:
    """Adds a transform to those that `condition` applies.

    Args:
        before: name of the transform that it precedes; at the end where it is empty.
    """
    _OUTSIDE.append((before, transform))


def unregister(name: str) -> None:
    """Takes an added transform away."""
    _OUTSIDE[:] = [(before, one) for before, one in _OUTSIDE if one.name != name]


def in_order(own: Sequence[Transform]) -> list[Transform]:
    """Conditioning's own transforms with the added ones between them. Raises VitedgeError for an unknown `before`."""
    found = list(own)
    for before, added in _OUTSIDE:
        names = [one.name for one in found]
        if before and before not in names:
            raise VitedgeError(
                f"The transform '{added.name}' shall precede '{before}', which does not exist.",
                f"There are: {', '.join(names)}.",
                "Register it with one of these names.",
            )
        found.insert(names.index(before) if before else len(found), added)
    return found


def added_code() -> dict[str, str]:
    """Name of each added transform -> digest of its source: a step's result depends on it."""
    return {one.name: hashlib.sha256(_source(one.apply).encode()).hexdigest()[:16] for _, one in _OUTSIDE}


def _source(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)
