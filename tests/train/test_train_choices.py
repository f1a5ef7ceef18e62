"""What `vitedge train` offers beyond fine-tuning: long tails, wrong labels, few images, teachers, sizes, folds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.train.feed import Order
from vitedge.train.fewshot import choose_shots, fit_linear, fit_prototypes
from vitedge.train.finetune import fine_tune
from vitedge.train.losses import soft_cross_entropy, trimmed_mean
from vitedge.train.metrics import MetricsLog
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions
from vitedge.train.output import save_folder
from vitedge.train.schedule import lr_factor
from vitedge.train.split import balanced, parse_fold, split_folder
from vitedge.vit.checkpoint import load_model
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(18, 16)
AUGMENT = AugmentOptions(scale=0.9, flip=False)
NAMES = ("blue", "green", "red")


def draw(folder: Path, label: int, n: int, seed: int = 0, contrast: int = 70) -> None:
    """Images whose channel `label` is a little lighter."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, label])
    for i in range(n):
        pixels = rng.integers(0, 180, (20, 24, 3), dtype=np.uint8)
        pixels[..., label] += contrast
        Image.fromarray(pixels).save(folder / f"{seed}-{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label, name in enumerate(NAMES):
        draw(tmp_path / "data" / name, label, 16)
    return tmp_path / "data"


@pytest.fixture
def model() -> VisionTransformer:
    config = uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=32, classes=7)
    return init_weights(VisionTransformer(config), 1)


@pytest.fixture
def run(model: VisionTransformer, data: Path, tmp_path: Path) -> Callable[..., dict]:
    def call(out: str = "out", folder: Path = data, loop: dict | None = None, **fine: object) -> dict:
        options = {"epochs": 6, "batch": 8, "lr": 3e-3, "precision": "fp32", "evaluations": 3} | (loop or {})
        choices = FineTuneOptions(**{"val_share": 0.25, "tracker": "none", **fine})
        return fine_tune(model, PREPROCESS, folder, tmp_path / out, choices, LoopOptions(**options), AUGMENT)

    return call


def test_schedules() -> None:
    assert lr_factor(0.55, 0.1, 0.0, "linear") == pytest.approx(0.5)
    assert lr_factor(0.9, 0.1, 0.0, "constant") == 1.0 and lr_factor(0.05, 0.1, 0.0, "constant") == pytest.approx(0.5)
    assert lr_factor(1.0, 0.1, 0.2, "linear") == pytest.approx(0.2)


def test_the_largest_losses_do_not_teach() -> None:
    losses = torch.tensor([1.0, 9.0, 2.0, 3.0, 8.0])
    assert trimmed_mean(losses, 0.4) == 2.0 and trimmed_mean(losses, 0.0) == losses.mean()
    assert trimmed_mean(losses, 0.39) == losses.sort().values[:4].mean()
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    wrong = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert soft_cross_entropy(logits, wrong, trim=0.5) == soft_cross_entropy(logits[:1], wrong[:1])


def test_balanced_sampling_shows_each_class_equally_often() -> None:
    targets = torch.nn.functional.one_hot(torch.tensor([0] * 90 + [1] * 9 + [2])).float()
    order = Order(100, 10, weights=balanced(targets), seed=1)
    seen = torch.tensor([order.epoch(number) for number in range(30)]).flatten()
    shares = targets[seen].mean(0)
    assert (shares - 1 / 3).abs().max() < 0.03
    assert order.epoch(3) == Order(100, 10, weights=balanced(targets), seed=1).epoch(3)
    several = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert balanced(several).tolist() == pytest.approx([1.0, 0.5, 1 / 3])


def test_folds_cover_the_set_once(data: Path) -> None:
    held = [split_folder(data, 0.1, 3, fold=(k, 4))[1] for k in (1, 2, 3, 4)]
    files = [file for part in held for file in part.files]
    assert len(files) == len(set(files)) == 48 and [len(part) for part in held] == [12] * 4
    assert all(np.bincount(part.labels).tolist() == [4, 4, 4] for part in held)
    assert split_folder(data, 0.1, 3, fold=(2, 4))[1].files == held[1].files
    for text in ("5/4", "1/1"):
        with pytest.raises(VitedgeError, match="no fold"):
            parse_fold(text)
    with pytest.raises(VitedgeError, match="fold"):
        FineTuneOptions(fold="x")


def test_few_shots_by_logistic_regression_are_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    x = rng.normal(size=(60, 12)) * rng.uniform(0.5, 5, 12) + rng.normal(size=(4, 12))[labels] * 2 + 3
    weight, bias = fit_linear(torch.tensor(x).float(), torch.nn.functional.one_hot(torch.tensor(labels)).float())
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    theirs = linear.LogisticRegression(C=1 / (60 * 0.1), max_iter=2000, tol=1e-8).fit(z, labels)
    ours = (torch.tensor(x).float() @ weight.T + bias).softmax(1).numpy()
    assert np.abs(ours - theirs.predict_proba(z)).max() < 5e-3


def test_prototypes_are_the_nearest_means() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    x += 3 * torch.eye(4, 6)[labels]
    weight, bias = fit_prototypes(x, torch.nn.functional.one_hot(labels).float())
    means = torch.stack([x[labels == k].mean(0) for k in range(4)])
    assert ((x @ weight.T + bias).argmax(1) == torch.cdist(x, means).argmin(1)).all()
    one = fit_prototypes(x[:4], torch.eye(4))
    assert all(torch.isfinite(part).all() for part in one)


@pytest.mark.parametrize("head", ["linear", "prototype"])
def test_few_shots(run: Callable[..., dict], model: VisionTransformer, tmp_path: Path, head: str) -> None:
    figures = run(shots=4, shots_head=head)
    assert figures["top1"] >= 0.8 and figures["steps"] == 0
    after = load_model(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in model.state_dict().items() if not n.startswith("head"))
    assert np.bincount(np.array([0, 0, 1, 1, 1])[choose_shots(np.array([0, 0, 1, 1, 1]), 2, 0)]).tolist() == [2, 2]


def test_progressive_sizes_end_at_the_last(run: Callable[..., dict], tmp_path: Path) -> None:
    figures = run(image_sizes=[8, 16, 24], head_epochs=1, loop={"epochs": 9})
    loaded = load_model(str(tmp_path / "out"))
    assert loaded.model.config.grid == (3, 3) and loaded.preprocess.crop == 24 and loaded.preprocess.resize == 27
    assert figures["top1"] > 0.8
    assert FineTuneOptions(image_sizes="32,64").image_sizes == (32, 64)
    with pytest.raises(VitedgeError, match="image_sizes"):
        FineTuneOptions(image_sizes="a,b")


def test_a_teacher_of_another_size_and_order_teaches(
    run: Callable[..., dict], data: Path, tmp_path: Path, model: VisionTransformer
) -> None:
    run("teacher", loop={"epochs": 10})
    loaded = load_model(str(tmp_path / "teacher"), image_size=24)
    with torch.no_grad():
        loaded.model.head.weight.copy_(loaded.model.head.weight[[2, 0, 1]])
        loaded.model.head.bias.copy_(loaded.model.head.bias[[2, 0, 1]])
    save_folder(tmp_path / "other", loaded.model, loaded.preprocess, ["red", "blue", "green"])
    # With the teacher's word alone, labels teach nothing: it is right nevertheless.
    figures = run(teacher=str(tmp_path / "other"), teacher_weight=1.0, loop={"epochs": 10})
    assert figures["top1"] > 0.8
    save_folder(tmp_path / "foreign", loaded.model, loaded.preprocess, ["cat", "dog", "cow"])
    with pytest.raises(VitedgeError, match=r"blue, green, red.*cat, dog, cow"):
        run("second", teacher=str(tmp_path / "foreign"))


def test_the_best_by_loss_is_not_the_best_by_accuracy(run: Callable[..., dict]) -> None:
    figures = run(loop={"best_by": "loss", "patience": 1})
    assert figures["validation_score"] < 0 and figures["top1"] > 0


def test_wrong_labels_teach_less(run: Callable[..., dict], tmp_path: Path) -> None:
    """30 % of the training labels are wrong; the validation and test labels are right."""
    root = tmp_path / "noisy"
    rng = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        for part, count in (("train", 60), ("val", 8), ("test", 40)):
            draw(root / part / name, label, count, seed=len(part), contrast=45)
    for label, name in enumerate(NAMES):
        for file in sorted((root / "train" / name).glob("5-*.png")):
            if rng.random() < 0.3:
                other = NAMES[(label + 1 + rng.integers(2)) % 3]
                file.rename(root / "train" / other / f"{name}-{file.name}")
    loop = {"epochs": 25, "best_by": "loss", "evaluations": 1, "layer_decay": 1.0}
    plain = run("plain", root, loop, smoothing=0.0)
    rule = run("rule", root, loop, smoothing=0.0, wrong_labels=0.3)
    assert rule["loss"] < plain["loss"]
    assert rule["top1"] >= plain["top1"]


@pytest.mark.parametrize("choice", ["balance", "reweight"])
def test_a_long_tail(run: Callable[..., dict], tmp_path: Path, choice: str) -> None:
    """60, 12 and 4 images of three classes: the rare ones are found more often (balanced accuracy)."""
    root = tmp_path / "tail"
    for label, (name, count) in enumerate(zip(NAMES, (60, 12, 4), strict=True)):
        draw(root / "train" / name, label, count, contrast=40)
        draw(root / "val" / name, label, 6, seed=1, contrast=40)
        draw(root / "test" / name, label, 30, seed=2, contrast=40)
    loop = {"epochs": 8, "evaluations": 1}

    def mean_recall(out: str) -> float:
        rows = json.loads((tmp_path / out / "training.json").read_text())["tables"][0]["rows"]
        return float(np.mean([row[2] for row in rows]))

    run("plain", root, loop)
    run("chosen", root, loop, **{choice: True})
    assert mean_recall("chosen") >= mean_recall("plain")


def test_tensorboard_through_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path, "tensorboard")
    log.write([{"step": 0.0, "loss": 1.0}, {"step": 5.0, "loss": 0.5}])
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(0, 1.0), (5, 0.5)]


def test_mlflow_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log = MetricsLog(tmp_path, "mlflow")
    log.write([{"step": 0.0, "loss": 1.0}, {"step": 5.0, "loss": 0.5}])
    log.close()
    store = f"file:{tmp_path / 'mlflow'}"
    runs = mlflow.tracking.MlflowClient(store)
    experiment = runs.get_experiment_by_name("vitedge")
    assert runs.search_runs([experiment.experiment_id])[0].data.metrics["loss"] == 0.5


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = MetricsLog(tmp_path, "wandb")
    log.write([{"step": 0.0, "loss": 1.0}])
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_missing_tracker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VitedgeError, match="--tracker wandb needs the package 'wandb'"):
        MetricsLog(tmp_path, "wandb")
    assert MetricsLog(tmp_path, "tensorboard").tracker is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes fp16")
def test_fp16_needs_a_gpu(run: Callable[..., dict], tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="fp16 needs a GPU"):
        run(loop={"precision": "fp16"})
    assert not (tmp_path / "out").exists()
