"""What `vitedge bench` can be told. Imports no numpy: the configuration holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from vitedge.data.options import DataColumns
from vitedge.errors import VitedgeError
from vitedge.options import EXPERT, SEED_MAX, Cli, Names

if TYPE_CHECKING:
    from vitedge.bench.jobs import Settings
    from vitedge.bench.measure import BenchRequest

SCENARIOS = ("single", "throughput", "sustained")
# No machine has more processors; a list of them is made.
_MOST_CORES = 4096


class SampleOptions(DataColumns):
    """Which images and artifacts are taken."""

    data: str | None = Field(None, description="Labelled images. (default: the run's)")
    limit: int | None = Field(None, ge=1, le=10**9, description="So many images, each class its share.")
    seed: int = Field(0, ge=0, le=SEED_MAX, description="Seed of --limit's choice.")
    only: Names = Field((), description="Artifacts, targets or precisions, with commas. (default: all)")


class BenchOptions(SampleOptions):
    """What is measured, and how."""

    scenario: Names = Field(("single",), description=f"Of {', '.join(SCENARIOS)}, with commas.")
    batch: int = Field(1, ge=1, le=4096, description="Batch of artifacts with a free one.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a runner. (default: its own)")
    cores: str = Field("", description="Bind to these processors: 4-7 or 0,2.")
    contexts: int = Field(1, ge=1, le=256, description="Parallel runners of throughput.")
    seconds: float = Field(3.0, ge=0.05, le=86400, description="Shortest time for each latency.")
    launches: Annotated[int, EXPERT] = Field(5, ge=1, le=1000, description="Starts of each process for its latency.")
    sustained_seconds: float = Field(120.0, ge=1, le=604800, description="Length of sustained.")
    timeout: Annotated[float, EXPERT] = Field(
        300.0, ge=1, le=604800, description="Seconds without an answer that are a hang."
    )
    row_limit: Annotated[float, EXPERT] = Field(21600.0, ge=1, le=604800, description="Seconds for a row's accuracy.")
    memory_limit_mib: Annotated[int | None, EXPERT] = Field(
        None, ge=16, le=2**24, description="Address space of a row. (default: no limit)"
    )
    accuracy: bool = Field(True, description="Evaluate the images; without, latency alone.")
    golden: bool = Field(True, description="First check what a pack's golden references say of each artifact.")
    fresh: bool = Field(False, description="Forget what an earlier run measured.")
    text_embeddings: str | None = Field(
        None, description="FILE.npz with names and embeddings of classes, for zero-shot accuracy of CLIP and its like."
    )
    gate: str = Field("", description="Limits, as top1-drop=1.0,p50-ms=20; broken: exit 1.")
    pick: bool = Field(False, description="Of a family's artifacts name the best within --gate; none: exit 1.")
    host: Names = Field((), description="user@board: measure there; may be repeated.")
    ssh: Annotated[str, Cli(expert=True, local=True)] = Field("ssh", description="How ssh is called.")
    remote_python: Annotated[str, Cli(local=True)] = Field("python3", description="Python 3.10 or newer on the board.")
    host_name: Annotated[str | None, EXPERT] = Field(None, description="Your name for this machine.")

    @field_validator("scenario")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [one for one in value if one not in SCENARIOS]:
            raise VitedgeError(f"There is no scenario '{unknown[0]}'.", "", f"Choose of: {', '.join(SCENARIOS)}.")
        return tuple(dict.fromkeys(value))

    @field_validator("gate")
    @classmethod
    def _limits(cls, value: str) -> str:
        from vitedge.bench.gate import parse_gates

        parse_gates(value)
        return value

    @field_validator("cores")
    @classmethod
    def _processors(cls, value: str) -> str:
        parse_cores(value)
        return value

    def settings(self) -> Settings:
        """How the harness measures."""
        from vitedge.bench.jobs import Settings

        return Settings(
            scenarios=self.scenario,  # type: ignore[arg-type]  # validated above
            batch=self.batch,
            threads=self.threads,
            cores=parse_cores(self.cores),
            contexts=self.contexts,
            seconds=self.seconds,
            launches=self.launches,
            sustained_s=self.sustained_seconds,
            timeout_s=self.timeout,
            row_limit_s=self.row_limit,
            memory_limit_mib=self.memory_limit_mib,
            accuracy=self.accuracy,
            golden=self.golden,
        )

    def request(self, command: str = "") -> BenchRequest:
        """What the harness measures."""
        from vitedge.bench.measure import BenchRequest

        return BenchRequest(
            self.only,
            self.of(self.data),
            self.limit,
            self.seed,
            self.fresh,
            self.host_name,
            command,
            self.gate,
            self.text_embeddings,
        )


def parse_cores(text: str) -> tuple[int, ...] | None:
    """The processors in "4-7" or "0,2"; None for all. Raises VitedgeError where the text is neither."""
    if not text:
        return None
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            low, high = int(first), int(last or first)
            if not 0 <= low <= high < _MOST_CORES:
                raise ValueError
            found += range(low, high + 1)
    except ValueError:
        raise VitedgeError(
            f"--cores {text[:60]} is no list of processors.", "", f"Write 4-7 or 0,2; each below {_MOST_CORES}."
        ) from None
    return tuple(found)
