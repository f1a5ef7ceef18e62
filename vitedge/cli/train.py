"""`vitedge train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitedge.cli.console import ConsoleReporter, out, print_json
from vitedge.cli.flags import with_flags
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions, checked

_SECTIONS: dict[str, type[Any]] = {"fine_tune": FineTuneOptions, "loop": LoopOptions, "augment": AugmentOptions}
_PANELS = {"fine_tune": "What learns", "loop": "Training", "augment": "Augmentation"}


@with_flags(_SECTIONS, panels=_PANELS, names={"augment.scale": "crop-scale"})
def command(
    *,
    data: Annotated[
        Path, typer.Option("--data", help="Data set; train, val and test below it are its parts.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Name, checkpoint file, or folder of the trained ViT.")
    ] = "vit_b_16",
    to: Annotated[Path, typer.Option("--out", help="Folder for the trained model.")] = Path("vitedge-trained"),
    classes: Annotated[
        str, typer.Option("--classes", help="auto: the data set's; or a file, one name a line.")
    ] = "auto",
    heads: Annotated[
        int | None, typer.Option("--heads", help="Attention heads, where the shapes can't tell.")
    ] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Another input resolution, in pixels.")] = None,
    preprocess: Annotated[
        str | None, typer.Option("--preprocess", help="imagenet, inception or a JSON file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out stopped.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    given: dict[str, Any],
) -> None:
    """Fine-tunes a trained ViT; what it writes is what `vitedge compress --model` takes."""
    fine, loop, augment = (checked(kind, given.get(name, {})) for name, kind in _SECTIONS.items())
    from vitedge.data.folder import read_classes
    from vitedge.train.finetune import fine_tune
    from vitedge.vit.checkpoint import load_model

    names = None if classes == "auto" else read_classes(classes)
    loaded = load_model(model, heads=heads, image_size=image_size, preprocess=preprocess)
    figures = fine_tune(
        loaded.model,
        loaded.preprocess,
        data,
        to,
        fine,
        loop,
        augment,
        classes=names,
        known=loaded.classes,
        resume=resume,
        reporter=ConsoleReporter(),
    )
    if json:
        print_json(figures)
        return
    measure = "top-1" if "top1" in figures else "F1"
    out.print(
        f"{measure} {figures['score']:.4f} on {figures['images']} {figures['part']} images, "
        f"after {figures['steps']} steps ({figures['ended']})."
    )
    out.print(f"Next: vitedge compress --model {to}")
