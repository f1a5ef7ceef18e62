"""Tables of the README and the documentation, out of benchmarks/results: each function returns Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PLAIN = "ONNX Runtime, plain export"

# Language -> heads of the tables.
_WORDS = {
    "en": {
        "peers": ("", "precision", "latency", "top-1", "agreement", "MiB"),
        "speed": ("ViT-B/16", "precision", "latency", "MiB"),
        "accuracy": ("command", "artifact", "top-1", "change, points", "agreement", "MiB"),
    },
    "zh": {
        "peers": ("", "精度", "延迟", "top-1", "一致率", "MiB"),
        "speed": ("ViT-B/16", "精度", "延迟", "MiB"),
        "accuracy": ("命令", "产物", "top-1", "变化（百分点）", "一致率", "MiB"),
    },
}
# Language -> what stands above a part.
_SAID = {
    "en": {
        "accuracy": "What the commands give, {model}, {test_images} images (`benchmarks/accuracy_table.py`):",
        "demo": "What they print in the demo (`benchmarks/demo_record.py`):",
    },
    "zh": {
        "accuracy": "各命令的结果，{model}，{test_images} 张图像（`benchmarks/accuracy_table.py`）：",
        "demo": "在演示中的输出（`benchmarks/demo_record.py`）：",
    },
}


def load(name: str) -> dict[str, Any]:
    """A result by its file's name."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The measured rows of `peers/run.py`, slowest first, with `ratio` to ONNX Runtime's plain FP32 export."""
    rows = [row for row in result["rows"] if row["status"] == "ok"]
    base = next(row for row in rows if row["name"] == PLAIN and row["precision"] == "FP32")["median_ms"]
    return sorted(({**row, "ratio": row["median_ms"] / base} for row in rows), key=lambda row: -row["ratio"])


def markdown(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _name(row: dict[str, Any]) -> str:
    return f"**{row['name']}**" if row["ours"] else row["name"]


# What the README shows of the peers: the usual starting points, the best peer, ours.
_SHORT = ("ONNX Runtime, plain", "ONNX Runtime quantize", "OpenVINO, NNCF TRANSFORMER", "vitedge")


def peers(language: str = "en", part: str = "short") -> str:
    """ViT-Ti/16 against the peers: latency over ONNX Runtime's plain FP32, top-1, agreement, size."""
    rows = measured(load("peers-vit_ti_16.json"))
    if part == "short":
        rows = [row for row in rows if row["name"].startswith(_SHORT) and row["precision"] != "BF16"]
    cells = []
    for r in rows:
        figures = [f"{r['ratio']:.2f}", f"{r['top1']:.3f}", f"{r['agreement']:.3f}", f"{r['size_mib']:.1f}"]
        cells.append([_name(r), r["precision"], *figures])
    return markdown(_WORDS[language]["peers"], cells)


def peers_speed(language: str = "en") -> str:
    """ViT-B/16 with random weights: speed and size."""
    rows = measured(load("peers-vit_b_16.json"))
    cells = [[_name(r), r["precision"], f"{r['ratio']:.2f}", f"{r['size_mib']:.1f}"] for r in rows]
    return markdown(_WORDS[language]["speed"], cells)


# What the README leaves out; static INT8 stands among the peers there.
_MORE = ("--quantize static", "--quantize static --preset full", "--prune 0.27", "--prune 0.4")
_MORE += ("--prune 0.3 --quantize static",)


def accuracy(language: str = "en", part: str = "whole") -> str:
    """What `accuracy_table.py` measured, a command a row; nothing where there is no result yet. part: "short" for the
    README, "pruning" for the rows with --prune."""
    if not (RESULTS / "accuracy-vit_ti_16.json").is_file():
        return ""
    result = load("accuracy-vit_ti_16.json")
    cells = []
    for row in result["rows"]:
        if part == "short" and row["options"] in _MORE:
            continue
        if part == "pruning" and row["options"] and "--prune" not in row["options"]:
            continue
        options = f"`{row['options']}`" if row["options"] else "-"
        delta = "-" if row["delta_points"] is None else f"{row['delta_points']:+.1f}"
        agreement = "-" if row["agreement"] is None else f"{row['agreement']:.3f}"
        cells.append([options, row["artifact"], f"{row['top1']:.3f}", delta, agreement, f"{row['size_mib']:.1f}"])
    said = _SAID[language]["accuracy"].format(**result)
    return f"{said}\n\n{markdown(_WORDS[language]['accuracy'], cells)}"


# What the README leaves out of a command's output: what stands before the line that begins so.
_FROM = {"compress": "Pruned:"}


def demo(language: str = "en", part: str = "whole") -> str:
    """What the three commands print in the demo; nothing where it was not recorded yet."""
    if not (RESULTS / "demo.json").is_file():
        return ""
    blocks = []
    for one in load("demo.json")["commands"]:
        if one["shown"]:
            lines = [line.rstrip() for line in one["output"].strip().splitlines()]
            begins = _FROM.get(one["command"].split()[1]) if part == "short" else None
            if begins:
                first = next((at for at, line in enumerate(lines) if line.startswith(begins)), 0)
                lines = ["[...]", *lines[first:]] if first else lines
            blocks.append("\n".join([f"$ {one['command']}", *lines]))
    return _SAID[language]["demo"] + "\n\n```text\n" + "\n\n".join(blocks) + "\n```"


def measured_on(name: str = "peers") -> str:
    """A line: the machine, the versions and the method of a result."""
    result = load(f"{name}-vit_ti_16.json")
    machine = result["machine"]
    versions: dict[str, str] = {}
    for found in result["versions"].values():
        versions |= {key: version for key, version in found.items() if key not in versions}
    return (
        f"{result['threads']} threads on {machine['processors']} processors ({machine['machine']}: "
        f"{', '.join(machine['isa'])}), batch 1, {result['rounds']} rounds of {result['calls']} inferences in turns, "
        f"{result['calibration_images']} calibration and {result['test_images']} test images; "
        + ", ".join(f"{key} {version}" for key, version in sorted(versions.items()))
        + "."
    )
