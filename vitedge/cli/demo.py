"""`vitedge demo`: every command of the README once, on images that vitedge draws and a ViT that it trains on them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitedge.bundle import DEFAULT_RUN
from vitedge.cli.console import ConsoleReporter, err, out, print_json
from vitedge.cli.flags import JsonFlag
from vitedge.errors import VitedgeError
from vitedge.files import atomic_dir, write_json

# Images a split; the test split gives the accuracy that is quoted.
SPLITS = {"train": 6000, "val": 500, "test": 1000, "calib": 256}
SIDE = 48
ROWS = """
source            the model as it was trained, in FP32
onnxruntime-fp32  pruned: tokens merged and widths cut, 30 % of the MACs gone
onnxruntime-int8  the same in INT8
"""


def command(
    folder: Annotated[Path, typer.Option("--dir", help="Folder that the demo works in.")] = Path("vitedge-demo"),
    minutes: Annotated[float, typer.Option("--minutes", help="Longest time for the training.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the images and the training.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Draws, trains, and takes the trained model through every step. What is already there is kept."""
    from vitedge.train.scratch import train_small_vit

    reporter = ConsoleReporter()
    data, model = folder / "shapes", folder / "trained"
    if not data.exists():
        reporter.info(f"drawing {sum(SPLITS.values())} images of shapes into {data}")
        draw_splits(data, seed)
    if not (model / "model.safetensors").exists():
        reporter.info(f"training a small ViT on them, for {minutes:g} minutes at most")
        metrics = train_small_vit(data, model, minutes=minutes, seed=seed)
        write_json(folder / "training.json", metrics)
        reporter.info(f"trained: top-1 {metrics['top1']:.3f} on the {metrics['part']} part, {metrics['seconds']:.0f} s")
    for arguments in commands(folder):
        _call(json, *arguments)
    report = folder / DEFAULT_RUN / "report.html"
    if json:
        print_json({"run": str(folder / DEFAULT_RUN), "report": str(report)})
    else:
        out.print(ROWS, markup=False)
        out.print(f"The report: {report}", markup=False)


def commands(folder: Path) -> list[list[str]]:
    """What follows the training: the arguments of each command of vitedge."""
    run = ["--run", str(folder / DEFAULT_RUN)]
    calib = ["--calib", str(folder / "shapes" / "calib")]
    build = ["build", "--target", "onnxruntime", "--precision"]
    return [
        ["compress", "--model", str(folder / "trained"), *calib, "--prune", "0.3", "--quantize", "static", *run],
        [*build, "fp32", *run],
        [*build, "int8", *run],
        ["bench", "--data", str(folder / "shapes" / "test"), *run],
        ["report", *run],
    ]


def draw_splits(folder: Path, seed: int) -> None:
    """Writes the images of all splits."""
    from vitedge.data.shapes import write_shapes

    with atomic_dir(folder) as temporary:
        for split, n in SPLITS.items():
            write_shapes(temporary / split, n, seed=seed, size=SIDE, split=split)  # type: ignore[arg-type]


def _call(quiet: bool, *arguments: str) -> None:
    """Runs a command of vitedge as a user would, and shows it; `quiet` leaves stdout to JSON."""
    err.print(f"\n$ {shlex.join(['vitedge', *arguments])}", style="bold", markup=False)
    done = subprocess.run(
        [sys.executable, "-m", "vitedge", *arguments], check=False, stdout=sys.stderr if quiet else None
    )
    if done.returncode:
        raise VitedgeError(
            f"`vitedge {arguments[0]}` failed with exit status {done.returncode}.",
            "Its own message stands above.",
            "Fix that and run the demo again: it continues where it stopped.",
            exit_code=done.returncode,
        )
