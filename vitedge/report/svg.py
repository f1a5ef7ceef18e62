"""Plots as SVG text: drawn without a script, so that they show on paper and offline. Colours are the page's
own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vitedge.bench.schema import Latency

WIDTH, HEIGHT = 470, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44


@dataclass(frozen=True)
class Point:
    """One artifact in a plot: `low` and `high` are the interval of y; `color` numbers the page's colours."""

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    color: int = 0
    front: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels and knows its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1, 1.5, 2, 3, 4, 5, 7)):
                found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) >= 3:
                    return found
        step = nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def nice_step(span: float, wanted: int = 6) -> float:
    """1, 2 or 5 times a power of ten, so that about `wanted` of them make `span`."""
    rough = span / wanted if span > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def fit(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    most: float = math.inf,
) -> Axis:
    """An axis that holds the values with a margin, and ends little above `most`, which no value passes."""
    low, high = min(values), max(values)
    if log and low > 0:
        margin = max((high / low) ** 0.08, 1.08)
        return Axis(low / margin, high * margin, start, end, log=True)
    margin = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return Axis(0.0 if zero else low - margin, min(high + margin, most + 0.2 * margin), start, end)


def number(value: float) -> str:
    """A tick's label: as few digits as tell it."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def scatter(points: Sequence[Point], x_name: str, y_name: str, title: str) -> str:
    """Points with their intervals and the Pareto front. Each has its figures in `data-tip` for the page's
    script."""
    if not points:
        return ""
    wide = max(p.x for p in points) > 8 * min(p.x for p in points) > 0
    x = fit([p.x for p in points], LEFT, WIDTH - RIGHT, log=wide)
    spans = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    y = fit(spans, HEIGHT - BOTTOM, TOP, most=100.0 if "(%)" in y_name else math.inf)
    parts = [_frame(x, y, x_name, y_name)]
    steps = sorted((p for p in points if p.front), key=lambda p: p.x)
    if len(steps) > 1:
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in steps)
        parts.append(f'<polyline class="front" points="{path}"/>')
    taken = [(x(p.x) - 7, y(p.y) - 7, x(p.x) + 7, y(p.y) + 7) for p in points]
    for p in points:
        at, height = x(p.x), y(p.y)
        if p.low is not None and p.high is not None:
            span = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y(p.low):.1f}" y2="{y(p.high):.1f}"'
            parts.append(f'<line class="span c{p.color}" {span}/>')
        hollow = "" if p.front else " hollow"
        tip = escape(p.detail or p.label, quote=True)
        parts.append(
            f'<circle class="point c{p.color}{hollow}" cx="{at:.1f}" cy="{height:.1f}" r="5.5" tabindex="0" '
            f'data-tip="{tip}"><title>{tip}</title></circle>'
        )
    for p in points:
        parts.append(_label(p.label, x(p.x), y(p.y), taken))
    return _svg(title, "".join(parts), WIDTH, HEIGHT)


def strips(rows: Sequence[tuple[str, int, Latency]], title: str) -> str:
    """Latency distributions, one line an artifact: every kept time as a faint mark, box from p50 to p90,
    p95, p99."""
    if not rows:
        return ""
    step, head = 46, 8
    height = head + step * len(rows) + 36
    values = [v for _, _, d in rows for v in (d.min, d.p99)]
    x = fit(values, 10, WIDTH - 12, log=max(values) > 8 * min(values) > 0)
    parts = []
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{head}" y2="{height - 32}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 18}" text-anchor="middle">{number(value)}</text>')
    for place, (label, color, d) in enumerate(rows):
        top = head + place * step
        middle = top + 30
        parts.append(f'<text class="name" x="10" y="{top + 14}">{escape(label)}</text>')
        marks = "".join(f"M{x(v):.1f},{middle - 8}v16" for v in d.samples if v <= d.p99)
        parts.append(f'<path class="mark c{color}" d="{marks}"/>')
        parts.append(
            f'<rect class="box c{color}" x="{x(d.p50):.1f}" y="{middle - 6}" height="12" '
            f'width="{max(1.5, x(d.p90) - x(d.p50)):.1f}"/>'
        )
        for key, value in (("p50", d.p50), ("p95", d.p95), ("p99", d.p99)):
            at = x(value)
            tip = f"{label} {key} {value:.2f} ms"
            parts.append(
                f'<line class="tail c{color} {key}" x1="{at:.1f}" x2="{at:.1f}" y1="{middle - 10}" y2="{middle + 10}" '
                f'tabindex="0" data-tip="{escape(tip, quote=True)}"><title>{escape(tip)}</title></line>'
            )
    parts.append(f'<text class="axis" x="{WIDTH / 2}" y="{height - 3}" text-anchor="middle">latency (ms)</text>')
    return _svg(title, "".join(parts), WIDTH, height)


def _frame(x: Axis, y: Axis, x_name: str, y_name: str) -> str:
    parts = []
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>'
        )
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    turned = f'transform="rotate(-90 13 {middle_y})"'
    parts.append(f'<text class="axis" x="13" y="{middle_y}" {turned} text-anchor="middle">{escape(y_name)}</text>')
    return "".join(parts)


def _label(text: str, at: float, height: float, taken: list[tuple[float, float, float, float]]) -> str:
    """The point's name where it covers nothing; left out where there is no such place (its tip has it)."""
    wide = 6.9 * len(text)
    for dx, dy in ((10, 4), (-10 - wide, 4), (-wide / 2, -11), (-wide / 2, 20), (8, -10), (8, 17), (-8 - wide, 17)):
        box = (at + dx, height + dy - 10, at + dx + wide, height + dy + 3)
        inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
        if inside and not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            taken.append(box)
            return f'<text class="name" x="{box[0]:.1f}" y="{height + dy:.1f}">{escape(text)}</text>'
    return ""


def _svg(title: str, body: str, width: int, height: int) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{body}</svg>"
    )
