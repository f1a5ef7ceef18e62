"""An artifact of the run classifies images. No step: it leaves nothing in the run. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge import targets
from vitedge.bundle import Bundle
from vitedge.data.folder import open_images
from vitedge.data.loader import iter_batches
from vitedge.data.texts import Texts
from vitedge.documents import Json, printable
from vitedge.errors import VitedgeError
from vitedge.steps.source import read_classes, read_preprocess
from vitedge.targets.metadata import read_metadata
from vitedge.vit.config import ViTConfig


@dataclass(frozen=True)
class Guess:
    """A class: its index in the logits, its name where there is one, and its probability."""

    index: int
    name: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Of one image: the likeliest classes first, or the embedding of a model without classes; or why it could not be
    read."""

    file: str
    top: tuple[Guess, ...] = ()
    error: str = ""
    embedding: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        if self.error:
            return {"file": self.file, "error": self.error}
        if self.embedding:
            return {"file": self.file, "embedding": list(self.embedding)}
        top = [{"index": g.index, "class": g.name, "probability": round(g.probability, 6)} for g in self.top]
        return {"file": self.file, "top": top}


class Predictor:
    """An artifact with all that it needs. Use it as a context; `device`: where it runs; `activation`: of its logits."""

    def __init__(self, bundle: Bundle, wanted: str | None, texts: Texts | None = None) -> None:
        """The artifact `wanted`, or the first that runs here; texts: the classes of a model that gives embeddings.

        Raises VitedgeError where there is none, it is stale, or the model has classes of its own.
        """
        self.name, metadata = choose_artifact(bundle, wanted)
        self.preprocess, self.classes, self.texts = read_preprocess(bundle), read_classes(bundle), texts
        model = ViTConfig.from_dict(bundle.json("model/arch.json"))
        if self.classes is not None and len(self.classes) != model.classes:
            raise VitedgeError(
                f"The run has {len(self.classes)} class names for {model.classes} outputs.",
                "",
                "Compress the model again.",
            )
        self.activation: str = model.activation
        if texts is not None:
            if self.activation != "none":
                raise VitedgeError(
                    "--text-embeddings is for a model that gives embeddings.", "This one has classes.", "Leave it out."
                )
            self.activation, self.classes = "softmax", list(texts.names)
        path = bundle.verified(f"build/{self.name}/{metadata['artifact']}")
        self.runner = targets.get(metadata["target"]).open(path, metadata)
        self.device = self.runner.device
        self.files: list[str] = []  # of the last `predict`, in their order

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()

    def predict(self, images: Sequence[str | Path], top: int) -> Iterator[Prediction]:
        """One an image, those that can't be read last. Raises VitedgeError where none can."""
        dataset = open_images(images)
        self.files = [printable(dataset.path(i), 4096) for i in range(len(dataset))]
        # A broken image is a row with an error among the others.
        batches = iter_batches(dataset, self.preprocess, 8, most_unreadable=1.0)
        good = 0
        for pixels, indices in batches:
            outputs = self.runner.infer(pixels)
            good += len(outputs)
            if self.activation == "none":
                for row, index in zip(outputs.reshape(len(outputs), -1), indices, strict=True):
                    yield Prediction(self.files[int(index)], embedding=tuple(row.tolist()))
                continue
            logits = self.texts.logits(outputs) if self.texts else outputs
            for row, index in zip(probabilities(logits, self.activation), indices, strict=True):
                order = np.argsort(-row, kind="stable")[:top]
                guesses = (Guess(int(i), self.classes[i] if self.classes else None, float(row[i])) for i in order)
                yield Prediction(self.files[int(index)], tuple(guesses))
        failed = [(self.files[i], why) for i, why in sorted(batches.unreadable.items())]
        if failed and not good:
            raise VitedgeError("No image could be read.", f"{failed[0][0]}: {failed[0][1]}.", "Give other images.")
        yield from (Prediction(file, error=why) for file, why in failed)


def choose_artifact(bundle: Bundle, wanted: str | None) -> tuple[str, Json]:
    """Folder name below `build/` and metadata of the artifact asked for, or of the first that runs here and belongs to
    the model that the run holds now."""
    built = [step.partition("/")[2] for step in bundle.manifest.steps if step.startswith("build/")]
    built.sort(key=lambda name: name.endswith("-attention"))  # slower, for a map that nobody sees here
    make = f"Make one: vitedge build --target onnxruntime --run {bundle.root}"
    if not built:
        raise VitedgeError(f"The run '{bundle.root}' has no artifact.", "", make)
    if wanted is not None:
        if wanted not in built:
            raise VitedgeError(f"The run has no artifact '{wanted}'.", "", f"It has: {', '.join(built)}.")
        bundle.current(*bundle.files(f"build/{wanted}/"))
    reasons = []
    for name in [wanted] if wanted else built:
        if reason := bundle.stale(*bundle.files(f"build/{name}/")):
            reasons.append(f"{name} belongs to an earlier state of the run: {reason}")
            continue
        metadata = read_metadata(bundle.read(f"build/{name}/metadata.json"), f"build/{name}/metadata.json")
        probe = targets.get(metadata["target"]).probe()
        if probe.can_run:
            return name, metadata
        reasons.append(f"{name}: {probe.reason}")
    raise VitedgeError("None of the artifacts can be used on this machine.", " ".join(reasons), make, exit_code=1)


def probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    """Softmax over the classes, or the sigmoid of each (and of a single logit): [N, classes] -> [N, classes]."""
    values = logits.astype(np.float64)
    if activation == "sigmoid" or values.shape[1] == 1:
        return 1 / (1 + np.exp(-values))
    shifted = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
