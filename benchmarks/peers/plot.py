"""Latencies as bars, with the agreement beside them where it was measured, as an SVG. Runs in the environment `plot`.

python plot.py RESULT.json OUT.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    rows = sorted((r for r in result["rows"] if r["status"] == "ok"), key=lambda r: -r["median_ms"])
    base = next(r for r in rows if r["name"].startswith("ONNX Runtime, plain"))["median_ms"]
    names = [f"{r['name']}  {r['precision']}" for r in rows]
    ratios = [r["median_ms"] / base for r in rows]
    plt.rcParams.update({"svg.hashsalt": "vitedge", "font.size": 9})
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) + 1))
    colors = ["#1f6feb" if r["ours"] else "#9aa4b2" for r in rows]
    bars = axes.barh(names, ratios, color=colors)
    for bar, row, ratio in zip(bars, rows, ratios, strict=True):
        agreement = row.get("agreement")
        text = f"{ratio:.2f}" + ("" if agreement is None else f"   agreement {agreement:.3f}")
        axes.text(ratio, bar.get_y() + bar.get_height() / 2, f" {text}", va="center")
    axes.set_xlim(0, max(ratios) * (1.45 if result["test_images"] else 1.1))
    axes.set_xlabel("median latency / ONNX Runtime FP32 on the plain export (less is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={"Date": None})


if __name__ == "__main__":
    main()
