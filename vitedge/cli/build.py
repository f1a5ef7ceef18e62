"""`vitedge build`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from vitedge import api, targets
from vitedge.bundle import DEFAULT_RUN
from vitedge.cli.console import ConsoleReporter, out, print_json, print_table
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags
from vitedge.errors import VitedgeError
from vitedge.tables import Table


@with_flags("build")
def command(
    *,
    target: Annotated[str, typer.Option("--target", help=f"One of {', '.join(targets.names())}.")] = "onnxruntime",
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, fp16, bf16 or int8. (default: the target's first)")
    ] = None,
    platform: Annotated[str | None, typer.Option("--platform", help="The chip, where the target has several.")] = None,
    run: RunFlag = RUN,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    given: Mapping[str, Any],
) -> None:
    """Builds one artifact."""
    targets.get(target)
    opened = api.open(run)
    if (line := opened.preview(target, precision, platform, config=config, **given)) is not None:
        print(line)
        return
    built = opened.build(target, precision, platform, config=config, reporter=ConsoleReporter(), **given)
    facts = opened.steps[f"build/{built.name}"]
    check = facts["check"]
    if json:
        print_json(facts)
    else:
        row = [
            facts["folder"],
            facts["bytes"] / 2**20,
            *(check.get(key) for key in ("agreement", "sqnr_db", "source_agreement", "source_sqnr_db", "device")),
        ]
        columns = ["artifact", "size (MiB)", "agreement with its float model", "SQNR (dB)"]
        columns += ["agreement with the source model", "SQNR to the source (dB)", "compared on"]
        print_table(Table("Built", columns, [row], f"{check['images']} {check.get('kind', '')}".strip()))
        suffix = "" if str(run) == DEFAULT_RUN else f" --run {run}"
        out.print(f"Next: vitedge bench{suffix}")
    if check["accepted"] is False:
        raise VitedgeError(
            f"The artifact in '{run / facts['folder']}' is outside its tolerance.",
            check["reason"],
            "It is kept and marked so. Compress again with other settings, or choose another precision.",
            exit_code=1,
        )
