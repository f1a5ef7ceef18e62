"""Which file of a model folder holds its weights, and what lies beside it."""

from __future__ import annotations

from pathlib import Path

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.described import CONFIG, describes_a_model
from vitedge.vit.checkpoint.files import INDEX, listing
from vitedge.vit.checkpoint.kinds import is_checkpoint

# In the order in which libraries prefer them.
_WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
# What a Trainer leaves beside the weights.
_BESIDE = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")
_ADAPTER = "adapter_config.json"


def find_weights(folder: Path) -> Path:
    """The checkpoint of a folder. Raises VitedgeError where there is none, or several without a usual name."""
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        below = sorted(p.name for p in folder.iterdir() if p.is_dir())
    except OSError as error:
        raise VitedgeError(
            f"The folder '{folder}' can't be read.", f"{error.strerror}.", "Check its rights."
        ) from error
    if usual := [name for name in _WEIGHTS if name in names]:
        return folder / usual[0]
    if _ADAPTER in names:
        raise VitedgeError(
            f"'{folder}' holds an adapter of peft (LoRA), not a whole model.",
            "Its weights mean something only together with the model that they were trained on.",
            "Merge them: model.merge_and_unload().save_pretrained('merged') with peft, and give the folder merged/ "
            "(with preprocessor_config.json beside it).",
        )
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
