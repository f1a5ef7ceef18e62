"""`vitedge train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge.cli.console import ConsoleReporter, out, print_json
from vitedge.cli.flags import ConfigFlag, JsonFlag, with_flags


@with_flags("train")
def command(*, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Fine-tunes a trained ViT; what it writes is what `vitedge compress --model` takes."""
    from vitedge.loaded import fine_tune

    trained = fine_tune(config=config, reporter=ConsoleReporter(), **given)
    figures = trained.report
    if json:
        print_json(figures)
        return
    measure = "top-1" if "top1" in figures else "F1"
    out.print(
        f"{measure} {figures['score']:.4f} on {figures['images']} {figures['part']} images, "
        f"after {figures['steps']} steps ({figures['ended']})."
    )
    out.print(f"Next: vitedge compress --model {trained.origin}")
