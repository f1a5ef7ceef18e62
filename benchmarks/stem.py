"""What INT8 costs in the convolutional stem of a hybrid, and what in the blocks behind it: SQNR of the logits.

    python benchmarks/stem.py vit_small_r26_s32_224 --images ../shared/data/calib

Random weights, every norm uneven and one channel of it six times as large; calibrated on photographs and judged on
others, in PyTorch's simulation of integer kernels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import load_pixels
from vitedge.metrics import sqnr_db
from vitedge.quant import QuantOptions, Scheme, calibrate, simulate
from vitedge.vit.checkpoint.families import timm_vit
from vitedge.vit.checkpoint.save import build_model


@torch.no_grad()
def filled(name: str) -> torch.nn.Module:
    """timm's model with random weights in which every tensor matters."""
    model, generator = timm.create_model(name), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, min(0.3, parameter[0].numel() ** -0.5), generator=generator)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm):
            module.weight.normal_(1, 0.2, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
            module.weight[3] *= 6
    return model.eval()


def part(scheme: Scheme, *, stem: bool) -> Scheme:
    """The scheme of the stem alone, or of all but it."""

    def some(values: dict) -> dict:
        return {name: value for name, value in values.items() if name.startswith(("patch_embed", "pixels")) == stem}

    activations, weights, biases = map(some, (scheme.activations, scheme.weights, scheme.biases))
    return replace(scheme, activations=activations, weights=weights, biases=biases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="timm's name of a hybrid")
    parser.add_argument("--images", required=True)
    parser.add_argument("--limit", type=int, default=48, help="images; two thirds of them calibrate")
    parser.add_argument("--preset", default="linear")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    theirs = filled(given.model)
    read = timm_vit.read(theirs.state_dict(), theirs)
    size = read.config.image_size[0]
    prep = Preprocess(resize=size, crop=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    with tempfile.TemporaryDirectory() as scratch:
        pixels, _ = load_pixels(open_dataset(given.images), prep, given.limit, 0, Path(scratch, "pixels.npy"))
        x = torch.from_numpy(prep.normalize(np.array(pixels)))
    fitted, others = x[: 2 * len(x) // 3], x[2 * len(x) // 3 :]
    model, _ = condition(build_model(read.config, read.state), batched(fitted), ConditionOptions())
    scheme = calibrate(model, batched(fitted), QuantOptions(preset=given.preset, stem="int8", observer="mse"), prep)
    stem = part(scheme, stem=True)
    cases = {
        "all in INT8": scheme,
        "the stem in float": part(scheme, stem=False),
        "the stem alone in INT8": stem,
        "the weights of the stem alone": replace(stem, activations={}),
    }
    rows = {}
    with torch.no_grad():
        expected = model(others)
        for name, one in cases.items():
            rows[name] = sqnr_db(expected, simulate(model, one, prep)(others))
            print(f"{name:32}{rows[name]:6.1f} dB")
    if given.json:
        facts = {"model": given.model, "images": len(x), "preset": given.preset, "sqnr_db": rows}
        given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
