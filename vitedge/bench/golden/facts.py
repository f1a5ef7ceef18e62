"""What a pack says of its golden references, and where their files lie in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vitedge.documents import Document, RelativePath
from vitedge.targets.metadata import Name

FOLDER = "golden"
# Below an artifact's folder: the same artifact with the outputs of its blocks as further outputs.
BLOCKS = "blocks"


class GoldenGraph(Document):
    """A float graph of the run, in FP32 on the golden images.

    Attributes:
        taps: values inside it, from the input to the output: the embedding, and each block's two residual sums.
        faults: names of what goes wrong on the way into a model, whose logits lie beside the right ones.
    """

    taps: list[Name] = []
    faults: list[Name] = []


class GoldenArtifact(Document):
    """One artifact as it ran where the pack was made.

    Attributes:
        graph: the float graph that it was built from.
        device: what it ran on there ("simulator", "cpu", ...); None where it can't run there.
        sqnr_db: of its logits to the float graph's; None where it did not run, or both are equal.
        blocks: the file with the further outputs, below the artifact's folder; None where it was not built.
        taps: the outputs of `blocks` in their order -> SQNR to the float graph, None as above.
    """

    graph: Name
    device: str | None = None
    sqnr_db: float | None = None
    blocks: RelativePath | None = None
    taps: dict[Name, float | None] = {}


class Golden(Document):
    """`golden` in a pack's index. `positions` of the images among the pack's."""

    positions: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=64)
    graphs: dict[Name, GoldenGraph]
    artifacts: dict[Name, GoldenArtifact]


def golden_files(golden: Golden) -> list[str]:
    """The files that the references need in their pack, beside the images and the artifacts."""
    found = [own_logits(name) for name, one in golden.artifacts.items() if one.device is not None]
    for name, graph in golden.graphs.items():
        found.append(graph_logits(name))
        found += [graph_tap(name, tap) for tap in graph.taps]
        found += [graph_fault(name, fault) for fault in graph.faults]
    return found


def graph_logits(graph: str) -> str:
    """File of a float graph's logits, float32 [n, classes]."""
    return f"{FOLDER}/{graph}/logits.npy"


def graph_tap(graph: str, tap: str) -> str:
    """File of one of its values, float32 [n, ...]."""
    return f"{FOLDER}/{graph}/taps/{tap}.npy"


def graph_fault(graph: str, fault: str) -> str:
    """File of its logits where that goes wrong with its input."""
    return f"{FOLDER}/{graph}/faults/{fault}.npy"


def own_logits(artifact: str) -> str:
    """File of an artifact's own logits where the pack was made."""
    return f"{FOLDER}/artifacts/{artifact}.npy"
