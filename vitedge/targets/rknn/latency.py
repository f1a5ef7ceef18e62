"""What the layers of a ViT take on Rockchip's NPU: from one published profile, or from a board's own.

The compiler's table has no cycles for attention, LayerNorm and GELU, where most of the time goes. A board tells: with
`rknn.init_runtime(target=..., perf_debug=True)`, `rknn.eval_perf()` prints the same table with a column "Time(us)".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vitedge.cost.model import LatencyModel
from vitedge.cost.terms import Kind
from vitedge.errors import VitedgeError

# airockchip/rknn_model_zoo#366: RK3588, one core, FP16, DINOv2-S, four windows of 257 tokens. Microseconds of a layer
# and what it computes: a Linear 384 -> 384 over 1028 rows 410, the same to 1536 with GELU 2091, LayerNorm 768, fused
# attention of 24 heads 5971.
_PROFILE = """
30 Conv FLOAT16 NPU (4,384,1,257),(384,384,1,1),(384) (4,384,1,257) 79288/313344/313344 410 1060 Conv:value
130 exSDPAttention FLOAT16 NPU (24,64,1,257),(24,64,1,257),... (24,64,1,257) 0/0/0 5971 2313 sdpa
133 exNorm FLOAT16 NPU (4,384,1,257),(1,384,1,1),... (4,384,1,257) 0/0/0 768 774 exNorm:norm2
134 ConvExGelu FLOAT16 NPU (4,384,1,257),(1536,384,1,1),(1536) (4,1536,1,257) 217017/1253376/1253376 2091 1929 fc1
"""
PUBLISHED = (
    "one published profile (airockchip/rknn_model_zoo#366: RK3588, one core, FP16); INT8 products taken as twice as "
    "fast, all else as fast. Of SigLIP-B/16 in FP16 it says 75 ms, and about 130 are published: trust the order, not "
    "the digits."
)
_ROW = re.compile(
    r"(?P<id>\d+)\s+(?P<op>[A-Za-z]\S*)\s+(?P<dtype>[A-Z]+\d*)\s+(?P<device>NPU|CPU|GPU)\s+(?P<shapes>\S.*?)\s+"
    r"\d+/\d+/\d+\s+(?P<us>\d+)\s"
)
_SHAPE = re.compile(r"\(([\d,]+)\)")


@dataclass(frozen=True)
class Layer:
    """A row of the table: microseconds, and the shapes that it shows, the output's last."""

    op: str
    dtype: str
    device: str
    us: float
    shapes: tuple[tuple[int, ...], ...]


def parse_perf(text: str) -> list[Layer]:
    """The rows of the last table with times that `eval_perf` printed. Raises VitedgeError where there is none."""
    found = []
    for line in text[max(0, text.rfind("Network Layer Information Table")) :].splitlines():
        if match := _ROW.search(line):
            shapes = tuple(tuple(map(int, s.strip(",").split(","))) for s in _SHAPE.findall(match["shapes"]))
            found.append(Layer(match["op"], match["dtype"], match["device"], float(match["us"]), shapes))
    if not any(layer.us for layer in found):
        raise VitedgeError(
            "There are no times of layers in this text.",
            "The table of `eval_perf` has the column Time(us) where the runtime was started with perf_debug.",
            "On a PC with the board connected: rknn.init_runtime(target='rk3588', perf_debug=True); rknn.eval_perf().",
        )
    return found


def coefficients(layers: list[Layer]) -> dict[Kind, float]:
    """Nanoseconds a unit of each kind of work that the rows have, the time of a kind over its work.

    The activation is what a Linear with GELU takes longer than one without.
    """
    work: dict[Kind, float] = {}
    spent: dict[Kind, float] = {}
    gelu: list[tuple[float, float, float]] = []

    def add(kind: Kind, amount: float, us: float) -> None:
        work[kind], spent[kind] = work.get(kind, 0.0) + amount, spent.get(kind, 0.0) + 1e3 * us

    for layer in layers:
        if layer.device != "NPU" or not layer.shapes:
            continue
        out = layer.shapes[-1]
        if layer.op.startswith("Conv") and len(layer.shapes) >= 3 and layer.shapes[1][2:] == (1, 1):
            macs = math.prod(out) * layer.shapes[1][1]
            if "Gelu" in layer.op:
                gelu.append((macs, math.prod(out), 1e3 * layer.us))
            else:
                add("linear", macs, layer.us)
        elif layer.op == "exSDPAttention":
            keys = layer.shapes[1][-1] if len(layer.shapes) > 2 else layer.shapes[0][-1]
            add("attention", 2 * math.prod(out) * keys, layer.us)
        elif layer.op == "exNorm":
            add("norm", math.prod(out), layer.us)
    found: dict[Kind, float] = {kind: spent[kind] / work[kind] for kind in work}
    if gelu and "linear" in found:
        rest = sum(ns - macs * found["linear"] for macs, _, ns in gelu)
        found["activation"] = max(0.0, rest / sum(elements for _, elements, _ in gelu))
    return found


def published(precision: str, platform: str | None) -> LatencyModel:
    """The estimate from the published profile, for "fp16" or "int8". The patches are Linears after the rewrite."""
    found = coefficients(parse_perf(_PROFILE))
    if precision.startswith("int8"):
        found["linear"] /= 2
    found["patches"] = found["linear"]
    values = {str(kind): value for kind, value in found.items()}
    return LatencyModel(
        target="rknn", precision=precision, platform=platform, estimated=True, coefficients=values, source=PUBLISHED
    )


def from_board(text: str, precision: str, platform: str | None, source: str) -> LatencyModel:
    """The model of a board's own profile, as `eval_perf` printed it. Raises VitedgeError where rows are missing."""
    found = coefficients(parse_perf(text))
    missing = [kind for kind in ("linear", "attention", "norm") if kind not in found]
    if missing:
        raise VitedgeError(
            f"The profile has no row of {', '.join(missing)}.", "", "Profile a ViT that vitedge built, as a whole."
        )
    found.setdefault("patches", found["linear"])
    values = {str(kind): value for kind, value in found.items()}
    return LatencyModel(target="rknn", precision=precision, platform=platform, coefficients=values, source=source)
