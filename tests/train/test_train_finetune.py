"""Fine-tuning end to end on small drawn images: what it writes, how it splits, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.files import locked, make_folder
from vitedge.reporter import Reporter
from vitedge.train.finetune import fine_tune, with_new_head
from vitedge.train.options import AugmentOptions, FineTuneOptions, LoopOptions
from vitedge.train.schedule import freeze, layer_index, lr_factor, parameter_groups
from vitedge.train.split import split_folder
from vitedge.vit.checkpoint import load_model
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREPROCESS = Preprocess(18, 16)
AUGMENT = AugmentOptions(scale=0.8, flip=False)
NAMES = ("red", "green", "blue")


def _draw(folder: Path, label: int, n: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, label])
    for i in range(n):
        pixels = rng.integers(0, 120, (20, 24, 3), dtype=np.uint8)
        pixels[..., label] += 100
        Image.fromarray(pixels).save(folder / f"{seed}-{i}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label, name in enumerate(NAMES):
        _draw(tmp_path / "data" / name, label, 16)
    return tmp_path / "data"


@pytest.fixture
def model() -> VisionTransformer:
    config = uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=32, classes=7)
    return init_weights(VisionTransformer(config), 1)


def _loop(**changes: object) -> LoopOptions:
    return LoopOptions(**{"epochs": 8, "batch": 8, "lr": 3e-3, "precision": "fp32", "evaluations": 4} | changes)


def _run(model: VisionTransformer, data: Path, out: Path, fine: FineTuneOptions, **more: object) -> dict:
    loop = more.pop("loop", _loop())
    return fine_tune(model, PREPROCESS, data, out, fine, loop, AUGMENT, **more)  # type: ignore[arg-type]


def test_it_learns_and_writes_a_folder_that_loads(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fine = FineTuneOptions(val_share=0.25, reweight=True)
    figures = _run(model, data, out, fine, loop=_loop(ema=0.8))
    assert figures["top1"] > 0.9
    assert figures["part"] == "validation"
    assert figures["images"] == 12
    loaded = load_model(str(out))
    assert loaded.classes == ["blue", "green", "red"]
    assert loaded.preprocess == PREPROCESS
    assert loaded.model.config.classes == 3
    written = json.loads((out / "training.json").read_text())
    assert sum(map(sum, written["confusion"])) == 12
    assert [row[1] for row in written["tables"][0]["rows"]] == [4, 4, 4]
    assert len(list(csv.reader((out / "metrics.csv").open()))) == 1 + 5


def test_resume_of_a_finished_run_changes_nothing(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fine = FineTuneOptions(head_epochs=1)
    _run(model, data, out, fine)
    before = (out / "model.safetensors").read_bytes()
    _run(model, data, out, fine, resume=True)
    assert (out / "model.safetensors").read_bytes() == before
    with pytest.raises(VitedgeError, match="another run"):
        _run(model, data, out, fine, resume=True, loop=_loop(lr=1e-3))


def test_a_head_alone_leaves_the_rest(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    _run(model, data, tmp_path / "out", FineTuneOptions(train="head"))
    after = load_model(str(tmp_path / "out")).model.state_dict()
    for name, value in model.state_dict().items():
        assert name.startswith("head") or torch.equal(after[name], value), name


def test_several_labels_a_image(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    with (data / "labels.csv").open("w") as file:
        file.write("file,labels\n")
        for name in NAMES:
            file.writelines(f"{name}/0-{i}.png,{name}{';any' if i % 2 else ''}\n" for i in range(16))
    (data / "classes.txt").write_text("any\nred\ngreen\nblue\n")
    figures = _run(model, data, tmp_path / "out", FineTuneOptions(val_share=0.25))
    assert figures["f1"] > 0.4
    assert load_model(str(tmp_path / "out")).model.config.activation == "sigmoid"


def test_a_diverging_run_leaves_its_best(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    with pytest.raises(VitedgeError) as caught:
        _run(model, data, tmp_path / "out", FineTuneOptions(head_epochs=0), loop=_loop(lr=1e30, clip=0))
    assert "no longer a number" in caught.value.what
    assert str(tmp_path / "out") in caught.value.why
    assert all(torch.isfinite(p).all() for p in load_model(str(tmp_path / "out")).model.parameters())


def test_splits(data: Path, tmp_path: Path) -> None:
    first, second = (split_folder(data, 0.25, seed)[:2] for seed in (0, 0))
    assert first[0].files == second[0].files
    assert not set(first[0].files) & set(first[1].files)
    assert np.bincount(first[1].labels).tolist() == [4, 4, 4]
    assert split_folder(data, 0.25, 1)[1].files != first[1].files
    for part, n in (("train", 5), ("val", 2), ("test", 3)):
        for label, name in enumerate(NAMES):
            _draw(tmp_path / "parts" / part / name, label, n, seed=n)
    train, val, test = split_folder(tmp_path / "parts", 0.5, 0)
    assert (len(train), len(val), len(test or ())) == (15, 6, 9)


def test_bad_data(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    with pytest.raises(VitedgeError, match="no images"):
        (tmp_path / "empty").mkdir()
        _run(model, tmp_path / "empty", tmp_path / "out", FineTuneOptions())
    for part, names in (("train", NAMES), ("val", NAMES[:2])):
        for label, name in enumerate(names):
            _draw(tmp_path / "parts" / part / name, label, 3)
    with pytest.raises(VitedgeError, match="no validation images"):
        _run(model, tmp_path / "parts", tmp_path / "out", FineTuneOptions())
    (data / "red" / "0-1.png").write_bytes(b"no image")
    with pytest.raises(VitedgeError, match="unreadable"):
        _run(model, data, tmp_path / "out", FineTuneOptions())
    assert not (tmp_path / "out").exists()
    with pytest.raises(VitedgeError, match="--lr"):
        LoopOptions(lr=-1.0)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"red": 3}, "all of one class"),
        ({"train/red": 3, "val/red": 3}, "all of one class"),
        ({"red": 1, "green": 1}, "2 classes have no training images"),
        ({"red": 3, "green": 1}, "1 class has no training images"),
        # As many sub-folders as classes, under other names: not to be taken for them in their order.
        ({"train/blue": 3, "train/red": 3, "val/blue": 1, "val/green": 1}, "val has classes that"),
    ],
)
def test_bad_classes(tmp_path: Path, parts: dict[str, int], what: str) -> None:
    for part, n in parts.items():
        _draw(tmp_path / part, 0, n)
    with pytest.raises(VitedgeError, match=what) as caught:
        split_folder(tmp_path, 0.5, 0)
    assert caught.value.exit_code == 2


def test_a_class_of_which_there_are_no_images(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    """Labels are indices here and no names are known: there are as many classes as the highest says."""
    rows = [f"{name}/0-{i}.png,{3 * label}\n" for label, name in enumerate(NAMES[:2]) for i in range(16)]
    (data / "labels.csv").write_text("file,label\n" + "".join(rows))
    reporter = Reporter()
    _run(model, data, tmp_path / "out", FineTuneOptions(train="head"), loop=_loop(epochs=1), reporter=reporter)
    assert reporter.warnings == [f"{data} has no images of 1, 2: the model will not know them"]
    assert load_model(str(tmp_path / "out")).model.config.classes == 4


def test_one_unreadable_image_of_many_is_left_out(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    _draw(data / "red", 0, 110, seed=9)
    (data / "red" / "9-1.png").write_bytes(b"")
    reporter = Reporter()
    _run(model, data, tmp_path / "out", FineTuneOptions(train="head", val_share=0.05), reporter=reporter)
    left = [w for w in reporter.warnings if "9-1.png" in w]
    assert len(left) <= 1


def test_freezing_and_groups(model: VisionTransformer) -> None:
    fresh = with_new_head(model, 5, multi_label=False)
    assert not fresh.head.weight.any()
    freeze(fresh, 2, "last-1")
    learns = {n for n, p in fresh.named_parameters() if p.requires_grad}
    assert learns == {n for n, _ in fresh.named_parameters() if n.startswith(("blocks.1.", "norm.", "head."))}
    freeze(fresh, 2, "all")
    groups = parameter_groups(fresh, 2, layer_decay=0.5, weight_decay=0.1)
    assert sorted({g["scale"] for g in groups}) == [0.125, 0.25, 0.5, 1.0]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in fresh.parameters())
    assert all(p.ndim > 1 for g in groups if g["weight_decay"] for p in g["params"])
    assert [layer_index(n, 2) for n in ("pos_embedding", "blocks.0.norm1.weight", "head.bias")] == [0, 1, 3]
    for what in ("last-3", "last-0", "tail"):
        with pytest.raises(VitedgeError, match=what):
            freeze(fresh, 2, what)


def test_schedule() -> None:
    assert lr_factor(0.05, 0.1, 0.01) == pytest.approx(0.5)
    assert lr_factor(0.1, 0.1, 0.01) == pytest.approx(1.0)
    assert lr_factor(1.0, 0.1, 0.01) == pytest.approx(0.01)
    assert lr_factor(0.0, 0.0, 0.01) == pytest.approx(1.0)


def test_a_trained_model_is_not_overwritten(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    out, fine, loop = tmp_path / "out", FineTuneOptions(train="head"), _loop(epochs=1)
    _run(model, data, out, fine, loop=loop)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(VitedgeError, match="--overwrite"):
        _run(model, data, out, fine, loop=loop)
    assert (out / "model.safetensors").read_bytes() == before
    _run(model, data, out, fine, loop=_loop(epochs=2), overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    with pytest.raises(VitedgeError, match=r"holds.*labels\.csv"):
        (data / "labels.csv").write_text("file,label\n")
        _run(model, data, data, fine, loop=loop)


def test_one_training_at_a_time_in_a_folder(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    with (
        locked(make_folder(tmp_path / "out") / ".lock", "training into"),
        pytest.raises(VitedgeError, match="Another vitedge process is training into"),
    ):
        _run(model, data, tmp_path / "out", FineTuneOptions(train="head"), loop=_loop(epochs=1))
    _run(model, data, tmp_path / "out", FineTuneOptions(train="head"), loop=_loop(epochs=1))


def test_the_kind_of_labels_decides(model: VisionTransformer, data: Path, tmp_path: Path) -> None:
    """Several labels an image, of the classes that a softmax head has: it becomes a head of sigmoids."""
    rows = [f"{name}/0-{i}.png,{name}\n" for name in NAMES for i in range(16)]
    (data / "labels.csv").write_text("file,labels\n" + "".join(rows))
    (data / "classes.txt").write_text("\n".join(NAMES))
    known = with_new_head(model, 3, multi_label=False)
    _run(known, data, tmp_path / "out", FineTuneOptions(train="head"), loop=_loop(epochs=1), known=list(NAMES))
    assert load_model(str(tmp_path / "out")).model.config.activation == "sigmoid"
    (data / "labels.csv").unlink()
    several = with_new_head(model, 3, multi_label=True)
    _run(several, data, tmp_path / "2", FineTuneOptions(train="head"), loop=_loop(epochs=1), known=list(NAMES))
    assert load_model(str(tmp_path / "2")).model.config.activation == "softmax"


def test_the_models_order_of_the_same_classes_keeps_its_head(
    model: VisionTransformer, data: Path, tmp_path: Path
) -> None:
    known = with_new_head(model, 3, multi_label=False)
    with torch.no_grad():
        known.head.weight.normal_()
    _run(known, data, tmp_path / "out", FineTuneOptions(train="head"), loop=_loop(epochs=1, lr=1e-9), known=list(NAMES))
    loaded = load_model(str(tmp_path / "out"))
    assert loaded.classes == list(NAMES)
    assert torch.allclose(loaded.model.head.weight, known.head.weight, atol=1e-4)
