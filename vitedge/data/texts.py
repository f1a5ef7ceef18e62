"""Embeddings of class names, by which a model that gives embeddings of images classifies: zero-shot (CLIP, SigLIP)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitedge import documents
from vitedge.errors import VitedgeError
from vitedge.metrics import directions

_MOST = 2**28  # bytes of a file
_HOW = (
    "Write it as numpy.savez(FILE, names=[...], embeddings=array), one row a name, from the model's own text tower; an "
    "array [names, prompts, dims] is averaged over its prompts, and scale=... is the logit scale (100 by default)."
)


@dataclass(frozen=True)
class Texts:
    """Class names and the embedding of each, float64 [names, dims], of norm 1; `scale`: of the logits."""

    names: tuple[str, ...]
    embeddings: np.ndarray
    scale: float = 100.0

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [N, dims] -> logits [N, names]: cosines times the scale. Raises VitedgeError for other dims."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            raise VitedgeError(
                f"The text embeddings have {self.embeddings.shape[1]} dims, the model's have {embeddings.shape[1:]}.",
                "They are of another model.",
                _HOW,
            )
        return np.asarray(self.scale * directions(embeddings) @ self.embeddings.T)


def read_texts(path: str | Path) -> Texts:
    """The `.npz` of `--text-embeddings`. Raises VitedgeError where it is missing or its arrays do not fit."""
    name = documents.printable(path)

    def wrong(why: str) -> VitedgeError:
        return VitedgeError(f"'{name}' holds no text embeddings.", why, _HOW)

    file = Path(path).expanduser()
    if not file.is_file():
        raise VitedgeError(f"There is no file '{name}'.", "", _HOW)
    if file.stat().st_size > _MOST:
        raise wrong(f"It is larger than {_MOST >> 20} MiB.")
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key in ("names", "embeddings", "scale")}
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise wrong(f"{documents.printable(error, 200)}.") from error
    except Exception as error:  # zipfile has errors of its own
        raise wrong(f"{documents.printable(error, 200)}.") from error
    if missing := [key for key in ("names", "embeddings") if key not in found]:
        raise wrong(f"It has no array {' and no '.join(missing)}.")
    names, values = found["names"], found["embeddings"]
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise wrong("names must be a list of text.")
    if values.dtype.kind != "f" or values.ndim not in (2, 3) or len(values) != len(names) or not values.size:
        raise wrong(f"embeddings must be floats [{len(names)}, dims]; they are {values.dtype} {list(values.shape)}.")
    rows = directions(values) if values.ndim == 2 else _averaged(values)
    scale = float(found["scale"]) if "scale" in found and found["scale"].size == 1 else 100.0
    if not np.isfinite(rows).all() or not np.isfinite(scale) or scale <= 0:
        raise wrong("It holds numbers that are not finite, or a scale that is not above 0.")
    texts = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist())
    if twice := next((name for name in texts if texts.count(name) > 1), None):
        raise wrong(f"The name '{documents.printable(twice)}' is there twice.")
    return Texts(texts, rows, scale)


def _averaged(values: np.ndarray) -> np.ndarray:
    """[names, prompts, dims]: the mean direction of each name's prompts (arXiv 2103.00020, 3.1.4)."""
    each = directions(values.reshape(-1, values.shape[2])).reshape(values.shape)
    return directions(each.mean(1))
