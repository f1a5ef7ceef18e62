"""`vitedge bench`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from vitedge import api
from vitedge.bench import show
from vitedge.bench.gate import parse_gates, pick
from vitedge.bench.result import BenchResult
from vitedge.cli.console import ConsoleReporter, err, out, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, RunFlag, with_flags
from vitedge.documents import dump
from vitedge.errors import VitedgeError
from vitedge.files import write_output

# What a --json without a file is read as.
STDOUT = Path("-")


@with_flags("bench")
def command(
    *,
    pack: Annotated[Path | None, typer.Argument(help="A pack of `vitedge pack`, instead of a run.")] = None,
    run: RunFlag = RUN,
    config: ConfigFlag = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file too; without one, JSON on stdout.")
    ] = None,
    given: Mapping[str, Any],
) -> None:
    """Measures latency and accuracy."""
    common: dict[str, Any] = {
        "config": config,
        "reporter": ConsoleReporter(),
        "command": shlex.join(["vitedge", *sys.argv[1:]]),
    }
    if given.get("host"):
        found = api.open(run).bench_hosts(pack=pack, **common, **given)
    elif pack is not None:
        found = {"": api.bench_pack(pack, **common, **given)}
    else:
        found = {"": api.open(run).bench(**common, **given)}
    for number, (called, result) in enumerate(found.items(), 1):
        if json == STDOUT:
            print_json(result.to_dict())
            continue
        if json:
            # With several hosts one file a host, numbered in their order.
            file = json if len(found) == 1 else json.with_name(f"{json.stem}-{number}{json.suffix}")
            write_output(file, dump(result.to_dict()))
        if called:
            out.print(f"\n{called}", style="bold", markup=False)
        show_result(result)
    if given.get("pick"):
        broken = [line for result in found.values() for line in _picked(result, quiet=json == STDOUT)]
    else:
        broken = [line for result in found.values() for line in result.broken_gates()]
    finish(broken, list(found.values()))


def _picked(result: BenchResult, *, quiet: bool) -> list[str]:
    """Names the artifact to take on that machine; what is broken where none keeps the limits."""
    row = pick(parse_gates(result.gate), result.rows)
    if row is None:
        return ["no artifact keeps all limits", *result.broken_gates()]
    if not quiet:
        out.print(f"Best within the limits on this machine: {row.artifact}", markup=False)
    return []


def show_result(result: BenchResult) -> None:
    """The tables on stdout."""
    out.print(show.host_line(result.host), markup=False)
    out.print(show.data_line(result), markup=False)
    for table in show.tables(result):
        print_table(table)
    for row in result.ok:
        if held := row.sustained:
            state = {None: "clocks can't be read", True: "it throttled", False: "no throttling"}[held.throttled]
            drift = "unknown" if held.p50_drift is None else f"{held.p50_drift:+.1%}"
            out.print(f"{row.artifact}: {held.seconds:.0f} s sustained, p50 drift {drift}, {state}", markup=False)
    for row in result.ok:
        if row.accepted is False:
            out.print(f"{row.artifact}: outside its tolerance when it was built", markup=False)
    for line in show.failures(result):
        out.print(line, markup=False)
    if any(row.device == "simulator" for row in result.ok):
        out.print("A simulator shows what the figures will be right or wrong about, never how fast they come.")


def finish(broken: list[str], results: list[BenchResult]) -> None:
    """Exit status 1 where a gate is broken, an artifact computes wrong, or a machine has measured none."""
    for line in broken:
        err.print(f"[bold red]gate:[/] {escape(line)}")
    if broken:
        raise typer.Exit(1)
    measured = [any(row.role == "artifact" for row in result.ok) for result in results]
    if not any(measured):
        raise VitedgeError("No artifact could be measured.", "", "See the reasons above, and the logs.", exit_code=1)
    wrong = any(row.golden is not None and row.golden.verdict == "wrong" for result in results for row in result.rows)
    if wrong or not all(measured):
        raise typer.Exit(1)
