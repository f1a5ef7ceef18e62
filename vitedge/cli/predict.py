"""`vitedge predict`."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vitedge import targets
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, err, out, print_json
from vitedge.data.folder import open_images
from vitedge.data.loader import iter_batches
from vitedge.errors import VitedgeError
from vitedge.steps.source import read_classes, read_preprocess


def command(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE...")],
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    artifact: Annotated[
        str | None, typer.Option("--artifact", help="Folder below build/. (default: the first that runs here)")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes shown an image.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Classifies images."""
    bundle = Bundle.open(run)
    name, metadata = choose_artifact(bundle, artifact)
    path = bundle.verified(f"build/{name}/{metadata['artifact']}")
    dataset = open_images(images)
    classes = read_classes(bundle)
    multi = jsonlib.loads(bundle.verified("model/arch.json").read_text())["activation"] == "sigmoid"
    runner = targets.get(metadata["target"]).open(path, metadata)
    batches = iter_batches(dataset, read_preprocess(bundle), 8)
    results: list[dict[str, Any]] = []
    try:
        for pixels, indices in batches:
            scores = probabilities(runner.infer(pixels), multi)
            for row, index in zip(scores, indices, strict=True):
                results.append({"file": str(dataset.path(int(index))), "top": _best(row, classes, top)})
                if not json:
                    _show(results[-1])
    finally:
        runner.close()
    if json:
        print_json(
            {"artifact": name, "device": runner.device, "activation": "sigmoid" if multi else "softmax"}
            | {"images": results}
        )
    else:
        err.print(f"{len(results)} images, {name} on {runner.device}", style="dim")
    if batches.skipped:
        ConsoleReporter().warn(batches.warning())


def choose_artifact(bundle: Bundle, wanted: str | None) -> tuple[str, dict[str, Any]]:
    """Folder name below `build/` and metadata of the artifact asked for, or of the first that runs here."""
    built = [step.partition("/")[2] for step in bundle.manifest.steps if step.startswith("build/")]
    if not built:
        raise VitedgeError(
            f"The run '{bundle.root}' has no artifact.", "", "Make one: vitedge build --target onnxruntime."
        )
    if wanted is not None and wanted not in built:
        raise VitedgeError(f"The run has no artifact '{wanted}'.", "", f"It has: {', '.join(built)}.")
    reasons = []
    for name in [wanted] if wanted else built:
        metadata = jsonlib.loads(bundle.verified(f"build/{name}/metadata.json").read_text())
        probe = targets.get(metadata["target"]).probe()
        if probe.can_run:
            return name, metadata
        reasons.append(f"{name}: {probe.reason}")
    raise VitedgeError(
        "None of the artifacts runs on this machine.",
        " ".join(reasons),
        "Make one: vitedge build --target onnxruntime.",
    )


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Softmax over the classes, or the sigmoid of each: [N, classes] -> [N, classes]."""
    if multi_label:
        return 1 / (1 + np.exp(-logits.astype(np.float64)))
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _best(row: np.ndarray, classes: list[str] | None, top: int) -> list[dict[str, Any]]:
    order = np.argsort(-row, kind="stable")[:top]
    return [
        {"index": int(i), "class": classes[i] if classes else None, "probability": round(float(row[i]), 6)}
        for i in order
    ]


def _show(result: dict[str, Any]) -> None:
    out.print(result["file"], markup=False)
    for entry in result["top"]:
        name = entry["class"] if entry["class"] is not None else f"class {entry['index']}"
        out.print(f"  {entry['probability']:7.2%}  {name}", markup=False)
