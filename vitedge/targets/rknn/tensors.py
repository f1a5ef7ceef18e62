"""The compiler's tensors, by the part of the ViT that they belong to.

The compiler renames what it fuses: `block3.mlp.gelu_tp-rs`, `block0.attention.context.heads_2sdpa_q_softmax`. The
names of our graph stay in front, so a tensor belongs to the part whose name it begins with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitedge.targets.base import CostTable

# What lies outside the blocks' products.
STREAM, NORM, PATCH, HEAD = "stream", "norm", "patch", "head"

_PARTS = (
    (re.compile(r"block(\d+)\.(residual[12]|merged|cls)(?![a-z])"), STREAM),
    (re.compile(r"(patches|embed|pre(?!_norm))(?![a-z])"), STREAM),
    (re.compile(r"(block(\d+)\.norm[12]|norm|pre_norm|cls\.flat)(?![a-z])"), NORM),
    (re.compile(r"patch_embed(?!\.space_to_depth)"), PATCH),
    (re.compile(r"(head|pool|logits)(?![a-z])"), HEAD),
)
_BLOCK = re.compile(r"block(\d+)\.(attention|mlp)(?![a-z])")


def part_of(tensor: str) -> str | None:
    """stream, norm, patch, head, or "block3.mlp", "block3.attention"; None for the input."""
    for pattern, part in _PARTS:
        if pattern.match(tensor):
            return part
    match = _BLOCK.match(tensor)
    return f"block{match[1]}.{match[2]}" if match else None


def by_part(tensors: Iterable[str], constants: Iterable[str]) -> dict[str, list[str]]:
    """Part -> its tensors. Constants are left out: the compiler refuses their names in an assignment."""
    fixed = set(constants)
    parts: dict[str, list[str]] = {}
    for tensor in tensors:
        part = part_of(tensor)
        if part and tensor not in fixed and not tensor.endswith("_int8"):
            parts.setdefault(part, []).append(tensor)
    return parts


def cycles_of_parts(table: CostTable) -> dict[str, int]:
    """Part -> the vendor's cycles of its layers, which are named "Conv:block3.mlp.gelu"."""
    found: dict[str, int] = {}
    for row in table.rows:
        if (part := part_of(row.name.split(":", 1)[-1])) is not None:
            found[part] = found.get(part, 0) + (row.cycles or 0)
    return found
