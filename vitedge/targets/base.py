"""What every target offers. Imports neither torch nor onnx nor any vendor's library: a board runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from vitedge.documents import Json
from vitedge.errors import VitedgeError
from vitedge.metrics import Activation
from vitedge.options import LOCAL, Options
from vitedge.reporter import Doing

if TYPE_CHECKING:
    from vitedge.cost.model import LatencyModel


@dataclass(frozen=True)
class Probe:
    """What a target finds on this machine.

    Attributes:
        can_build, can_run: whether artifacts can be made, and run, here and now.
        versions: name -> version of what was found (packages, drivers, devices).
        reason: why not, where one of the two is False; empty otherwise.
        fix: the command or the page that fixes it; empty otherwise.
        notes: sentences on versions that are known not to fit each other, though it may run.
        device: where `open` would run: "cpu", "gpu", "npu" or "simulator".
    """

    target: str
    can_build: bool
    can_run: bool
    versions: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    fix: str = ""
    device: str = "cpu"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One thing in a graph that a target's compiler won't take."""

    node: str
    op: str
    reason: str


class TargetOptions(Options):
    """Base of a target's own build options. Each field is a flag of `vitedge build` and a TOML key
    `[build.TARGET]`; its description is the flag's help."""

    block_outputs: bool = Field(
        False,
        description="Also build it with the outputs of its blocks, for a board to find the first bad one by "
        "(`vitedge pack`, `vitedge doctor --pack`).",
    )

    def names_compiler(self) -> bool:
        """Whether these options name a compiler that `probe` can't know of."""
        return False

    @property
    def attends(self) -> bool:
        """Whether the artifact is to have attention as a further output."""
        return False


class AttentionOptions(TargetOptions):
    """Options of a target whose artifacts can have a second output."""

    # Of one artifact and not of the run: the next build without the flag has one output again.
    attention_output: Annotated[bool, LOCAL] = Field(
        False,
        description="A second output, attention rollout over the patches, for `vitedge serve`: slower, so the artifact "
        "stands beside the one without, its name with '-attention'.",
    )

    @property
    def attends(self) -> bool:
        return self.attention_output


@dataclass(frozen=True)
class BuildRequest:
    """What a build starts from.

    Attributes:
        onnx: the bundle's graph: input `pixels` uint8 [N, H, W, 3], output `logits` float32 [N, classes].
        out: an empty folder to write the artifact's files to; it is moved into the bundle when the build succeeded.
        precision: "fp32", "fp16", "bf16" or "int8"; one of the target's `precisions`.
        platform: the target's platform name (an RKNN chip), or None.
        options: the target's own `Options`.
        pixels: calibration images, uint8 [N, H, W, 3] (a memory map), or None where the bundle has none.
        reference_logits: FP32 logits of the model before this build on `pixels`, float32 [N, classes], or None.
        onnx_by_precision: the bundle's other graphs, by precision ("float32", "int8", "reference").
        quant: folder with the quantisation scheme of the bundle, or None.
        previous: metadata of the artifact that this one takes the place of, or None.
        activation: what turns the outputs into probabilities; "none" where they are embeddings.
        taps: values of the float graph that a second artifact, in `out/blocks/`, gives as further outputs.
        doing: a long build says there what it is at.
    """

    onnx: Path
    out: Path
    precision: str
    platform: str | None
    options: Any
    pixels: np.ndarray | None = None
    reference_logits: np.ndarray | None = None
    onnx_by_precision: dict[str, Path] = field(default_factory=dict)
    quant: Path | None = None
    previous: Mapping[str, Any] | None = None
    activation: Activation = "softmax"
    taps: tuple[str, ...] = ()
    doing: Doing = field(default_factory=Doing)

    def graph(self, name: str) -> Path:
        """The graph of that name in `onnx_by_precision`. Raises VitedgeError where the run has none."""
        if name not in self.onnx_by_precision:
            raise VitedgeError(
                f"The run has no {name} graph.",
                "It was compressed without quantisation.",
                "Run `vitedge compress --quantize static` first.",
            )
        return self.onnx_by_precision[name]


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        artifact: file name inside `BuildRequest.out` that `open` starts from.
        metadata: JSON-able facts: versions, session options, input layout, what the compiler did; `host_only`:
            names of files and folders beside the artifact that a board does not need; `blocks`: {"artifact", "taps"}
            of the second artifact, where taps were asked for.
        warnings: lines that the user should read.
    """

    artifact: str
    metadata: Json
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CostRow:
    """One layer in the vendor's own estimate. A figure that the vendor does not model is None."""

    name: str
    op: str
    dtype: str
    device: str
    cycles: int | None
    kib: float | None


@dataclass(frozen=True)
class CostTable:
    """The vendor's own cost estimate, with what it leaves out in words."""

    rows: list[CostRow]
    total_cycles: int | None
    not_modelled: str = ""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one pass by the device's own clock: the copy in, the compute time, the copy out."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


class Runner(Protocol):
    """A loaded artifact. `device` is "cpu", "gpu", "npu" or "simulator"; a simulator reports no latency.

    Attributes:
        batch: fixed batch of the artifact, or None for any.
        versions: of the runtime and the driver, where the runner knows them.
        last_times: of the last `infer`, where the device has a clock of its own.
    """

    device: str
    batch: int | None
    versions: dict[str, str] | None = None
    last_times: Times | None = None

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 logits [N, classes]."""
        ...

    def outputs(self, pixels: np.ndarray) -> list[np.ndarray]:
        """All outputs that the artifact has, float32 [N, ...]: the logits, then attention rollout or its taps."""
        return [self.infer(pixels)]

    def close(self) -> None: ...


class Environment(Protocol):
    """A vendor's compiler that is installed: its interpreter, version, and folder where vitedge made it."""

    @property
    def python(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def source(self) -> str: ...


class Toolchains(Protocol):
    """A vendor's compiler in environments of its own, for `vitedge toolchain`."""

    DEFAULT_VERSION: str

    @property
    def install(self) -> Callable[..., Environment]:
        """(version, folder or None, python or None, told of each stage) -> what was made."""
        ...

    @property
    def installed(self) -> Callable[[], Sequence[Environment]]: ...

    @property
    def remove(self) -> Callable[[str | None], Sequence[Environment]]: ...


class Target(Protocol):
    """A way to build and run a model. Importing a target's package never imports its vendor's library.

    A target is a subclass; the methods that have a body here are abilities that it may do without.
    """

    name: str
    precisions: tuple[str, ...]
    platforms: tuple[str, ...] = ()  # empty where the target has none; the first is the default
    refused: Mapping[str, str] = {}  # chips of the vendor that it does not build for -> why
    sorts: bool = True  # whether its compiler takes what matching each image's tokens needs (TopK, Gather by values)
    block_outputs: bool = False  # whether it can build an artifact with taps
    cycle_macs: Mapping[str, int] = {}  # precision -> MACs that its `cost` counts as a cycle; empty without cycles
    presets: Mapping[str, str] = {}  # where its compiler calibrates INT8 by itself: our preset -> its own
    tiles: tuple[int, int]  # (MLP units, dims of a head) computed together: a part of a tile costs a whole one
    Options: type[TargetOptions]

    @abstractmethod
    def probe(self) -> Probe:
        """What it finds on this machine."""

    def diagnose(self) -> Probe:
        """`probe`, and whether what it found works, for `vitedge doctor`; it may take seconds."""
        return self.probe()

    @abstractmethod
    def build(self, request: BuildRequest) -> BuildResult:
        """Makes an artifact, or raises VitedgeError with the compiler's own words."""

    @abstractmethod
    def open(self, artifact: Path, metadata: Mapping[str, Any], *, threads: int | None = None) -> Runner:
        """The artifact, loaded."""

    def check(self, onnx_path: Path, precision: str, platform: str | None) -> list[Problem]:
        """What the compiler won't take in that graph, before it is called."""
        return []

    def misfits(self, metadata: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
        """Sentences on what was built with one version and runs here with another that is known not to fit it.

        metadata: the artifact's; versions: of `probe` here.
        """
        return []

    def preview(self, request_for: Callable[[], BuildRequest], options: Any) -> str | None:
        """The command that it would run instead of building, where `options` (its own) ask for that."""
        return None

    def cost(self, artifact: Path, metadata: Mapping[str, Any]) -> CostTable | None:
        """The vendor's own estimate, where there is one."""
        return None

    def latency_model(
        self, precision: str, platform: str | None = None, profile: str | None = None
    ) -> LatencyModel | None:
        """What a layer takes where this machine can't measure it: from the text of a board's own `profile`, else from
        published figures, labelled as an estimate; None where there are none. Raises VitedgeError for a profile
        without times."""
        return None

    def settled(self, options: Any, metadata: Json) -> Any:
        """The options (its own) with what a build that `metadata` tells of chose by timing, so that builds of the same
        kind need not time it again."""
        return options

    def weight_bits(self) -> int:
        """Bits of INT8's weights that its kernels multiply on this machine without saturation."""
        return 8

    def toolchains(self) -> Toolchains | None:
        """Its compiler's environments, where the compiler can't live beside vitedge."""
        return None
