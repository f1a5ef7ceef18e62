"""What the README's commands give in accuracy: compress, build and bench of a trained model, a row an artifact.

    python benchmarks/accuracy_table.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \\
        --data ../shared/data/val --classes ../shared/data/classes.txt --json benchmarks/results/accuracy-vit_ti_16.json

Rows that the JSON has already, of the same command, are kept; --fresh measures all. No latency: see peers/run.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from vitedge import __version__
from vitedge.files import write_json

# Options of `compress`, and what is built from it: target, precision.
ROWS = (
    ("--quantize static", (("onnxruntime", "int8"), ("openvino", "int8"))),
    ("--quantize static --preset full", (("onnxruntime", "int8"),)),
    ("--prune 0.27", (("onnxruntime", "fp32"),)),
    ("--prune 0.3", (("onnxruntime", "fp32"),)),
    ("--prune 0.4", (("onnxruntime", "fp32"),)),
    ("--prune 0.5", (("onnxruntime", "fp32"),)),
    ("--prune 0.3 --quantize static", (("onnxruntime", "int8"), ("openvino", "int8"))),
)


def vitedge(*arguments: str) -> None:
    print("$ vitedge", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "vitedge", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(o: argparse.Namespace, options: str, builds: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    """The rows of one run folder; the first of them is the source."""
    run = str(o.work / options.replace("--", "").replace(" ", "-"))
    compress = ["compress", "--model", o.model, "--calib", o.calib, *options.split()]
    compress += ["--classes", o.classes] if o.classes else []
    vitedge(*compress, "--run", run)
    for target, precision in builds:
        vitedge("build", "--target", target, "--precision", precision, "--run", run)
    result = o.work / "bench.json"
    short = ["--seconds", "0.1", "--launches", "2"]
    vitedge("bench", "--data", o.data, "--run", run, "--json", str(result), *short)
    rows = []
    for row in json.loads(result.read_text())["rows"]:
        source = row["role"] == "source"
        delta = row["delta_top1"]
        rows.append(
            {
                "options": "" if source else options,
                "command": f"vitedge {shlex.join(compress)}".replace(str(Path(o.calib).parent) + "/", ""),
                "artifact": "source" if source else row["artifact"],
                "top1": row["top1"],
                "top1_ci95": row["top1_ci95"],
                "delta_points": None if source or delta is None else 100 * delta,
                "agreement": None if source else row["agreement"],
                "sqnr_db": row["sqnr_db"],
                "size_mib": row["size_mib"],
                "vitedge": __version__,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--calib", "--data", "--classes"):
        parser.add_argument(name, required=name != "--classes")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("accuracy-runs"))
    parser.add_argument("--only", help="the rows whose options are exactly these", action="append")
    parser.add_argument("--target", help="these targets alone", action="append")
    parser.add_argument("--fresh", action="store_true")
    o = parser.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = json.loads(o.json.read_text())["rows"] if o.json.is_file() and not o.fresh else []
    images = 0
    for options, built in ROWS:
        builds = tuple(one for one in built if o.target is None or one[0] in o.target)
        if not builds or (o.only and options not in o.only):
            continue
        rows = measure(o, options, builds)
        images = json.loads((o.work / "bench.json").read_text())["data"]["n"]
        found = [row for row in found if row["options"] not in ("", options)]
        found = [rows[0], *found, *rows[1:]]
        order = ["", *(options for options, _ in ROWS)]
        found.sort(key=lambda row: order.index(row["options"]))
        write_json(o.json, {"model": Path(o.model).name, "test_images": images, "rows": found})


if __name__ == "__main__":
    main()
