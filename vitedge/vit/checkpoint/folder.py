"""Which file of a model folder holds its weights, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.adapter import CONFIG as CONFIG_OF_ADAPTER
from vitedge.vit.checkpoint.adapter import is_adapter
from vitedge.vit.checkpoint.described import CONFIG, describes_a_model
from vitedge.vit.checkpoint.files import INDEX, listing
from vitedge.vit.checkpoint.kinds import is_checkpoint

# In the order in which libraries prefer them.
_WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
# What a Trainer leaves beside the weights.
_BESIDE = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")


def find_weights(folder: Path) -> Path | None:
    """The checkpoint of a folder; None where it holds an adapter of peft alone.

    Raises VitedgeError where there is none, or several without a usual name.
    """
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        below = sorted(p.name for p in folder.iterdir() if p.is_dir())
    except OSError as error:
        raise VitedgeError(
            f"The folder '{folder}' can't be read.", f"{error.strerror}.", "Check its rights."
        ) from error
    adapter = is_adapter(folder)
    if usual := [name for name in _WEIGHTS if name in names]:
        if adapter:
            raise VitedgeError(
                f"'{folder}' holds a model and an adapter of peft (LoRA).",
                "Whether the adapter is to be merged into it can't be told.",
                f"With it: --model {folder / usual[0]} --adapter {folder}. Without: move adapter_config.json away.",
            )
        return folder / usual[0]
    if CONFIG_OF_ADAPTER in names:
        return None
    found = [n for n in names if is_checkpoint(Path(n)) and not n.startswith(_BESIDE)]
    preferred = [n for n in found if n.endswith(".safetensors")] or found
    if len(preferred) == 1:
        return folder / preferred[0]
    inner = [n for n in below if (folder / n / CONFIG).is_file() or any((folder / n / w).is_file() for w in _WEIGHTS)]
    if not found and inner:
        raise VitedgeError(
            f"The folder '{folder}' holds models in folders of their own, and none itself.",
            f"They are {listing(inner)}.",
            f"Give one of them: --model {folder / inner[-1]}.",
        )
    if not found:
        raise VitedgeError(
            f"The folder '{folder}' holds no checkpoint.",
            f"It holds {listing(names) or 'no files'}.",
            "Give a folder with model.safetensors, pytorch_model.bin or a .pth file in it.",
        )
    raise VitedgeError(
        f"The folder '{folder}' holds {len(preferred)} checkpoints.",
        f"They are {listing(preferred)}.",
        f"Give the one that is meant: --model {folder / preferred[0]}.",
    )


def description(checkpoint: Path) -> Path | None:
    """The config.json beside a checkpoint that describes a model, or None."""
    path = checkpoint.parent / CONFIG
    return path if path.is_file() and describes_a_model(path) else None
