"""The step that names the final float model: the last transform's, with what a model needs beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vitedge.bundle import Bundle, StepRecord
from vitedge.manifest import Facts
from vitedge.steps.source import SOURCE
from vitedge.vit.config import ViTConfig

FINAL = "model"


def read_config(bundle: Bundle, folder: str = FINAL) -> ViTConfig:
    """The configuration of the model in a folder of the bundle."""
    return ViTConfig.from_dict(json.loads(bundle.verified(f"{folder}/arch.json").read_text()))


def finish_model(bundle: Bundle, last: str, *, function_changed: bool = False) -> StepRecord:
    """`model/`: model.safetensors and arch.json of the folder `last`, preprocess.json and classes.txt of the source.

    function_changed: whether a step before (pruning, distillation) changed what the model computes, so that the
        dense source is kept as the reference of comparisons.
    """
    files = {f"{last}/model.safetensors": "model.safetensors", f"{last}/arch.json": "arch.json"}
    files |= {f"{SOURCE}/{n}": n for n in ("preprocess.json", "classes.txt") if bundle.has(f"{SOURCE}/{n}")}

    def work(folder: Path) -> Facts:
        (folder / FINAL).mkdir()
        for source, name in files.items():
            shutil.copyfile(bundle.verified(source), folder / FINAL / name)
        return {"from": last, "function_changed": function_changed}

    return bundle.run_step(
        "model",
        work,
        options={"from": last, "function_changed": function_changed},
        inputs=list(files),
        modules=("vitedge.steps.model",),
    )
