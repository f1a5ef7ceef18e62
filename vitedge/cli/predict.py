"""`vitedge predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vitedge import targets
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import err, out, print_json
from vitedge.data.folder import open_images
from vitedge.data.loader import iter_batches
from vitedge.documents import printable
from vitedge.errors import VitedgeError
from vitedge.steps.source import read_classes, read_preprocess
from vitedge.targets.metadata import read_metadata
from vitedge.vit.config import ViTConfig


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
    bundle.current(*bundle.files(f"build/{name}/"))
    dataset = open_images(images)
    classes = read_classes(bundle)
    model = ViTConfig.from_dict(bundle.json("model/arch.json"))
    if classes is not None and len(classes) != model.classes:
        raise VitedgeError(
            f"The run has {len(classes)} class names for {model.classes} outputs.", "", "Compress the model again."
        )
    multi = model.activation == "sigmoid"
    runner = targets.get(metadata["target"]).open(path, metadata)
    # A broken image is a row with an error among the others.
    batches = iter_batches(dataset, read_preprocess(bundle), 8, most_unreadable=1.0)
    rows: dict[int, dict[str, Any]] = {}
    try:
        for pixels, indices in batches:
            scores = probabilities(runner.infer(pixels), multi)
            for row, index in zip(scores, indices.tolist(), strict=True):
                rows[index] = {"file": printable(dataset.path(index), 4096), "top": _best(row, classes, top)}
                if not json:
                    _show(rows[index])
    finally:
        runner.close()
    failed = {i: {"file": printable(dataset.path(i), 4096), "error": why} for i, why in batches.unreadable.items()}
    if not rows:
        first = next(iter(failed.values()))
        raise VitedgeError("No image could be read.", f"{first['file']}: {first['error']}.", "Give other images.")
    for row in () if json else failed.values():
        _show(row)
    results = [row for _, row in sorted((rows | failed).items())]
    if json:
        print_json(
            {"artifact": name, "device": runner.device, "activation": "sigmoid" if multi else "softmax"}
            | {"images": results}
        )
    else:
        err.print(f"{len(rows)} images, {name} on {runner.device}", style="dim")


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
        metadata = read_metadata(bundle.read(f"build/{name}/metadata.json"), f"build/{name}/metadata.json")
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
    if "error" in result:
        out.print(f"  error: {result['error']}", markup=False)
    for entry in result.get("top", ()):
        name = entry["class"] if entry["class"] is not None else f"class {entry['index']}"
        out.print(f"  {entry['probability']:7.2%}  {name}", markup=False)
