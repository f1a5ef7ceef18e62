"""The frozen quantisation scheme: the one place where scales, zero points and integer weights live.

It speaks of the exported graph: an activation is named as its value, a weight as its initialiser, with the
normalisation in the patch embedding and groups of MLP units as branches of their own. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitedge import files
from vitedge.errors import VitedgeError

SCHEMA = 1
JSON_NAME, ARRAYS_NAME = "scheme.json", "scheme.safetensors"


@dataclass(frozen=True)
class Activation:
    """x = scale * (q - zero_point), q in 0..2^bits - 1. As signed integers, q and zero_point both shift by
    -2^(bits - 1)."""

    scale: float
    zero_point: int
    bits: int = 8

    def __post_init__(self) -> None:
        if not (self.scale > 0 and np.isfinite(self.scale)) or not 0 <= self.zero_point < 2**self.bits:
            raise ValueError(f"scale {self.scale}, zero point {self.zero_point} with {self.bits} bits")

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value it can hold."""
        return -self.scale * self.zero_point, self.scale * (2**self.bits - 1 - self.zero_point)


@dataclass(frozen=True, eq=False)
class Weight:
    """W = scale[channel] * values: integers int8 in the layout of the graph's initialiser; `axis` is the axis
    of the output channels there. Zero points are 0."""

    values: np.ndarray
    scale: np.ndarray
    axis: int
    bits: int = 8

    def dequantize(self) -> np.ndarray:
        """As float32."""
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return self.values.astype(np.float32) * self.scale.reshape(shape)


@dataclass(frozen=True, eq=False)
class Scheme:
    """Everything that a target needs to run the model in integers.

    Attributes:
        preset: "linear" or "full", what it started from.
        activations: value -> scale and zero point. A value that is missing stays float.
        weights: Linear (`block3.attention.q`, `block3.mlp.fc2.1`, `patch_embed`) -> integers.
        biases: Linear -> its corrected bias, float32.
        groups: block -> sizes of its groups of MLP units, as they were when it was calibrated.
        facts: how it came about, JSON-able: options, images, warnings, share of INT8 MACs, mixed precision.
    """

    preset: str
    activations: dict[str, Activation]
    weights: dict[str, Weight]
    biases: dict[str, np.ndarray]
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Writes `scheme.json` and `scheme.safetensors`, each at once; the same scheme gives the same
        bytes."""
        from safetensors.numpy import save

        arrays = {f"{n}.values": np.ascontiguousarray(w.values) for n, w in self.weights.items()}
        arrays |= {f"{n}.scale": np.ascontiguousarray(w.scale, np.float32) for n, w in self.weights.items()}
        arrays |= {f"{n}.bias": np.ascontiguousarray(b, np.float32) for n, b in self.biases.items()}
        table = {
            "schema": SCHEMA,
            "preset": self.preset,
            "activations": {n: asdict(a) for n, a in self.activations.items()},
            "weights": {n: {"axis": w.axis, "bits": w.bits} for n, w in self.weights.items()},
            "biases": list(self.biases),
            "groups": {n: list(g) for n, g in self.groups.items()},
            "facts": self.facts,
        }
        folder = Path(folder)
        files.write_bytes(folder / ARRAYS_NAME, save(dict(sorted(arrays.items()))))
        files.write_json(folder / JSON_NAME, table)

    @classmethod
    def load(cls, folder: str | Path) -> Scheme:
        """The inverse of `save`. Raises VitedgeError where the files are missing, damaged or of another
        version."""
        from safetensors.numpy import load

        folder = Path(folder)
        if not (folder / JSON_NAME).is_file():
            raise VitedgeError(
                f"There is no quantisation scheme in '{folder}'.",
                "The model was not quantised statically.",
                "Run 'vitedge compress --quantize static' first.",
            )
        try:
            table = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
            arrays = load((folder / ARRAYS_NAME).read_bytes())
            if table["schema"] != SCHEMA:
                raise ValueError(f"it is of version {table['schema']}, this vitedge reads {SCHEMA}")
            weights = {
                n: Weight(arrays[f"{n}.values"], arrays[f"{n}.scale"], w["axis"], w["bits"])
                for n, w in table["weights"].items()
            }
            return cls(
                preset=table["preset"],
                activations={n: Activation(**a) for n, a in table["activations"].items()},
                weights=weights,
                biases={n: arrays[f"{n}.bias"] for n in table["biases"]},
                groups={n: tuple(g) for n, g in table["groups"].items()},
                facts=table["facts"],
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise VitedgeError(
                f"The quantisation scheme in '{folder}' can't be read.",
                str(error),
                "Run 'vitedge compress --quantize static' again.",
                exit_code=1,
            ) from error
        except Exception as error:  # safetensors has an exception of its own
            raise VitedgeError(
                f"The quantisation scheme in '{folder}' is damaged.", str(error), "Quantise again.", exit_code=1
            ) from error


def misfit(what: str) -> VitedgeError:
    """The error for a scheme that belongs to another graph."""
    return VitedgeError(
        "The quantisation scheme does not fit the graph.",
        what,
        "It was calibrated on another model, or the model was changed since: quantise again.",
    )
