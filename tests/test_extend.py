"""What somebody else adds from outside of vitedge: one function or one field, and at most one registration."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import Field

import vitedge
from vitedge import config, targets
from vitedge.options import Options


def test_an_observer(tiny_folder, shapes_folder) -> None:
    from vitedge.quant.observers import observer

    @observer
    def half(histogram, options):
        return histogram.minimum / 2, histogram.maximum / 2

    model = vitedge.load(tiny_folder)
    pixels = vitedge.images(shapes_folder, model, calib_size=16)
    common = {"rounding": "nearest", "correct": False}
    ours = vitedge.quantize(model, pixels, observer="half", **common).scheme
    whole = vitedge.quantize(model, pixels, observer="minmax", **common).scheme
    name = "block0.mlp.norm" if "block0.mlp.norm" in ours.activations else next(reversed(ours.activations))
    assert ours.activations[name].scale == pytest.approx(whole.activations[name].scale / 2, rel=0.02)
    with pytest.raises(vitedge.VitedgeError, match=r"choose one of .*half"):
        vitedge.quantize(model, pixels, observer="third")


def test_an_importance(tiny_folder, shapes_folder) -> None:
    from vitedge.prune.importance import IMPORTANCES, importance

    asked = []

    @importance
    def smallest(layer):
        asked.append(layer)
        return IMPORTANCES["magnitude"](layer)

    model = vitedge.load(tiny_folder)
    pixels = vitedge.images(shapes_folder, model)
    cut = {"prune": 0.2, "align": 8, "recover": "ridge"}
    ours = vitedge.prune(model, pixels, importance="smallest", **cut)
    theirs = vitedge.prune(model, pixels, importance="magnitude", **cut)
    assert asked and ours.module.config == theirs.module.config
    np.testing.assert_array_equal(ours.logits(pixels), theirs.logits(pixels))


def test_an_exact_transform(tiny_folder, shapes_folder, tmp_path) -> None:
    import torch

    from vitedge.condition.transform import Applied, Transform, register, unregister

    @torch.no_grad()
    def swap_units(model, batches, options):
        for block in model.encoder():
            order = torch.arange(block.mlp.fc1.out_features).flip(0)
            for weight in (block.mlp.fc1.weight, block.mlp.fc1.bias):
                weight.copy_(weight[order])
            block.mlp.fc2.weight.copy_(block.mlp.fc2.weight[:, order])
        return Applied(f"on {len(next(iter(batches())))} images")

    model = vitedge.load(tiny_folder)
    pixels = vitedge.images(shapes_folder, model, calib_size=16)
    plain = vitedge.condition(model, pixels, groups=1)
    keywords = {"calib": shapes_folder, "run": tmp_path / "run", "calib_size": 16, "groups": 1}
    vitedge.compress(tiny_folder, **keywords)
    register(Transform("swap", swap_units), before="rotate")
    try:
        ours = vitedge.condition(model, pixels, groups=1)
        names = [step.name for step in ours.report.steps]
        assert names.index("swap") + 1 == names.index("rotate") and ours.report.steps[names.index("swap")].chosen
        np.testing.assert_allclose(ours.logits(pixels), plain.logits(pixels), atol=1e-3)
        # The run folder knows that the transform was not there when its step was made.
        again = vitedge.compress(tiny_folder, **keywords).steps["condition"]["steps"]
        assert "swap" in [step["name"] for step in again]

        register(Transform("broken", lambda model, *_: Applied(model.head.bias.data.add_(1).tolist())))
        with pytest.raises(vitedge.VitedgeError, match="'broken' changed the model's logits"):
            vitedge.condition(model, pixels)
    finally:
        unregister("swap")
        unregister("broken")


def test_an_option_of_a_target(monkeypatch) -> None:
    target = targets.get("onnxruntime")

    class More(target.Options):
        arena_mib: int = Field(0, ge=0, description="Memory that is taken at once, in MiB.")

    monkeypatch.setattr(type(target), "Options", More)
    assert "arena_mib" in config.keywords_of("build")
    layer = config.to_sections("build", {"arena_mib": 8}, "onnxruntime")
    assert config.make_config(layer).target_options("onnxruntime").arena_mib == 8
    with pytest.raises(vitedge.VitedgeError, match="belongs to the target 'onnxruntime'"):
        config.to_sections("build", {"arena_mib": 8}, "rknn")


def test_a_flag_of_a_command(monkeypatch, capsys) -> None:
    from typer import Typer
    from typer.main import get_command
    from typer.testing import CliRunner

    from vitedge.cli.flags import with_flags

    class More(Options):
        colour: str = Field("red", description="What is drawn with.")

    monkeypatch.setitem(config.COMMANDS, "inspect", {"model": config.SourceSection, "more": More})
    monkeypatch.setattr("vitedge.cli.flags.configure", lambda *arguments: None)
    seen = {}

    @with_flags("inspect")
    def command(*, given) -> None:
        """A command."""
        seen.update(given)

    app = Typer()
    app.command()(command)
    runner = CliRunner()
    assert "What is drawn with" in runner.invoke(app, ["--help"]).output and get_command(app)
    assert runner.invoke(app, ["--colour", "blue"]).exit_code == 0 and seen == {"colour": "blue"}
