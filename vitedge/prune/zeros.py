"""Zeros in the weights of an exported graph: whether they are what was asked for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitedge.errors import VitedgeError

if TYPE_CHECKING:
    import onnx

# Of the share that sparsifying made: a weight that underflows adds to it, nothing may take from it.
TOLERANCE = 1e-3


def weights_of(model: onnx.ModelProto, layers: Iterable[str]) -> Iterator[np.ndarray]:
    """The matrices [in, out] that these Linears have in the graph, integers or floats, each of its groups by itself."""
    from onnx import numpy_helper

    names = tuple(layers)
    for tensor in model.graph.initializer:
        name = tensor.name.removesuffix(".int8")
        if len(tensor.dims) == 2 and name.endswith(".weight"):
            name = name.removesuffix(".weight")
            head, _, last = name.rpartition(".")
            if name in names or (last.isdigit() and head in names):
                yield numpy_helper.to_array(tensor)


def check_zeros(model: onnx.ModelProto, facts: Mapping[str, Any]) -> float:
    """The graph's share of zeros in the Linears that were made sparse; `facts` are those of the step `sparsify`.

    Raises VitedgeError where it is less than that step made, or the pattern is not 2:4 any more.
    """
    weights = list(weights_of(model, facts["layers"]))
    total = sum(w.size for w in weights)
    share = sum(int((w == 0).sum()) for w in weights) / max(total, 1)
    lost = facts["pattern"] == "2:4" and not all(two_of_four(w) for w in weights)
    if not total or share < facts["zeros"] - TOLERANCE or lost:
        raise VitedgeError(
            f"The graph has {share:.1%} zeros, where --sparsity {facts['pattern']} made {facts['zeros']:.1%}.",
            "A later step filled them again.",
            "This is a fault of vitedge: please report it with the run's vitedge.toml.",
            exit_code=1,
        )
    return share


def two_of_four(weight: np.ndarray) -> bool:
    """Whether of every four inputs in a row, two at least are 0 in each output; `weight` [in, out]."""
    if len(weight) % 4:
        return False
    return bool(((weight.reshape(len(weight) // 4, 4, -1) == 0).sum(1) >= 2).all())


def has_two_of_four(model: onnx.ModelProto) -> bool:
    """Whether any product of two dimensions in the graph has weights with the pattern that sparse tensor cores take."""
    from onnx import numpy_helper

    sparse = (numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) >= 16)
    return any(two_of_four(w) for w in sparse)
