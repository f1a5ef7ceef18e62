"""A compression that is killed while it trains: what the next one of the same run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.kill import Lines, kill_in_blocks, kill_in_loop, save_every_step
from vitedge.config import make_config
from vitedge.manifest import sha256_file
from vitedge.pipeline import compress

DISTIL = {"prune": {"prune": 0.2, "align": 8, "fit_steps": 2, "recover": "distill"}, "distill": {"epochs": 2}}
QAT = {
    "steps": {"quantize": "qat"},
    "quantize": {"rounding": "nearest"},
    "qat": {"epochs": 1, "block_steps": 4},
}


def _compress(root: Path, model: Path, calib: Path, layers: dict[str, Any], *more: dict[str, Any]) -> list[str]:
    """What is said of where a training starts."""
    said = Lines()
    own = {"model": {"model": str(model)}, "calib": {"calib": str(calib)}}
    compress(root, make_config(own, layers, *more), said)
    return [line for line in said.lines if line.startswith("going on") or "beginning" in line]


@pytest.mark.parametrize(
    ("step", "layers", "kills", "lines"),
    [
        ("distill", DISTIL, [(kill_in_loop, 2)], ["going on from step 2"]),
        ("qat", QAT, [(kill_in_blocks, 6), (kill_in_loop, 1)], ["going on after block 2 of 2", "going on from step 1"]),
    ],
)
def test_the_same_command_goes_on(
    tmp_path: Path,
    tiny_folder: Path,
    shapes_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    layers: dict[str, Any],
    kills: list,
    lines: list[str],
) -> None:
    save_every_step(monkeypatch)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert _compress(straight, tiny_folder, shapes_folder, layers) == []
    for kill, at in kills:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill(patch, at)
            _compress(killed, tiny_folder, shapes_folder, layers)
        assert list((killed / ".unfinished" / step).glob("*/*.pt"))
    assert _compress(killed, tiny_folder, shapes_folder, layers) == lines
    for name in (f"steps/{step}/model.safetensors", "onnx/float32.onnx"):
        assert sha256_file(straight / name) == sha256_file(killed / name)
    assert not (killed / ".unfinished" / step).exists()


def test_other_options_start_afresh_and_say_so(
    tmp_path: Path, tiny_folder: Path, shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_every_step(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_in_loop(patch, 2)
        _compress(tmp_path / "run", tiny_folder, shapes_folder, DISTIL)
    other = {"distill": {"lr": 1e-4}}
    (line,) = _compress(tmp_path / "run", tiny_folder, shapes_folder, DISTIL, other)
    assert line.startswith("distillation starts from its beginning")
    assert not (tmp_path / "run/.unfinished/distill").exists()
