"""What an engine is made of, from `EngineInspector`'s JSON: fused attention, and what runs in which type."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

_TYPES = {"Half": "fp16", "FP16": "fp16", "Float": "fp32", "FP32": "fp32", "Int8": "int8", "INT8": "int8"}
_FUSED = re.compile(r"mha|fmha|attention_fused|flash", re.IGNORECASE)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


# One layer as the inspector writes it: "Name", "LayerType", "Outputs", "Metadata" and others.
EngineLayer = Mapping[str, Any]


class EngineSummary(TypedDict):
    """What an engine is made of: `types` counts layers by type, `attention_fused` is "fused/all"."""

    layers: int
    types: dict[str, int]
    attention_fused: str
    attention_unfused: list[str]
    float32_layers: list[str]


def engine_layers(text: str) -> list[EngineLayer]:
    """The layers of `get_engine_information(JSON)`; empty where the text has another form."""
    try:
        layers = json.loads(text).get("Layers", [])
    except (json.JSONDecodeError, AttributeError):
        return []
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def onnx_nodes(layer: EngineLayer) -> list[str]:
    """The names of the ONNX nodes that a layer was made from."""
    return _ONNX_LAYER.findall(str(layer.get("Metadata", "")))


def layer_type(layer: EngineLayer) -> str:
    """ "fp16", "fp32", "int8" or "other": the type of a layer's first output."""
    outputs = layer.get("Outputs") or [{}]
    text = str(outputs[0].get("Format/Datatype", outputs[0].get("Datatype", "")))
    return next((short for long, short in _TYPES.items() if long in text), "other")


def summarize(layers: Sequence[EngineLayer], softmaxes: list[str]) -> EngineSummary:
    """How many layers there are, in which types, and how many of the attention blocks were fused.

    softmaxes: names of the graph's Softmax nodes; an attention is fused where one kernel, known by its name
    (`_gemm_mha_v2`, `fmha`), was made from that Softmax. Kernels that carry no ONNX names are counted one by
    one.
    """
    kernels = [layer for layer in layers if _is_fused(layer)]
    named = {node for layer in kernels for node in onnx_nodes(layer)}
    found = [name for name in softmaxes if name in named]
    anonymous = sum(1 for layer in kernels if not onnx_nodes(layer))
    fused = min(len(found) + anonymous, len(softmaxes))
    return {
        "layers": len(layers),
        "types": dict(Counter(layer_type(layer) for layer in layers)),
        "attention_fused": f"{fused}/{len(softmaxes)}",
        "attention_unfused": [] if fused == len(softmaxes) else [s for s in softmaxes if s not in named],
        "float32_layers": [str(layer.get("Name", "")) for layer in layers if layer_type(layer) == "fp32"],
    }


def _is_fused(layer: EngineLayer) -> bool:
    return any(_FUSED.search(str(layer.get(key, ""))) for key in ("Name", "LayerType", "TacticName"))
