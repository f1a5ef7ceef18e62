"""Rewrites of the graph for ONNX Runtime's CPU kernels, one a file. Each is exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from vitedge.host.cpu import saturates
from vitedge.onnx_graph.editor import GraphEditor
from vitedge.targets.onnxruntime.rewrites import (
    dynamic_products,
    float_weights,
    fused_attention,
    integer_attention,
    integer_products,
    unsigned_weights,
)
from vitedge.targets.rewrites import cls_attention, mlp_groups

if TYPE_CHECKING:
    import onnx

Attention = Literal["packed", "heads", "parts"]
Groups = Literal["joined", "apart"]
Weights = Literal["int8", "uint8"]
AttentionChoice = Literal["auto", "packed", "heads", "parts"]
GroupsChoice = Literal["auto", "joined", "apart"]
WeightsChoice = Literal["auto", "int8", "uint8"]
ATTENTION: tuple[Attention, ...] = get_args(Attention)
GROUPS: tuple[Groups, ...] = get_args(Groups)


@dataclass(frozen=True)
class Form:
    """How a graph is written for ONNX Runtime; which form is fastest depends on the CPU and on the model's widths.

    Attributes:
        attention: see `fused_attention`; parts leaves it as exported.
        groups: whether an MLP's groups of units are computed together where they can be (see `mlp_groups`).
        weights: the type of integer weights (see `unsigned_weights`): exact on this CPU unless asked for otherwise.
    """

    attention: Attention = "packed"
    groups: Groups = "joined"
    weights: Weights = field(default_factory=lambda: "uint8" if saturates() else "int8")


def apply(model: onnx.ModelProto, form: Form) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A rewritten copy, and how many times each rewrite found its pattern."""
    g = GraphEditor(model)
    counts = {"dynamic_products": dynamic_products.rewrite(g), "cls_attention": cls_attention.rewrite(g)}
    if form.groups == "joined":
        counts["mlp_groups"] = mlp_groups.rewrite(g)
    if form.attention != "parts":
        counts["fused_attention"] = fused_attention.rewrite(g, form.attention)
    counts["integer_attention"] = integer_attention.rewrite(g)
    counts["integer_products"] = integer_products.rewrite(g)
    counts["float_weights"] = float_weights.rewrite(g)
    if form.weights == "uint8":
        counts["unsigned_weights"] = unsigned_weights.rewrite(g)
    return g.finish(), counts


def exact_here(model: onnx.ModelProto) -> onnx.ModelProto:
    """The quantised graph as this CPU computes it without saturation; the model itself where it does anyway."""
    if not saturates():
        return model
    g = GraphEditor(model)
    return g.finish() if unsigned_weights.rewrite(g) else model
