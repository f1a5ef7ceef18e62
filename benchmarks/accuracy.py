"""What the benchmarks of accuracy share: a model, its images, and a row of a Markdown table for each graph."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.export.vit import export_vit
from vitedge.metrics import fidelity
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.checkpoint import LoadedModel, load_model
from vitedge.vit.model import VisionTransformer

COLUMNS = ("top-1", "agreement", "logit SQNR, dB")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that `load` reads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calib-size", type=int, default=256)
    parser.add_argument("--limit", type=int, default=None, help="images of --data used")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


@dataclass(frozen=True)
class Case:
    """A model, uint8 images [N, H, W, 3] to calibrate with and to judge by, and the latter's labels [N]."""

    loaded: LoadedModel
    calib: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    threads: int

    def exported(self, model: VisionTransformer, batch: int | None = 1) -> onnx.ModelProto:
        """The float graph of `model`."""
        weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
        return export_vit(model.config, weights, self.loaded.preprocess, batch)

    def logits(self, graph: onnx.ModelProto | bytes, ours: bool = True) -> np.ndarray:
        """What ONNX Runtime computes, [N, classes]; with its default options where the graph is not `ours`."""
        stored = graph if isinstance(graph, bytes) else graph.SerializeToString()
        if ours:
            session = OnnxRuntimeRunner(Path("in memory"), threads=self.threads, model=stored).session
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            session = onnxruntime.InferenceSession(stored, options, providers=["CPUExecutionProvider"])
        first = session.get_inputs()[0]
        step = first.shape[0] if isinstance(first.shape[0], int) else 8
        parts = (self.pixels[i : i + step] for i in range(0, len(self.pixels), step))
        return np.concatenate([session.run(None, {first.name: part})[0] for part in parts])

    def row(self, name: str, found: np.ndarray, reference: np.ndarray, *facts: str) -> str:
        """A row of COLUMNS and `facts`; `found` and `reference` are of the first images."""
        if not np.isfinite(found).all():
            figures = ["-", "-", "no finite logits"]
        else:
            top1 = (found.argmax(1) == self.labels[: len(found)]).mean()
            agreement, sqnr = fidelity(reference, found).values()
            figures = [f"{top1:.3f}", f"{agreement:.3f}", "exact" if sqnr is None else f"{sqnr:.1f}"]
        return "| " + " | ".join([name, *figures, *facts]) + " |"


def load(given: argparse.Namespace) -> Case:
    """What the options of `arguments` name; says how many images there are."""
    torch.set_num_threads(given.threads)
    loaded = load_model(given.model)
    with tempfile.TemporaryDirectory() as scratch:
        read = {}
        for kind, folder, count in (("calib", given.calib, given.calib_size), ("data", given.data, given.limit)):
            pixels, dataset = load_pixels(open_dataset(folder), loaded.preprocess, count, 0, Path(scratch, kind))
            read[kind] = np.array(pixels), dataset
    labels = read["data"][1].require_labels("Accuracy", loaded.model.config.classes)
    case = Case(loaded, read["calib"][0], read["data"][0], labels, given.threads)
    print(f"{len(case.pixels)} images, {len(case.calib)} calibration images\n")
    return case


def header(*facts: str) -> str:
    """The table's first two lines."""
    columns = ["", *COLUMNS, *facts]
    return "| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|"
