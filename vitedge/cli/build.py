"""`vitedge build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge import targets
from vitedge.bundle import DEFAULT_RUN
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import only_for, with_flags
from vitedge.errors import VitedgeError


@with_flags({name: targets.get(name).Options for name in targets.names()}, tag=True)
def command(
    *,
    target: Annotated[str, typer.Option("--target", help=f"One of {', '.join(targets.names())}.")] = "onnxruntime",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8. (default: the target's first)")
    ] = None,
    platform: Annotated[str | None, typer.Option("--platform", help="The chip, where the target has several.")] = None,
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path(DEFAULT_RUN),
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    given: dict[str, Any],
) -> None:
    """Builds one artifact."""
    from vitedge.pipeline import build, preview_build

    targets.get(target)
    options = only_for(target, given)
    if (line := preview_build(run, target, precision, platform, options)) is not None:
        print(line)
        return
    record = build(run, target, precision, platform, options, ConsoleReporter())
    facts, check = record.facts, record.facts["check"]
    if json:
        print_json(facts)
    else:
        row = [
            facts["folder"],
            facts["bytes"] / 2**20,
            check.get("agreement"),
            check.get("sqnr_db"),
            check.get("device"),
        ]
        columns = ["artifact", "MiB", "agreement with FP32", "logit SQNR (dB)", "compared on"]
        print_table("Built", columns, [row], f"{check['images']} {check.get('kind', '')}".strip())
        suffix = "" if str(run) == DEFAULT_RUN else f" --run {run}"
        out.print(f"Next: vitedge bench{suffix}")
    if check["accepted"] is False:
        raise VitedgeError(
            f"The artifact in '{run / facts['folder']}' is outside its tolerance.",
            check["reason"],
            "It is kept and marked so. Compress again with other settings, or choose another precision.",
            exit_code=1,
        )
