"""A bench result as tables and sentences: for the terminal, report.md, the report page and a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from vitedge.bench.golden.judge import golden_table
from vitedge.bench.result import BenchResult
from vitedge.bench.schema import Row
from vitedge.bench.stats import Interval
from vitedge.host.facts import Host
from vitedge.tables import Cell, Table

SOURCE_NOTE = (
    "source: the model as it came, exported to FP32; agreement, SQNR and differences of the others are against it."
)


def tables(result: BenchResult) -> list[Table]:
    """The tables that have something to show: golden references, accuracy, then speed and size."""
    rows = result.ok
    out = []
    if found := {row.artifact: row.golden for row in result.rows if row.golden}:
        out.append(golden_table(found))
    if any(row.quality is not None for row in rows):
        out.append(accuracy_table(rows, result.reference))
    if any(row.latency_ms or row.throughput_ips for row in rows):
        out.append(speed_table(rows))
    return out


def accuracy_table(rows: Sequence[Row], reference: str | None = None) -> Table:
    """What was right and what was wrong; None is not measured."""
    against = f"against {reference}" if reference else "against the reference"
    columns = ["artifact", "on", "top-1 (%)", "top-1, 95 % interval", "top-5 (%)", f"{against} (points)"]
    columns += ["its 95 % interval", "agreement (%)", "SQNR (dB)", "ECE", "mAP (%)", "F1 (%)", "all labels right (%)"]
    columns += ["cosine", "cosine, worst 1 %", "recall@5 (%)", "of 5 nearest the same (%)"]
    columns += ["nearest image's label (%)", "linear probe (%)"]
    cells: list[list[Cell]] = []
    for row in rows:
        exact = row.agreement == 1 and row.sqnr_db is None and row.kl_nats == 0
        known: list[Cell] = [percent(row.top1), interval(row.top1_ci95), percent(row.top5), percent(row.delta_top1)]
        known += [interval(row.delta_ci95, signed=True), percent(row.agreement), "exact" if exact else row.sqnr_db]
        known += [row.ece, *map(percent, (row.map, row.f1, row.exact_match))]
        known += [row.cosine_mean, row.cosine_worst, percent(row.recall_at_5), percent(row.overlap_at_5)]
        known += [percent(row.knn_top1), percent(row.probe_top1)]
        cells.append([row.artifact, row.device, *known])
    digits = dict.fromkeys([name for name in columns if "(" in name], 1) | {"ECE": 3}
    digits |= {"cosine": 4, "cosine, worst 1 %": 4}
    note = SOURCE_NOTE if reference else ""
    return Table("Accuracy", columns, cells, note, decimals=digits).without_empty()


def speed_table(rows: Sequence[Row]) -> Table:
    """Speed, memory and size."""
    base = next((row.latency_ratio.to for row in rows if row.latency_ratio), None)
    columns = ["artifact", "on", "p50 (ms)", "p90 (ms)", "p95 (ms)", "p99 (ms)", "timed"]
    columns += [f"time over {base or 'the first'}", "its 95 % interval", "images/s", "first (ms)", "peak (MiB)"]
    columns += ["size (MiB)", "energy (mJ/image)", "MACs removed (%)"]
    dense = next((row.macs for row in rows if row.role == "source"), None)
    cells: list[list[Cell]] = []
    for row in rows:
        times, ratio = row.latency_ms, row.latency_ratio
        known: list[Cell] = [times.p50, times.p90, times.p95, times.p99, times.n] if times else [None] * 5
        known += [ratio.ratio, f"{ratio.ci95[0]:.3f}..{ratio.ci95[1]:.3f}"] if ratio else [None, None]
        first = row.cold_start_ms.first if row.cold_start_ms else None
        known += [row.throughput_ips, first, row.peak_rss_mib]
        removed = percent(1 - row.macs / dense) if dense and row.macs and row.macs != dense else None
        cells.append([row.artifact, row.device, *known, row.size_mib, row.energy_mj, removed])
    digits = dict.fromkeys(columns[2:6], 2) | dict.fromkeys(columns[9:], 1) | {columns[7]: 3}
    return Table("Speed and size", columns, cells, decimals=digits).without_empty()


def failures(result: BenchResult) -> list[str]:
    """A line for each row that was not measured."""
    return [f"{row.artifact}: {row.status}: {row.reason}" for row in result.rows if not row.ok]


def data_line(result: BenchResult) -> str:
    """What the figures were measured on, in a sentence."""
    data = result.data
    if not data.path:
        return "No data set: latency on noise."
    limited = f" of {data.of:,}, drawn by seed {data.seed}" if data.limit and data.of else ""
    marked = ", which the model was calibrated on: accuracy flatters" if data.calibration else ""
    skipped = f", {len(data.skipped)} unreadable" if data.skipped else ""
    return f"{data.n:,} images{limited} from {data.path}{marked}{skipped}."


def host_line(host: Host) -> str:
    """The machine, in a sentence."""
    parts = [host.name, host.board, host.cpu, host.cores and f"{host.cores} cores"]
    parts += [host.governor and f"governor {host.governor}", host.ram_mib and f"{host.ram_mib / 1024:.1f} GiB"]
    return ", ".join(str(part) for part in [*parts, host.kernel] if part)


def percent(share: float | None) -> float | None:
    """A share, or a difference of shares, in percent."""
    return None if share is None else 100 * share


def interval(pair: Interval | None, *, signed: bool = False) -> str | None:
    """An interval of shares in percent, as "69.4..77.1"."""
    if pair is None:
        return None
    return "..".join(f"{100 * one:+.1f}" if signed else f"{100 * one:.1f}" for one in pair)
