"""An unpacked pack's golden references, run on this machine before anything is measured. Needs no torch and no onnx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitedge import targets
from vitedge.bench.artifact import Artifact
from vitedge.bench.golden import facts
from vitedge.bench.golden.facts import Golden, GoldenArtifact
from vitedge.bench.golden.judge import Judgement, first_bad, judge_logits, limit_db, place
from vitedge.bench.golden.make import run_outputs, with_blocks
from vitedge.bench.groups import Job
from vitedge.bench.jobs import Settings
from vitedge.bench.pack_index import PackIndex
from vitedge.bench.process import ArtifactFailed
from vitedge.errors import VitedgeError
from vitedge.reporter import Reporter

# What is wrong with the input is known from the logits alone.
_OF_THE_INPUT = ("channels_swapped", "normalised_twice", "layout")


def check_golden(
    folder: Path, index: PackIndex, jobs: Sequence[Job], settings: Settings, reporter: Reporter
) -> dict[str, Judgement]:
    """Artifact -> what was found, of those that can run here; empty where the pack has no golden references.

    folder, index: of an unpacked pack, its files checked by hash. Raises VitedgeError where the references can't be
    read.
    """
    if (golden := index.golden) is None:
        return {}
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=tuple(index.shape))
    images = np.ascontiguousarray(pixels[golden.positions])
    found: dict[str, Judgement] = {}
    live = [job for job in jobs if job.artifact.name in golden.artifacts and job.row.status != "unavailable"]
    with reporter.progress("golden references", len(live)) as advance:
        for job in live:
            found[job.artifact.name] = _Check(folder, golden, job.artifact, settings).judge(images)
            advance(1)
    return found


class _Check:
    """One artifact's."""

    def __init__(self, folder: Path, golden: Golden, artifact: Artifact, settings: Settings) -> None:
        self.folder, self.artifact, self.settings = folder, artifact, settings
        self.known: GoldenArtifact = golden.artifacts[artifact.name]
        self.graph = golden.graphs[self.known.graph]
        self.target = targets.get(artifact.target)

    def judge(self, images: np.ndarray) -> Judgement:
        name = self.known.graph
        try:
            _, (logits, *_) = run_outputs(self.artifact, images, self.folder / "logs", self.settings)
        except ArtifactFailed as failed:
            old = self._misfits()
            cause = "old_runtime" if old else "does_not_run"
            return Judgement("wrong", cause, detail=" ".join([*old, failed.reason]))
        own = self._load(facts.own_logits(self.artifact.name)) if self.known.device else None
        faults = {fault: self._load(facts.graph_fault(name, fault)) for fault in self.graph.faults}
        reference = self._load(facts.graph_logits(name))
        if logits.size == reference.size:  # an NPU's runner gives a row an image
            logits = logits.reshape(reference.shape)
        found = judge_logits(reference, logits, self.artifact.precision, own=own, faults=faults)
        if found.verdict != "wrong" or found.cause in _OF_THE_INPUT:
            return found
        if self.known.blocks and self.graph.taps and logits.shape == reference.shape:
            found = self._blocks(images, found)
        if (old := self._misfits()) and found.cause in ("unknown", "another_model", "nothing", "outputs"):
            return replace(found, cause="old_runtime", detail=" ".join([*old, found.detail]).strip())
        return found

    def _blocks(self, images: np.ndarray, found: Judgement) -> Judgement:
        """The finding with the first bad place, by the artifact with the outputs of its blocks."""
        assert self.known.blocks is not None
        taps = list(self.known.taps)
        try:
            artifact = with_blocks(self.artifact, self.known.blocks)
            _, (_, *values) = run_outputs(artifact, images, self.folder / "logs", self.settings)
        except ArtifactFailed as failed:
            return replace(found, detail=f"{found.detail} The artifact with block outputs: {failed.reason}".strip())
        if len(values) != len(taps):
            return replace(found, cause="another_model", detail=f"{len(values)} block outputs, not {len(taps)}")
        reference = {tap: self._load(facts.graph_tap(self.known.graph, tap)) for tap in taps}
        got = {tap: value[: len(reference[tap])] for tap, value in zip(taps, values, strict=True)}
        ran = self.known.device is not None
        limits = {tap: limit_db(self.artifact.precision, own, ran) for tap, own in self.known.taps.items()}
        bad = first_bad(taps, reference, got, limits)
        if bad is None:
            return replace(found, cause="outputs")
        tap, cause, detail = bad
        return replace(found, cause=cause, where=place(tap), detail=detail)

    def _misfits(self) -> list[str]:
        return self.target.misfits(self.artifact.metadata, self.target.probe().versions)

    def _load(self, name: str) -> np.ndarray:
        try:
            values: np.ndarray = np.load(self.folder / name, allow_pickle=False)
            return values
        except (OSError, ValueError, EOFError) as error:
            raise VitedgeError(
                "The pack's golden references can't be read.", f"{name}: {error}", "Make it anew."
            ) from error
