"""The artifacts that a server offers: opened when they are first asked for, each behind a batcher of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge.bench.from_bundle import class_count, find_artifacts, find_classes, find_preprocess
from vitedge.bundle import Bundle
from vitedge.data.texts import read_texts
from vitedge.documents import Json
from vitedge.errors import VitedgeError
from vitedge.serve.batcher import Batcher
from vitedge.serve.measures import Measures
from vitedge.serve.options import ServeOptions
from vitedge.serve.worker import Worker
from vitedge.steps.predict import probabilities


@dataclass(frozen=True)
class Offered:
    """One artifact that runs here."""

    name: str
    target: str
    precision: str
    path: Path
    size_mib: float
    metadata: Json

    @property
    def attends(self) -> bool:
        """Whether it has an attention map as a second output."""
        return self.metadata.get("attention_output") is not None


class Models:
    """The artifacts of a run folder. `default` is the one that answers where a request names none."""

    def __init__(self, run: Path, options: ServeOptions, measures: Measures) -> None:
        """Raises VitedgeError where no artifact runs on this machine, or not the one that was asked for."""
        bundle = Bundle.open(run)
        self.options, self.measures = options, measures
        self.preprocess, self.classes = find_preprocess(bundle), find_classes(bundle)
        self.outputs = class_count(bundle)
        self.activation: str = bundle.json("model/arch.json").get("activation", "softmax")
        self.texts = None if options.text_embeddings is None else read_texts(options.text_embeddings)
        if self.texts is not None:
            if self.activation != "none":
                raise VitedgeError(
                    "--text-embeddings is for a model that gives embeddings.", "This one has classes.", "Leave it out."
                )
            self.activation, self.classes, self.outputs = "softmax", self.texts.names, len(self.texts.names)
        found = find_artifacts(bundle, [options.artifact] if options.artifact else [])
        self.offered = {
            job.artifact.name: Offered(
                job.artifact.name,
                job.artifact.target,
                job.artifact.precision,
                job.artifact.path,
                job.row.size_mib or 0.0,
                job.artifact.metadata,
            )
            for job in found
            if not job.row.reason
        }
        if not self.offered:
            raise VitedgeError(
                "None of the artifacts runs on this machine.",
                " ".join(f"{job.artifact.name}: {job.row.reason}" for job in found),
                "Make one: vitedge build --target onnxruntime.",
            )
        # The smallest precision first: what one serves is what was compressed.
        order = ["int8", "fp16", "bf16", "fp32"]
        # One with a second output is slower: it answers where it is asked for.
        ranked = sorted(self.offered.values(), key=lambda o: (o.attends, order.index(o.precision), o.name))
        self.default = ranked[0].name
        self.open: dict[str, Batcher] = {}
        self.lock = threading.Lock()

    def batcher(self, name: str) -> Batcher:
        """The batcher of that artifact, opened where it is not yet. Raises VitedgeError where it can't be opened."""
        offered = self.offered[name]
        with self.lock:
            if name not in self.open:
                worker = Worker(
                    offered.target,
                    offered.path,
                    offered.metadata,
                    threads=self.options.threads,
                    timeout_s=self.options.timeout_s,
                )
                worker.start()
                self.open[name] = Batcher(
                    worker,
                    max_batch=self.options.max_batch,
                    max_wait_ms=self.options.max_wait_ms,
                    limit=self.options.queue,
                    observe=self.measures.batch(name),
                    restarted=self.measures.restarts.labels(artifact=name).inc,
                )
            return self.open[name]

    def device(self, name: str) -> str | None:
        """Where that artifact runs, or None where it is not open yet."""
        opened = self.open.get(name)
        return opened.worker.device if opened else None

    def close(self) -> None:
        """Answers what waits and ends the workers."""
        for batcher in self.open.values():
            batcher.close()

    def says(self, output: np.ndarray, top: int) -> dict[str, object]:
        """What the artifact says of an image by its output: the `top` most probable classes, or its embedding."""
        if self.activation == "none":
            return {"embedding": [round(float(value), 6) for value in output.ravel()]}
        logits = output[None] if self.texts is None else self.texts.logits(output[None])
        scores = probabilities(logits, self.activation)[0]
        order = np.argsort(-scores, kind="stable")[:top]
        best = [
            {
                "index": int(i),
                "class": self.classes[i] if self.classes else None,
                "probability": round(float(scores[i]), 6),
            }
            for i in order
        ]
        return {"top": best}
