"""What the names of layers and parameters say of their place in the model. Imports no torch."""

from __future__ import annotations

# Parameters that are tokens or positions: added to the stream as they are, never multiplied.
TOKENS = ("class_token", "pos_embedding")


def is_added(parameter: str) -> bool:
    """Whether it is added as it is and never multiplied: tokens, positions, and biases of relative positions."""
    return parameter in TOKENS or parameter.endswith("bias.table")


def block_index(name: str) -> int | None:
    """The block of a layer, a site or a value of the graph: 3 of "block3.mlp.fc1"; None outside the blocks."""
    head = name.split(".", 1)[0]
    return int(head[5:]) if head.startswith("block") and head[5:].isdigit() else None


def is_stream(name: str) -> bool:
    """Whether a site of a block shows the residual stream."""
    return name.endswith((".residual1", ".residual2", ".merged", ".downsample"))


def layer_index(parameter: str, depth: int) -> int:
    """0 for a parameter of the embedding, 1 to `depth` for the blocks, `depth` + 1 for what comes after them."""
    if parameter.startswith("blocks."):
        return int(parameter.split(".")[1]) + 1
    return depth + 1 if parameter.startswith(("norm", "head", "pooling")) else 0
