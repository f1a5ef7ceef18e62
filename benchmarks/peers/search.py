"""The front that `vitedge search` found, and what NNCF's own search finds for the same target, model and images.

    vitedge search --target openvino --model M --calib DIR --out SEARCH --minutes 30
    python benchmarks/peers/search.py SEARCH --model M --calib DIR --data DIR --json OUT.json [--calib-size 512]

NNCF's search (`quantize_with_accuracy_control`) gets all the images that ours was given, fitted and held out, and as
much time as it takes, which is written down. All are then timed in turns in one run, batch 1, and judged on the
labelled images. One line a model; then, for each of NNCF's, how many points of our front are no slower and no worse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from catalogue import Entry
from convert import DROPS
from environments import python_of
from run import Process, judge, make, measure, size_of
from sources import prepare

EAGER = Entry("PyTorch eager", "vitedge", "", "torch", "FP32")
PLAIN = Entry("ONNX Runtime, plain export", "vitedge", "plain", "onnxruntime", "FP32")
NNCF = Entry("OpenVINO, NNCF TRANSFORMER", "openvino", "nncf_transformer", "openvino", "INT8")
SEARCHED = Entry("NNCF's search", "openvino", "nncf_search", "openvino", "INT8")


def front(search: Path) -> list[tuple[Entry, dict[str, Any]]]:
    """The points of a front as rows: slowest first."""
    found = json.loads((search / "search.json").read_text())
    rows = []
    for key in found["front"]:
        point = found["points"][key]
        folder = search / point["measured"]["run"] / "build" / point["measured"]["artifact"]
        entry = Entry(f"vitedge search: {point['name']}", "vitedge", "", "vitedge", "", ours=True)
        rows.append((entry, {"artifact": str(folder), "macs_share": point["measured"]["macs_share"]}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path)
    parser.add_argument("--model", required=True)
    for name in ("--calib", "--data", "--json"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--calib-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "vitedge-peers")
    options = parser.parse_args()
    work = options.work.resolve() / f"search-{Path(options.model).name}"
    sources = prepare(
        options.model, options.calib, options.calib_size, options.data, options.classes, work, True, pruned=False
    )
    rows: list[tuple[Entry, dict[str, Any]]] = [
        (entry, make(entry, sources, work, options.work.resolve())) for entry in (EAGER, PLAIN, NNCF)
    ]
    searched = make(SEARCHED, sources, work, options.work.resolve())
    if searched["status"] != "ok":
        raise SystemExit(f"NNCF's search: {searched['reason']}")
    for drop in DROPS:
        artifact = Path(searched["artifact"]).parent.parent / f"{drop:g}" / "model.xml"
        own = {
            "name": f"NNCF's search, {100 * drop:g} points",
            "artifact": str(artifact),
            "size_mib": size_of(artifact),
        }
        rows.append((SEARCHED, searched | own))
    python, _ = python_of("vitedge", options.work)
    for entry, row in front(options.search.resolve()):
        row |= {"name": entry.name, "precision": "", "python": str(python)}
        rows.append((entry, row | {"size_mib": size_of(Path(row["artifact"]))}))
    with contextlib.ExitStack() as stack:
        running = [(row, stack.enter_context(Process(entry, row, options.threads, sources))) for entry, row in rows]
        measure(running, options.rounds, options.calls)
        judge(running, sources, work)
    base = next(row for entry, row in rows if entry is PLAIN)["median_ms"]
    for entry, row in rows:
        row["ratio"], row["ours"] = row["median_ms"] / base, entry.ours
        row.pop("artifact")
        print(f"{row['name']}: {row['ratio']:.3f} of plain FP32, top-1 {row['top1']:.3f}, {row['agreement']:.3f}")
    ours = [row for row in (row for _, row in rows) if row["ours"]]
    for row in (row for entry, row in rows if entry in (NNCF, SEARCHED)):
        better = [one for one in ours if one["ratio"] <= row["ratio"] and one["agreement"] >= row["agreement"]]
        row["beaten_by"] = [one["name"] for one in better]
        print(f"{row['name']}: {len(better)} of our {len(ours)} points are no slower and agree no less")
    result = {
        "model": options.model,
        "threads": options.threads,
        "nncf_search_s": searched["convert_s"],
        "rows": [row for _, row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
