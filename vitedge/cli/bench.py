"""`vitedge bench`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.bench.fleet import bench_fleet
from vitedge.bench.gate import Gate, check_gates, parse_gates
from vitedge.bench.jobs import Settings
from vitedge.bench.measure import What, bench_bundle, bench_pack
from vitedge.bench.show import accuracy_table, data_line, drop_empty, host_line, latency_table
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, err, out, print_table
from vitedge.errors import VitedgeError
from vitedge.files import write_json

_SCENARIOS = ("single", "throughput", "sustained")


def command(
    pack: Annotated[Path | None, typer.Argument(help="A pack of `vitedge pack`, instead of a run.")] = None,
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    data: Annotated[str | None, typer.Option("--data", help="Labelled images. [default: the run's]")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many images, each class its share.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of --limit's choice.")] = 0,
    only: Annotated[str, typer.Option("--only", help="Artifacts, targets or precisions, with commas.")] = "",
    scenario: Annotated[str, typer.Option("--scenario", help=f"Of {', '.join(_SCENARIOS)}, with commas.")] = "single",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch of artifacts with a free one.")] = 1,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of a runner.")] = None,
    cores: Annotated[str, typer.Option("--cores", help="Bind to these processors: 4-7 or 0,2.")] = "",
    contexts: Annotated[int, typer.Option("--contexts", min=1, help="Parallel runners of throughput.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Shortest time for each latency.")] = 3.0,
    launches: Annotated[int, typer.Option("--launches", min=1, help="Starts of each process for its latency.")] = 5,
    sustained: Annotated[float, typer.Option("--sustained-seconds", min=1, help="Length of sustained.")] = 120.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds without an answer that are a hang.")
    ] = 300,
    row_limit: Annotated[float, typer.Option("--row-limit", min=1, help="Seconds for a row's accuracy.")] = 21600,
    memory: Annotated[int | None, typer.Option("--memory-limit-mib", help="Address space of a row.")] = None,
    no_accuracy: Annotated[bool, typer.Option("--no-accuracy", help="Latency alone.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run measured.")] = False,
    gate: Annotated[str, typer.Option("--gate", help="Limits, as top1-drop=1.0,p50-ms=20; broken: exit 1.")] = "",
    json: Annotated[Path | None, typer.Option("--json", help="Write the result to this file too.")] = None,
    host: Annotated[
        list[str] | None, typer.Option("--host", help="user@board: measure there; may be repeated.")
    ] = None,
    ssh: Annotated[str, typer.Option("--ssh", help="How ssh is called.")] = "ssh",
    python: Annotated[str, typer.Option("--remote-python", help="Python 3.10 or newer on the board.")] = "python3",
    name: Annotated[str | None, typer.Option("--host-name", help="Your name for this machine.")] = None,
) -> None:
    """Measures latency and accuracy."""
    gates = parse_gates(gate)
    settings = Settings(
        scenarios=parse_scenarios(scenario),
        batch=batch,
        threads=threads,
        cores=parse_cores(cores),
        contexts=contexts,
        seconds=seconds,
        launches=launches,
        sustained_s=sustained,
        timeout_s=timeout,
        row_limit_s=row_limit,
        memory_limit_mib=memory,
        accuracy=not no_accuracy,
    )
    typed = shlex.join(["vitedge", *sys.argv[1:]])
    what = What(tuple(filter(None, only.split(","))), data, limit, seed, fresh, name, typed)
    if host:
        found = bench_fleet(
            Bundle.open(run), pack, host, what, settings, ConsoleReporter(), ssh=shlex.split(ssh), python=python
        )
        _finish_fleet(found, json, gates)
        return
    if pack is not None:
        result = bench_pack(pack, what, settings, ConsoleReporter())
    else:
        result = bench_bundle(Bundle.open(run), what, settings, ConsoleReporter())
    if json:
        write_json(json, result)
    show(result)
    finish(check_gates(gates, result["rows"]), result)


def show(result: dict[str, Any]) -> None:
    """The tables on stdout."""
    out.print(host_line(result), markup=False)
    out.print(data_line(result), markup=False)
    ok = [row for row in result["rows"] if row["status"] == "ok"]
    if any(row["agreement"] is not None or row["top1"] is not None for row in ok):
        print_table("Accuracy", *drop_empty(*accuracy_table(result | {"rows": ok})))
    if any(row["latency_ms"] or row["throughput_ips"] for row in ok):
        print_table("Speed and size", *drop_empty(*latency_table(result | {"rows": ok})))
    for row in ok:
        if held := row["sustained"]:
            state = {None: "clocks can't be read", True: "it throttled", False: "no throttling"}[held["throttled"]]
            drift = "unknown" if held["p50_drift"] is None else f"{held['p50_drift']:+.1%}"
            out.print(f"{row['artifact']}: {held['seconds']:.0f} s sustained, p50 drift {drift}, {state}", markup=False)
    for row in ok:
        if row.get("accepted") is False:
            out.print(f"{row['artifact']}: outside its tolerance when it was built", markup=False)
    for row in result["rows"]:
        if row["status"] != "ok":
            out.print(f"{row['artifact']}: {row['status']}: {row['reason']}", markup=False)
    if any(row["device"] == "simulator" for row in ok):
        out.print("A simulator shows what the figures will be right or wrong about, never how fast they come.")


def _finish_fleet(found: dict[str, dict[str, Any]], json: Path | None, gates: list[Gate]) -> None:
    """Shows each host's result; with several hosts the JSON file is one a host, numbered in their order."""
    for number, (called, result) in enumerate(found.items(), 1):
        if json:
            write_json(json if len(found) == 1 else json.with_name(f"{json.stem}-{number}{json.suffix}"), result)
        out.print(f"\n{called}", style="bold", markup=False)
        show(result)
    rows = [row for result in found.values() for row in result["rows"]]
    broken = [line for result in found.values() for line in check_gates(gates, result["rows"])]
    finish(broken, {"rows": rows})
    if any(all(row["status"] != "ok" for row in result["rows"]) for result in found.values()):
        raise typer.Exit(1)


def finish(broken: list[str], result: dict[str, Any]) -> None:
    """Exit status 1 where a gate is broken or no row was measured."""
    for line in broken:
        err.print(f"[bold red]gate:[/] {line}")
    if broken:
        raise typer.Exit(1)
    if all(row["status"] != "ok" for row in result["rows"]):
        raise VitedgeError("No artifact could be measured.", "", "See the reasons above, and the logs.", exit_code=1)


def parse_scenarios(text: str) -> tuple[Any, ...]:
    """The scenarios in a list with commas. Raises VitedgeError at an unknown one."""
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [one for one in chosen if one not in _SCENARIOS]:
        raise VitedgeError(f"There is no scenario '{unknown[0]}'.", "", f"Choose of: {', '.join(_SCENARIOS)}.")
    return chosen


def parse_cores(text: str) -> tuple[int, ...] | None:
    """The processors in "4-7" or "0,2"; None for all. Raises VitedgeError where the text is neither."""
    if not text:
        return None
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise VitedgeError(f"--cores {text} is no list of processors.", "", "Write 4-7 or 0,2.") from None
    return tuple(found)
