"""The tables and plots of benchmarks/README.md out of the JSON of `run.py`.

python benchmarks/peers/table.py benchmarks/results/peers-*.json      rewrites the part between the two marks
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import python_of

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
START, END = "<!-- peers: start -->", "<!-- peers: end -->"


def ratio(row: dict[str, Any], base: dict[str, Any]) -> str:
    """Ratio of medians, with the quartiles of the rounds' ratios."""
    each = sorted(a / b for a, b in zip(row["round_medians_ms"], base["round_medians_ms"], strict=True))
    low, high = each[len(each) // 4], each[-1 - len(each) // 4]
    return f"{row['median_ms'] / base['median_ms']:.3f} [{low:.3f}, {high:.3f}]"


def table(result: dict[str, Any]) -> str:
    rows = [r for r in result["rows"] if r["status"] == "ok"]
    plain = next(r for r in rows if r["name"].startswith("ONNX Runtime, plain"))
    nncf = next((r for r in rows if "NNCF TRANSFORMER" in r["name"]), None)
    judged = result["test_images"] is not None
    head = ["", "precision", "latency / plain ONNX Runtime FP32", "latency / NNCF TRANSFORMER"]
    head += ["top-1", "agreement"] if judged else []
    head += ["MiB", "load s", "peak MiB", "conversion s", "its peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for r in sorted(rows, key=lambda r: -r["median_ms"]):
        name = f"**{r['name']}**" if r["ours"] else r["name"]
        cells = [name, r["precision"], ratio(r, plain), ratio(r, nncf) if nncf else "-"]
        cells += [f"{r['top1']:.3f}", f"{r['agreement']:.3f}"] if judged else []
        cells += [f"{r['size_mib']:.1f}", f"{r['load_s']:.2f}", f"{r['peak_mib']:.0f}"]
        cells += ["-" if r[k] is None else f"{r[k]:.0f}" for k in ("convert_s", "convert_peak_mib")]
        lines.append("| " + " | ".join(cells) + " |")
    for r in result["rows"]:
        if r["status"] != "ok":
            lines.append(f"\n{r['name']} ({r['precision']}): {r['status']}: {r['reason']}")
    return "\n".join(lines)


def section(path: Path, environments: Path) -> str:
    result = json.loads(path.read_text())
    image = path.with_suffix(".svg")
    python, reason = python_of("plot", environments)
    if python is None:
        raise SystemExit(reason)
    subprocess.run([str(python), str(HERE / "plot.py"), str(path), str(image)], check=True)
    model = result["model"].rsplit("/", 1)[-1]
    weights = " with random weights (speed and size only)" if result["random_weights"] else ""
    versions: dict[str, str] = {}
    for found in result["versions"].values():
        versions |= {name: version for name, version in found.items() if name not in versions}
    facts = f"{result['threads']} threads on {result['machine']['processors']} processors "
    facts += f"({result['machine']['machine']}: {', '.join(result['machine']['isa'])}), batch 1, "
    facts += f"{result['rounds']} rounds of {result['calls']} inferences in turns, "
    facts += f"{result['calibration_images']} calibration images; "
    facts += ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    plot = f"![latency and accuracy]({image.relative_to(README.parent)})"
    return f"### {model}{weights}\n\n{facts}.\n\n{table(result)}\n\n{plot}\n"


def main() -> None:
    environments = Path.home() / ".cache" / "vitedge-peers"
    text = README.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    sections = "\n".join(section(Path(p).resolve(), environments) for p in sys.argv[1:])
    README.write_text(f"{before}{START}\n{sections}{END}{after}")


if __name__ == "__main__":
    main()
