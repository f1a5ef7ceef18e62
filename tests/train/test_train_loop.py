"""The loop: it learns, it resumes bit for bit, it stops as it should."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitedge.errors import VitedgeError
from vitedge.train.metrics import MetricsLog

sys.path.insert(0, str(Path(__file__).parent))
from loop_case import make_case, options, run


def _weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns_and_keeps_the_best() -> None:
    model, case = make_case()
    result = run(model, case, options(epochs=20))
    scores = [row["score"] for row in result.history]
    assert result.steps == 60
    assert result.images == 480
    assert result.best["score"] == max(scores) > scores[0] + 0.5
    with torch.no_grad():
        assert case.evaluate(model)["score"] == pytest.approx(result.best["score"], abs=1e-6)


@pytest.mark.parametrize("killed_at", [1, 6, 11])
@pytest.mark.parametrize("more", [{}, {"ema": 0.9, "accumulate": 2, "batch": 4}], ids=["plain", "ema"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, killed_at: int, more: dict[str, Any]) -> None:
    whole, case = make_case()
    straight = run(whole, case, options(**more))

    broken, case = make_case(killed_at=killed_at)
    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(broken, case, options(save_seconds=0, **more), state_file=file)
    resumed, case = make_case(seed=0)
    torch.manual_seed(77)
    again = run(resumed, case, options(**more), state_file=file, resume=True)
    assert torch.equal(_weights(whole), _weights(resumed))
    assert [row["score"] for row in again.history] == [row["score"] for row in straight.history]
    assert case.calls < 24 or killed_at == 1


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    script = str(Path(__file__).parent / "loop_case.py")
    # With --cpu it would start a second process through MPI alone; with --multi_gpu it does on any machine.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch += ["--main_process_port", str(free.getsockname()[1])]
    root = str(Path(__file__).resolve().parents[2])
    for command in ([*launch, script, "two.pt", "4"], [sys.executable, script, "one.pt", "8"]):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=_environment(root), timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    start = make_case()[0].state_dict()
    for name, tensor in one.items():
        # Softmax ignores the key's bias: its gradient is rounding noise, which Adam scales up to full steps.
        if name.endswith("attention.k.bias"):
            continue
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 0.01


def _environment(root: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def test_nan_keeps_the_best_weights_and_says_where() -> None:
    model, case = make_case(explode_at=8)
    with pytest.raises(VitedgeError) as caught:
        run(model, case, options())
    assert "step 8" in caught.value.what
    assert "step 6" in caught.value.why
    assert caught.value.exit_code == 1
    assert torch.isfinite(_weights(model)).all()


def test_another_architecture_or_seed_is_refused_on_resume(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    model, case = make_case()
    run(model, case, options(epochs=1), state_file=file, identity={"arch": {"width": 16}})
    for changes, identity, word in (
        ({}, {"arch": {"width": 24}}, "model"),
        ({"seed": 1}, {"arch": {"width": 16}}, "seed"),
        ({}, {"arch": {"width": 16}, "number_of_processes": 2}, "number of processes: 1 there, 2 now"),
    ):
        model, case = make_case()
        with pytest.raises(VitedgeError) as caught:
            run(model, case, options(epochs=1, **changes), state_file=file, resume=True, identity=identity)
        assert word in caught.value.why
    file.write_bytes(b"cut off")
    with pytest.raises(VitedgeError, match="can't be read"):
        run(model, case, options(epochs=1), state_file=file, resume=True)


def test_early_stopping_and_the_clock() -> None:
    model, case = make_case()
    result = run(model, case, options(lr=1e-12, epochs=50, evaluations=50, patience=3))
    assert "no better score in 3" in result.ended
    assert result.steps < 50
    model, case = make_case()
    result = run(model, case, options(epochs=1e6, minutes=0.02, evaluations=2))
    assert 0 < result.seconds < 20
    # The schedule has run to its end though the epochs have not.
    assert result.history[-1]["lr"] < 0.5 * 3e-3


def test_metrics_are_rewritten_whole_and_kept_for_tensorboard(tmp_path: Path) -> None:
    model, case = make_case()
    result = run(model, case, options(), log=MetricsLog(tmp_path))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [float(r["step"]) for r in rows] == [r["step"] for r in result.history]
    assert rows[0]["train_loss"] == ""


def test_a_full_memory_says_which_batch_fits() -> None:
    model, case = make_case(most=2)
    with pytest.raises(VitedgeError) as caught:
        run(model, case, options(batch=8, accumulate=2))
    assert "batch 8" in caught.value.what
    assert "batch of 2 fits" in caught.value.why
    assert "--batch 2 --accumulate 8" in caught.value.todo
    assert caught.value.exit_code == 1
