"""transformers' ViTs: what `config.json` says, and the parts that their files have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vitedge.vit.checkpoint.families.tensors import Tensors


class Settings(BaseModel):
    """Keys of config.json that change what a ViT computes; with the library's own defaults where files omit them."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model_type: str
    architectures: list[str] | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float | None = None
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    problem_type: str | None = None
    mlp_ratio: float = 4
    use_swiglu_ffn: bool = False
    use_gated_mlp: bool = False
    num_register_tokens: int = 0
    rope_theta: float = 100.0
    rope_parameters: dict[str, Any] | None = None
    vision_use_head: bool = True
    projection_dim: int = 512
    vision_config: dict[str, Any] | None = None
    depths: list[int] = [2, 2, 6, 2]
    num_heads: list[int] = [3, 6, 12, 24]
    window_size: int = 7
    use_absolute_embeddings: bool = False

    @property
    def architecture(self) -> str:
        """The class that was saved."""
        return (self.architectures or [""])[0]

    @property
    def output(self) -> str:
        """What turns the output into probabilities; nothing for an embedding."""
        if "Classification" not in self.architecture:
            return "none"
        return "sigmoid" if self.problem_type == "multi_label_classification" else "softmax"


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The tensors by their names behind the first of `prefixes` that they have; a bare model's have none."""
    found = {}
    for name, tensor in tensors.items():
        first = next((p for p in prefixes if name.startswith(p)), "")
        found[name.removeprefix(first)] = tensor
    return found


def old_block(t: Tensors, i: int, norms: tuple[str, str] = ("layernorm_before", "layernorm_after")) -> None:
    """Attention, norms and MLP of block `i` as ViT, DeiT and DINOv2 name them, LayerScale folded."""
    ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
    scales = [t.take(n) if (n := f"{theirs}.layer_scale{k}.lambda1") in t else None for k in (1, 2)]
    t.norm(f"{ours}.norm1", f"{theirs}.{norms[0]}")
    t.norm(f"{ours}.norm2", f"{theirs}.{norms[1]}")
    # transformers 5 has shorter names in memory; its files keep the old ones.
    short = f"{theirs}.attention.q_proj.weight" in t
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        t.linear(f"{ours}.attention.{part}", f"{theirs}.attention.{f'{part}_proj' if short else f'attention.{name}'}")
    t.linear(f"{ours}.attention.out", f"{theirs}.attention.{'o_proj' if short else 'output.dense'}", scales[0])
    if f"{theirs}.mlp.weights_in.weight" in t:
        gate_and_up = (f"{ours}.mlp.gate", f"{ours}.mlp.fc1")
        t.fused(gate_and_up, f"{theirs}.mlp.weights_in.weight", f"{theirs}.mlp.weights_in.bias")
        t.linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.weights_out", scales[1])
        return
    newer = f"{theirs}.mlp.fc1.weight" in t
    first, second = ("mlp.fc1", "mlp.fc2") if newer else ("intermediate.dense", "output.dense")
    t.linear(f"{ours}.mlp.fc1", f"{theirs}.{first}")
    t.linear(f"{ours}.mlp.fc2", f"{theirs}.{second}", scales[1])


def clip_block(t: Tensors, i: int) -> None:
    """Block `i` as CLIP and SigLIP name it."""
    ours, theirs = f"blocks.{i}", f"encoder.layers.{i}"
    t.norm(f"{ours}.norm1", f"{theirs}.layer_norm1")
    t.norm(f"{ours}.norm2", f"{theirs}.layer_norm2")
    for part in "qkv":
        t.linear(f"{ours}.attention.{part}", f"{theirs}.self_attn.{part}_proj")
    t.linear(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
    for part in ("fc1", "fc2"):
        t.linear(f"{ours}.mlp.{part}", f"{theirs}.mlp.{part}")
