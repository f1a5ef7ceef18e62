"""vitedge's pruning beside Torch-Pruning and torch.nn.utils.prune: same model, same images, same share.

    pip install torch-pruning
    python benchmarks/pruning.py --model ../shared/data/vit_ti_16 --calib ../shared/data/calib \
        --data ../shared/data/val --share 0.3 --out benchmarks/results/pruning-0.3.json

The other two tools are used as their documentation shows, on the MLP units of all blocks alike (Torch-Pruning's
pruner with its L2 and Taylor importances; torch's `ln_structured`), with as many units removed as give the share.
torch.nn.utils.prune only masks: its model keeps every MAC; its row says what the same mask would save if it were cut
out. None of them recovers accuracy by itself; vitedge's own row without recovery is there for that reason.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitedge.data.folder import open_dataset
from vitedge.data.sample import load_pixels
from vitedge.prune import PruneOptions, prune
from vitedge.steps.source import float_batches
from vitedge.vit.checkpoint import load_model
from vitedge.vit.macs import mlp_macs, model_macs
from vitedge.vit.model import VisionTransformer

ALIGN = 32


def uniform_units(model: VisionTransformer, share: float) -> int:
    """MLP units to remove from each block, a multiple of 32, that come nearest to the share of the MACs."""
    config = model.config
    macs = [mlp_macs(config.block_width(i), b, config.block_tokens(i)) for i, b in enumerate(config.blocks)]
    of_mlp = sum(macs) / model_macs(config)
    hidden = config.blocks[0].hidden
    return min(hidden - ALIGN, round(share / of_mlp * hidden / ALIGN) * ALIGN)


def torch_utils(model: VisionTransformer, share: float, batches: Callable) -> VisionTransformer:
    """torch.nn.utils.prune.ln_structured on fc1's rows, by L2."""
    from torch.nn.utils import prune as masks

    amount = uniform_units(model, share)
    for block in model.encoder():
        masks.ln_structured(block.mlp.fc1, "weight", amount=amount, n=2, dim=0)
        gone = ~block.mlp.fc1.weight_mask.any(1)
        masks.custom_from_mask(block.mlp.fc1, "bias", (~gone).float())
    return model


def torch_pruning(importance: str) -> Callable[..., VisionTransformer]:
    """Torch-Pruning's pruner on the MLPs, with one of its importances."""

    def run(model: VisionTransformer, share: float, batches: Callable) -> VisionTransformer:
        import torch_pruning as tp

        keep = {id(block.mlp.fc1) for block in model.encoder()}
        ignored = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.LayerNorm))]
        ignored = [m for m in ignored if id(m) not in keep and not any(m is b.mlp.fc2 for b in model.encoder())]
        model.requires_grad_(True)
        score = tp.importance.TaylorImportance() if importance == "taylor" else tp.importance.MagnitudeImportance(p=2)
        ratio = uniform_units(model, share) / model.config.blocks[0].hidden
        pruner = tp.pruner.MetaPruner(
            model,
            next(batches())[:1],
            importance=score,
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=ALIGN,
            root_module_types=[nn.Linear],
        )
        if importance == "taylor":  # labels as the model itself gives them
            for x in batches():
                logits = model(x)
                nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
        for group in pruner.step(interactive=True):
            if id(group[0].dep.target.module) in keep:
                group.prune()
        return model.requires_grad_(False)

    return run


def ours(**options: Any) -> Callable[..., VisionTransformer]:
    def run(model: VisionTransformer, share: float, batches: Callable) -> VisionTransformer:
        return prune(model, batches, PruneOptions(prune=share, **options))[0]

    return run


def removed_share(dense: VisionTransformer, pruned: VisionTransformer) -> float:
    """Share of the dense model's MACs that the weights' shapes no longer have."""
    units = [b.mlp.fc1.weight.shape[0] if b.mlp is not None else 0 for b in pruned.encoder()]
    config = pruned.config
    for index, count in enumerate(units):
        config = config.with_block(index, hidden=count, groups=())
    return 1 - model_macs(config) / model_macs(dense.config)


WAYS: dict[str, Callable[..., VisionTransformer]] = {
    "torch.nn.utils.prune ln_structured (masks)": torch_utils,
    "Torch-Pruning, L2": torch_pruning("l2"),
    "Torch-Pruning, Taylor": torch_pruning("taylor"),
    "vitedge --recover none": ours(recover="none"),
    "vitedge --recover ridge": ours(recover="ridge"),
    "vitedge": ours(),
}


@torch.no_grad()
def top1(model: VisionTransformer, batches: Callable, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Accuracy, and the classes found."""
    found = torch.cat([model(x).argmax(1) for x in batches()]).numpy()
    return float((found == labels).mean()), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--calib-size", type=int, default=768)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--only", default="", help="only the ways whose names contain this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    loaded = load_model(given.model)
    dense = loaded.model.eval().requires_grad_(False)
    folder = Path(given.out.parent if given.out else ".")
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for name, source, count in (("calib", given.calib, given.calib_size), ("data", given.data, given.limit)):
        file = folder / f".{name}.npy"
        pixels[name], used = load_pixels(open_dataset(Path(source)), loaded.preprocess, count, 0, file)
        file.unlink()
    labels = np.asarray(used.labels)
    calib, data = (float_batches(pixels[n], loaded.preprocess, 32) for n in ("calib", "data"))
    accuracy, reference = top1(dense, data, labels)
    rows = [{"way": "dense", "top1": accuracy, "agreement": 1.0, "removed_share_of_macs": 0.0, "seconds": 0.0}]
    print(rows[0])
    for name, way in WAYS.items():
        if given.only not in name:
            continue
        start = time.monotonic()
        model = way(copy.deepcopy(dense), given.share, calib)
        seconds = time.monotonic() - start
        accuracy, found = top1(model, data, labels)
        rows.append(
            {
                "way": name,
                "top1": accuracy,
                "agreement": float((found == reference).mean()),
                "removed_share_of_macs": removed_share(dense, model),
                "seconds": round(seconds, 1),
            }
        )
        print(rows[-1], flush=True)
        if given.out:
            facts = {"share": given.share, "calib": len(pixels["calib"]), "images": len(labels), "rows": rows}
            given.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
