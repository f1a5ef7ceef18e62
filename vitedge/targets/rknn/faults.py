"""What the compiler's log and layer table say of a build that will compute wrong, or slowly, without an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitedge.errors import VitedgeError
from vitedge.targets.base import CostTable
from vitedge.targets.rknn.cost import cpu_fallbacks

# "E RKNN: [13:48:46.380] REGTASK: The bit width of field value exceeds the limit, target: lite, offset: 0x1028, ..."
_OVERFLOW = re.compile(r"REGTASK: The bit width of field value exceeds the limit[^\n]*")
# As librknnc.so 2.5.0 words it.
_REASON = re.compile(
    r"^(?:.*?\]\s*)?(.*(?:fall ?back|turn to Target:CPU|Transpose is not support on NPU).*)$", re.IGNORECASE | re.M
)
_LEVELS = (2, 1, 0)
# Chips of the vendor that vitedge's runner is not for, and why; where LayerNorm runs is from toolkit 2.5.0's tables.
_NORM = "Its LayerNorms would run on its CPU"
REFUSED = dict.fromkeys(
    ("rv1103", "rv1103b", "rv1106", "rv1106b"), f"{_NORM}, a 32-bit ARM that there is no rknn-toolkit-lite2 for."
) | {"rk2118": f"{_NORM}."}
# What the compiler adds to the name of a tensor: of transposes, reshapes, squeezes, copies.
_ADDED = re.compile(r"(?:[-_](?:rs|tp|sw|mm|ConvAdd)|#\d+)+$")
_CONVERTED = re.compile(r"^(?P<tensor>.+)__cvt_(?P<source>[a-z0-9]+)_(?P<target>[a-z0-9]+)$")


def refuse_overflow(log: str) -> None:
    """Raises VitedgeError where a layer does not fit into the NPU's registers: the compiler goes on, and the artifact
    computes wrong or hangs (airockchip/rknn-toolkit2#123, #315, #419)."""
    if match := _OVERFLOW.search(log):
        raise VitedgeError(
            "A layer does not fit into the NPU's registers.",
            f"The compiler says: {match[0]}. It goes on all the same, and the artifact would compute wrong.",
            "Build with --attention parts, with a lower --optimization-level, or with another version of the toolkit "
            "(`vitedge toolchain install rknn --version VERSION`).",
            exit_code=1,
        )


def fallback_warnings(table: CostTable, log: str, before: Sequence[str] | None) -> list[str]:
    """A sentence on the layers that run on the CPU, those first that did not before, with the compiler's reasons.

    before: the layers that ran there in the build that this one takes the place of; None where there was none.
    """
    layers = cpu_fallbacks(table)
    if not layers:
        return []
    reasons = list(dict.fromkeys(line.strip() for line in _REASON.findall(log)))
    why = f" The compiler says: {' | '.join(reasons[:3])}" if reasons else ""
    new = [layer for layer in layers if before is not None and layer not in before]
    if new:
        return [f"{len(new)} layers run on the CPU that did not before: {_few(new)}.{why}"]
    return [f"{len(layers)} layers run on the CPU: {_few(layers)}.{why}"]


def highest_level(agrees: Callable[[int], bool]) -> int | None:
    """The highest level of optimisation below the compiler's own (3) at which it computes right, or None.

    A fusion that computes wrong belongs to one level (airockchip/rknn-toolkit2#460), so each is tried.
    """
    return next((level for level in _LEVELS if agrees(level)), None)


def platform_warnings(platform: str, table: CostTable) -> list[str]:
    """What is known of that chip from the field."""
    if platform == "rk3576" and any(row.op.startswith("exSDPAttention") for row in table.rows):
        return [
            "On an RK3576 the fused attention (exSDPAttention) returned zeros without an error "
            "(airockchip/rknn-toolkit2#574, runtimes 2.3.2 and 2.4.2a2). Check it on the board with a pack of "
            "`vitedge pack`, or build with --attention parts."
        ]
    return []


def not_float16(table: CostTable, tensors: Sequence[str]) -> list[str]:
    """Those of the tensors asked for in float16 that the table has in another type (rknn-toolkit2#10).

    A layer's row tells the type of what it makes, and a conversion behind it what it converts from. Tensors inside a
    fused layer have no row of their own, and are not judged.
    """
    made: dict[str, set[str]] = {}
    for row in table.rows:
        name = row.name.partition(":")[2] or row.name
        if match := _CONVERTED.match(name):
            made.setdefault(_base(match["tensor"]), set()).add(match["source"])
        elif row.op != "exNorm":  # it computes in float16 whatever its row says, which tells of its input and output
            made.setdefault(_base(name), set()).add(row.dtype)
    return [tensor for tensor in tensors if (types := made.get(_base(tensor))) and "float16" not in types]


def _base(tensor: str) -> str:
    """The name that our graph has for it."""
    return _ADDED.sub("", tensor)


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def previous_fallbacks(metadata: Mapping[str, Any] | None) -> list[str] | None:
    """The layers on the CPU in the metadata of an earlier build."""
    found = (metadata or {}).get("cpu_fallbacks")
    return list(found) if isinstance(found, list) else None
