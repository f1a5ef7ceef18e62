"""`vitedge pack`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitedge import api
from vitedge.cli.console import ConsoleReporter, out, print_json
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags


@with_flags("pack")
def command(*, run: RunFlag = RUN, config: ConfigFlag = None, json: JsonFlag = False, given: Mapping[str, Any]) -> None:
    """Packs artifacts and images for a board."""
    packed = api.open(run).pack(config=config, reporter=ConsoleReporter(), **given)
    names = ", ".join(packed.artifacts)
    if json:
        facts = {"file": str(packed.path), "mib": packed.mib, "images": packed.images, "artifacts": packed.artifacts}
        print_json(facts)
        return
    out.print(f"{packed.path}: {packed.mib:.1f} MiB, {packed.images} images, {names}", markup=False)
    out.print(f"On the board: vitedge bench {packed.path.name}", markup=False)
