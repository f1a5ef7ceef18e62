"""The bench JSON's rows as tables of cells: for the terminal and for report.md."""

from __future__ import annotations

from typing import Any

from vitedge.tables import Cell, Table

Rows = list[list[Cell]]


def accuracy_table(result: dict[str, Any]) -> Table:
    """What was right and what was wrong; None is not measured."""
    columns = ["artifact", "on", "top-1", "95 %", "top-5", "Δ top-1", "95 %", "agreement", "SQNR dB", "ECE"]
    rows: Rows = []
    for row in result["rows"]:
        ece = None if row["ece"] is None else f"{row['ece']:.3f}"
        cells: list[Cell] = [percent(row["top1"]), span(row["top1_ci95"]), percent(row["top5"])]
        cells += [points(row["delta_top1"]), span(row["delta_ci95"], signed=True), percent(row["agreement"])]
        exact = row["agreement"] == 1 and row["sqnr_db"] is None and row["kl"] == 0
        sqnr = "exact" if exact else None if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        rows.append([row["artifact"], row["device"], *cells, sqnr, ece])
    if any(row.get("map") is not None for row in result["rows"]):
        columns.append("mAP")
        for cells, row in zip(rows, result["rows"], strict=True):
            cells.append(percent(row["map"]))
    return Table("Accuracy", columns, rows).without_empty()


def latency_table(result: dict[str, Any]) -> Table:
    """Speed, memory and size."""
    base = next((row["latency_ratio"]["to"] for row in result["rows"] if row["latency_ratio"]), None)
    columns = ["artifact", "on", "p50 ms", "p90", "p95", "p99", "n", f"time over {base}" if base else "ratio"]
    columns += ["images/s", "first ms", "peak MiB", "size MiB", "mJ/image"]
    rows: Rows = []
    for row in result["rows"]:
        times = row["latency_ms"] or {}
        cells: list[Any] = [None if key not in times else f"{times[key]:.2f}" for key in ("p50", "p90", "p95", "p99")]
        compared = row["latency_ratio"]
        ratio = compared and f"{compared['ratio']:.3f} [{compared['ci95'][0]:.3f}, {compared['ci95'][1]:.3f}]"
        first = row["cold_start_ms"] and f"{row['cold_start_ms']['first']:.1f}"
        cells += [times.get("n"), ratio, _short(row["throughput_ips"]), first]
        cells += [_short(row["peak_rss_mib"]), _short(row["size_mib"]), _short(row["energy_mj"])]
        rows.append([row["artifact"], row["device"], *cells])
    return Table("Speed and size", columns, rows).without_empty()


def data_line(result: dict[str, Any]) -> str:
    """What the figures were measured on, in a sentence."""
    data = result["data"]
    if not data.get("path"):
        return "No data set: latency on noise."
    limited = f" of {data['of']:,}, drawn by seed {data['seed']}" if data.get("limit") else ""
    marked = ", which the model was calibrated on: accuracy flatters" if data.get("calibration") else ""
    skipped = f", {len(data['skipped'])} unreadable" if data.get("skipped") else ""
    return f"{data['n']:,} images{limited} from {data['path']}{marked}{skipped}."


def host_line(result: dict[str, Any]) -> str:
    """The machine, in a sentence."""
    host = result["host"]
    parts = [host.get("name"), host.get("board"), host.get("cpu")]
    parts += [host.get("cores") and f"{host['cores']} cores", host.get("governor") and f"governor {host['governor']}"]
    parts += [host.get("ram_mib") and f"{host['ram_mib'] / 1024:.1f} GiB", host.get("kernel")]
    return ", ".join(str(part) for part in parts if part)


def percent(value: float | None) -> str | None:
    """A share as "73.4 %"."""
    return None if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str | None:
    """A difference of shares as "-0.4"; percentage points."""
    return None if value is None else f"{100 * value:+.1f}"


def span(pair: list[float] | None, *, signed: bool = False) -> str | None:
    """An interval of shares as "69.4..77.1"."""
    if pair is None:
        return None
    return f"{100 * pair[0]:+.1f}..{100 * pair[1]:+.1f}" if signed else f"{100 * pair[0]:.1f}..{100 * pair[1]:.1f}"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
