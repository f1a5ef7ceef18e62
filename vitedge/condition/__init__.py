"""Transforms of the float model that leave its function, and let any compiler downstream quantise it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitedge.condition.options import ConditionOptions, ConditionReport, Step
from vitedge.condition.transform import Applied, Transform, register

if TYPE_CHECKING:
    from vitedge.condition.apply import condition

__all__ = ["Applied", "ConditionOptions", "ConditionReport", "Step", "Transform", "condition", "register"]


def __getattr__(name: str) -> Any:
    # torch is loaded with the transforms, not with their options.
    if name == "condition":
        from vitedge.condition.apply import condition

        return condition
    raise AttributeError(name)
