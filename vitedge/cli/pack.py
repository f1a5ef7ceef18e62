"""`vitedge pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitedge.bench.pack import write_pack
from vitedge.bundle import DEFAULT_RUN, Bundle
from vitedge.cli.console import ConsoleReporter, out


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="The tar file to write.")] = Path("pack.tar"),
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    data: Annotated[str | None, typer.Option("--data", help="Labelled images. [default: the run's]")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many images, each class its share.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of --limit's choice.")] = 0,
    only: Annotated[str, typer.Option("--only", help="Artifacts, targets or precisions, with commas.")] = "",
) -> None:
    """Packs artifacts and images for a board."""
    bundle = Bundle.open(run)
    chosen = tuple(filter(None, only.split(",")))
    with bundle.lock():
        index = write_pack(bundle, output, data=data, limit=limit, seed=seed, only=chosen, reporter=ConsoleReporter())
    names = ", ".join(entry["name"] for entry in index["artifacts"])
    out.print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, {index['shape'][0]} images, {names}", markup=False)
    out.print(f"On the board: vitedge bench {output.name}", markup=False)
