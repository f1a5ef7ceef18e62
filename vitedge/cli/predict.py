"""`vitedge predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge import api
from vitedge.cli.console import err, out, print_json
from vitedge.cli.flags import RUN, ConfigFlag, JsonFlag, RunFlag, with_flags
from vitedge.steps.predict import Prediction


@with_flags("predict")
def command(
    *,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE...")],
    run: RunFlag = RUN,
    config: ConfigFlag = None,
    json: JsonFlag = False,
    given: Mapping[str, Any],
) -> None:
    """Classifies images; of a model without classes, gives their embeddings."""
    found = api.open(run).predict(*images, config=config, told=None if json else _show, **given)
    if json:
        print_json(found.to_dict())
    else:
        good = sum(not one.error for one in found)
        err.print(f"{good} images, {found.artifact} on {found.device}", style="dim", markup=False)


def _show(one: Prediction) -> None:
    out.print(one.file, markup=False)
    if one.error:
        out.print(f"  error: {one.error}", markup=False)
    if one.embedding:
        first = ", ".join(f"{value:.4f}" for value in one.embedding[:4])
        out.print(f"  embedding of {len(one.embedding)} numbers: {first}, ... (--json: all)", markup=False)
    for guess in one.top:
        name = f"class {guess.index}" if guess.name is None else guess.name
        out.print(f"  {guess.probability:7.2%}  {name}", markup=False)
