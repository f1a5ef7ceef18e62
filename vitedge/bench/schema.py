"""What a bench measured, as types; `python -m vitedge.bench.schema` prints their JSON Schema (bench.schema.json).

Units stand in the names: _ms, _mib, _mj, _s, _db, _nats, _ips (images a second). Shares are between 0 and 1. None is a
figure that was not measured, never zero.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import ConfigDict, JsonValue, TypeAdapter

from vitedge.bench.accuracy import Accuracy, ByImage
from vitedge.bench.energy import Energy
from vitedge.bench.golden.judge import Judgement
from vitedge.bench.jobs import Settings
from vitedge.bench.latency import WarmUp
from vitedge.bench.stats import Interval, Summary
from vitedge.host.facts import Host
from vitedge.metrics import Activation

SCHEMA = 2
Status = Literal["ok", "failed", "unavailable"]


@dataclass(frozen=True)
class Latency(Summary):
    """All timed inferences of an artifact in ms; `samples` is an even choice of the sorted times, for plots."""

    rounds: int = 0
    launches: int = 0
    samples: tuple[float, ...] = ()


@dataclass(frozen=True)
class LatencyRatio:
    """How many times longer an inference takes than one of `to`, from interleaved rounds."""

    to: str
    ratio: float
    ci95: Interval
    launches: int
    rounds: int


@dataclass(frozen=True)
class ColdStart:
    """Opening the artifact, and its first inference, in ms."""

    load: float
    first: float


@dataclass(frozen=True)
class Stages:
    """The way from an image file to names of classes, in ms: decode and resize, inference, softmax and top 5."""

    preprocess: Summary
    inference: Summary
    postprocess: Summary
    end_to_end: Summary


@dataclass(frozen=True)
class Throughput:
    """Images done in so many seconds by `contexts` parallel runners of `batch` images each."""

    images: int
    seconds: float
    contexts: int
    batch: int


@dataclass(frozen=True)
class Sustained:
    """Minutes under load: `p50_drift` is how much slower the second half was; `throttled` None where nothing can tell;
    `p50_ms_by_part` of sixty equal spans."""

    seconds: float
    latency_ms: Summary
    p50_drift: float | None = None
    throttled: bool | None = None
    max_celsius: float | None = None
    min_mhz: int | None = None
    max_mhz: int | None = None
    p50_ms_by_part: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Row(Accuracy):
    """One artifact. Agreement, SQNR, KL and differences are against the reference, which the result names.

    Attributes:
        role: "source" for the model as it came, exported as it is to FP32; "artifact" for what was built.
        artifact_sha256: of the files that were measured: a later build has another.
        records, records_sha256: the per-image records below `bench/work` and their digest.
        accepted: whether the build was within its tolerance; None where it was not compared.
        size_mib: of what a board needs, without metadata, logs and a simulator's files.
        affinity: processors that the process was bound to.
        golden: what a pack's golden references say of it on this machine; None where they were not checked.
    """

    artifact: str = ""
    target: str = ""
    precision: str = ""
    platform: str | None = None
    role: Literal["source", "artifact"] = "artifact"
    status: Status = "failed"
    reason: str = ""
    device: str | None = None
    batch: int | None = None
    threads: int | None = None
    affinity: tuple[int, ...] | None = None
    versions: dict[str, str] | None = None
    artifact_sha256: str = ""
    records: str | None = None
    records_sha256: str | None = None
    by_image: ByImage | None = None
    accepted: bool | None = None
    warnings: tuple[str, ...] = ()
    golden: Judgement | None = None
    session: dict[str, JsonValue] | None = None
    latency_ms: Latency | None = None
    latency_ratio: LatencyRatio | None = None
    warm_up: WarmUp | None = None
    device_ms: dict[str, Summary] | None = None
    cold_start_ms: ColdStart | None = None
    stages_ms: Stages | None = None
    sustained: Sustained | None = None
    throughput: Throughput | None = None
    throughput_ips: float | None = None
    peak_rss_mib: float | None = None
    base_rss_mib: float | None = None
    energy: Energy | None = None
    energy_mj: float | None = None
    size_mib: float | None = None
    macs: int | None = None
    params: int | None = None
    vendor_cycles: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.status == "ok"

    @property
    def p50_ms(self) -> float | None:
        """Its median latency, None where it was not measured (a simulator, a failure)."""
        return self.latency_ms.p50 if self.latency_ms else None

    @property
    def quality(self) -> float | None:
        """Top-1; mAP of a multi-label model; agreement with the reference where the data has no labels."""
        return next((one for one in (self.top1, self.map, self.agreement) if one is not None), None)

    @property
    def drop_points(self) -> float | None:
        """Percentage points lost against the reference: of top-1, of mAP, or of agreement; None where nothing tells."""
        if self.role == "source":
            return 0.0
        for delta in (self.delta_top1, self.delta_map):
            if delta is not None:
                return -100 * delta
        return None if self.agreement is None else 100 * (1 - self.agreement)


@dataclass(frozen=True)
class Data:
    """The images: `limit` of `of`, drawn by `seed`; `calibration` where the model was calibrated on them."""

    path: str | None = None
    n: int = 0
    sha256: str | None = None
    skipped: tuple[str, ...] = ()
    limit: int | None = None
    seed: int | None = None
    of: int | None = None
    calibration: bool = False
    labels: bool | None = None
    activation: Activation = "softmax"


@dataclass(frozen=True)
class Step:
    """How a step of the run was made."""

    options: dict[str, JsonValue] = field(default_factory=dict)
    seconds: float | None = None
    tools: dict[str, JsonValue] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The document.

    Attributes:
        reference: name of the row that the others are held against; None where there was none.
        gate: the limits that were asked for.
        digest: SHA-256 of all the rest, so that a file that was changed by hand is known.
    """

    # bool, numbers and null as JSON has them; NaN and infinity are refused.
    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    rows: tuple[Row, ...]
    schema: int = SCHEMA
    host: Host = field(default_factory=Host)
    data: Data = field(default_factory=Data)
    settings: Settings | None = None
    started: str | None = None
    seconds_taken: float | None = None
    reference: str | None = None
    run: str | None = None
    command: str = ""
    steps: dict[str, Step] = field(default_factory=dict)
    gate: str = ""
    digest: str = ""


def json_schema() -> dict[str, object]:
    """The JSON Schema of the bench JSON."""
    from vitedge.bench.result import BenchResult

    known = TypeAdapter(BenchResult).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | known | {"title": "vitedge bench"}


def field_names(kind: type) -> tuple[str, ...]:
    """The names of a dataclass's fields."""
    return tuple(one.name for one in fields(kind))


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1, sort_keys=True))
