"""The drawing of accuracy against latency, as SVG text: no library, the same bytes everywhere."""

from __future__ import annotations

from html import escape
from typing import Any

import tables

WIDTH, HEIGHT = 860, 470
LEFT, RIGHT, TOP, BREAK, BOTTOM = 66, 24, 46, 352, 64
# Top-1 that the upper part shows; what is below stands in the strip under the break.
LOW, HIGH = 0.60, 0.76
LIGHT_AND_DARK = """<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1c2024 }
.soft { fill: #5f6872 } .grid { stroke: #dfe2e5 } .ours { fill: #0b63b5 } .peer { fill: #9aa4ae }
.name-ours { font-weight: 600; fill: #0b63b5 } .title { font-size: 15px; font-weight: 600 }
rect.ground { fill: #fdfdfc }
.lead { stroke: #9aa4ae; stroke-width: .8 } .line { stroke: #5f6872; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) { text { fill: #e8eaec } .soft { fill: #9aa4ae } .grid { stroke: #30363c }
.ours { fill: #6cb2f5 } .name-ours { fill: #6cb2f5 } .peer { fill: #7c868f }
rect.ground { fill: #14171a } .line { stroke: #9aa4ae } }
</style>"""
# Shorter names, for the labels.
_SHORT = {
    "ONNX Runtime, plain export": "ONNX Runtime",
    "OpenVINO, plain export": "OpenVINO",
    "ONNX Runtime quantize_static, MatMul U8S8": "quantize_static, MatMul only",
    "ONNX Runtime quantize_static, defaults": "quantize_static",
    "ONNX Runtime quantize_dynamic": "quantize_dynamic",
    "Optimum, ONNX Runtime, avx512_vnni static": "Optimum static",
    "Neural Compressor, static": "Neural Compressor",
    "OpenVINO, NNCF TRANSFORMER": "NNCF, transformer",
    "OpenVINO, NNCF defaults": "NNCF, defaults",
    "vitedge --prune 0.3, ONNX Runtime": "vitedge --prune 0.3, ORT",
    "vitedge --prune 0.3, OpenVINO": "vitedge --prune 0.3, OpenVINO",
    "vitedge, ONNX Runtime": "vitedge, ORT",
}


def drawings() -> dict[str, str]:
    """File name -> SVG."""
    return {"accuracy-latency.svg": accuracy_latency(tables.load("peers-vit_ti_16.json"))}


def _x(ratio: float) -> float:
    return LEFT + (ratio - 0.25) / (1.05 - 0.25) * (WIDTH - LEFT - RIGHT)


def _y(top1: float) -> float:
    return BREAK - 22 - (top1 - LOW) / (HIGH - LOW) * (BREAK - 22 - TOP)


def accuracy_latency(result: dict[str, Any]) -> str:
    """Top-1 against latency, over that of ONNX Runtime's plain FP32. PyTorch, which is slower, is left out."""
    rows = [row for row in tables.measured(result) if row["ratio"] <= 1.0 and row.get("top1") is not None]
    parts = [f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="8"/>']
    head = f"ViT-Ti/16: top-1 against latency, batch 1, {result['threads']} CPU threads"
    parts.append(f'<text class="title" x="{LEFT}" y="26">{head}</text>')
    for step in range(3, 11):
        at = _x(step / 10)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="soft" x="{at:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{step / 10:.1f}</text>'
        )
    for step in range(60, 77, 4):
        at = _y(step / 100)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 9}" y="{at + 4.5:.1f}" text-anchor="end">{step / 100:.2f}</text>')
    full = next(row["top1"] for row in rows if row["name"] == tables.PLAIN)
    parts.append(f'<line class="line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(full):.1f}" y2="{_y(full):.1f}"/>')
    parts.append(f'<line class="line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{BREAK}" y2="{BREAK}"/>')
    parts.append(f'<text class="soft" x="{LEFT - 9}" y="{BREAK + 34}" text-anchor="end">&lt; 0.01</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    caption = "median latency over that of ONNX Runtime FP32 (less is faster)"
    parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{caption}</text>')
    parts.append(f'<text transform="translate(17 {(TOP + BREAK) / 2}) rotate(-90)" text-anchor="middle">top-1</text>')
    parts += _points(rows)
    body = "\n".join(parts)
    title = "Top-1 against latency: vitedge and other tools"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}">\n{LIGHT_AND_DARK}\n{body}\n</svg>\n'
    )


def _points(rows: list[dict[str, Any]]) -> list[str]:
    """Dots, and a name beside each where nothing else is."""
    placed: list[tuple[float, float, float, float]] = []
    dots, names = [], []
    spots = []
    for row in rows:
        broken = row["top1"] < LOW
        spots.append((row, _x(row["ratio"]), BREAK + 30 if broken else _y(row["top1"])))
        x, y = spots[-1][1:]
        placed.append((x - 6, y - 6, x + 6, y + 6))
    for row, x, y in sorted(spots, key=lambda one: not one[0]["ours"]):
        kind = "ours" if row["ours"] else "peer"
        tip = f"{row['name']} {row['precision']}: top-1 {row['top1']:.3f}, latency {row['ratio']:.2f}"
        dots.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{escape(tip)}</title></circle>')
        text = f"{_SHORT.get(row['name'], row['name'])} {row['precision']}"
        dx, dy = _place(len(text) * (8.0 if row["ours"] else 7.1), x, y, placed)
        if abs(dy - 4.5) > 24:
            names.append(f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{x + dx:.1f}" y2="{y + dy - 5:.1f}"/>')
        style = ' class="name-ours"' if row["ours"] else ""
        names.append(f'<text{style} x="{x + dx:.1f}" y="{y + dy:.1f}">{escape(text)}</text>')
    return names + dots


def _place(wide: float, x: float, y: float, placed: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Where a name of that width covers neither dots nor names, from the dot; adds its box to `placed`."""
    places = [(11.0, 4.5), (-11 - wide, 4.5)]
    for step in (20, 36, 52, 68, 84):
        places += [(dx, sign * step + 4.5) for sign in (-1, 1) for dx in (-wide / 2, 4.0, -4 - wide)]
    for dx, dy in places:
        box = (x + dx, y + dy - 11, x + dx + wide, y + dy + 4)
        inside = box[0] >= LEFT and box[2] <= WIDTH - 4 and box[1] >= TOP - 14 and box[3] <= HEIGHT - BOTTOM + 2
        same = (box[1] - BREAK) * (y - BREAK) > 0
        free = not any(box[0] < p[2] and p[0] < box[2] and box[1] < p[3] and p[1] < box[3] for p in placed)
        if inside and same and free:
            placed.append(box)
            return dx, dy
    return 11.0, 4.5
