"""What the seeds' users train on: CIFAR-10 as Parquet, beans, 102 flowers, several labels, a backbone without a head.

Small drawn sets in the same layouts. The long tail and wrong labels stand in test_train_choices.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitedge
from tests.data.test_data_formats import write
from tests.train.test_train_choices import AUGMENT, PREPROCESS, draw
from tests.vit.variants import VARIANTS, make
from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.train.finetune import fine_tune, with_new_head
from vitedge.train.options import FineTuneOptions, LoopOptions
from vitedge.train.output import save_folder
from vitedge.vit.checkpoint import load_model
from vitedge.vit.config import ViTConfig, uniform
from vitedge.vit.model import VisionTransformer, init_weights

SMALL = uniform(image_size=16, patch_size=8, width=16, depth=2, heads=2, hidden=32, classes=7)
NAMES = ["angular_leaf_spot", "bean_rust", "healthy"]


def backbone(config: ViTConfig = SMALL) -> VisionTransformer:
    return init_weights(VisionTransformer(config), 1).eval()


def train(data: Path, out: Path, model: VisionTransformer | None = None, epochs: float = 8, **fine: object) -> dict:
    options = FineTuneOptions(**{"val_share": 0.25, "tracker": "none", "head_epochs": 1, **fine})
    loop = LoopOptions(epochs=epochs, batch=16, lr=3e-3, precision="fp32", evaluations=2)
    return fine_tune(model or backbone(), PREPROCESS, data, out, options, loop, AUGMENT)


def parquet(folder: Path, parts: dict[str, int], image: str, label: str, extra: dict | None = None) -> Path:
    """Drawn images of three classes in the layout that `datasets` writes."""
    features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}} | (extra or {})
    for number, (part, count) in enumerate(parts.items()):
        cells, labels = [], []
        for at in range(3):
            draw(folder / "drawn" / part / str(at), at, count, seed=number)
            for file in sorted((folder / "drawn" / part / str(at)).iterdir()):
                cells.append({"bytes": file.read_bytes(), "path": file.name})
                labels.append(at)
        columns = {image: cells, label: labels} | {name: ["/x/a.jpg"] * len(cells) for name in extra or {}}
        write(folder / "set" / f"{part}-00000-of-00001.parquet", columns, features)
    return folder / "set"


def test_cifar_10_as_parquet(tmp_path: Path) -> None:
    """Columns img and label, parts train and test: the test part judges, a share of train validates."""
    figures = train(parquet(tmp_path, {"train": 24, "test": 10}, "img", "label"), tmp_path / "out")
    assert figures["part"] == "test" and figures["images"] == 30 and figures["top1"] > 0.8
    assert load_model(str(tmp_path / "out")).classes == NAMES


def test_beans_from_parquet_to_the_report(tmp_path: Path) -> None:
    """image_file_path, image, labels: trained, compressed, built, measured, and its training in the report."""
    extra = {"image_file_path": {"dtype": "string", "_type": "Value"}}
    data = parquet(tmp_path, {"train": 24, "validation": 8, "test": 10}, "image", "labels", extra)
    figures = train(data, tmp_path / "trained")
    run = vitedge.compress(
        tmp_path / "trained", run=tmp_path / "run", calib=str(data), calib_size=32, quantize="static"
    )
    run.build("onnxruntime", precision="int8", attention="parts", mlp_groups="apart")
    result = run.bench(data, launches=1, seconds=0.05)
    assert result.row("source").top1 == pytest.approx(figures["top1"])
    html = run.report().read_text()
    part = html[html.index('<section id="training">') : html.index('<section id="analysis">')]
    assert f"top-1 {100 * figures['top1']:.1f} % on 30 test images" in part
    assert "bean_rust" in part and 'class="matrix"' in part and "accuracy (%)" in part
    assert "How the model was trained" in (run.root / "report.md").read_text()


def test_a_folder_of_102_classes(tmp_path: Path) -> None:
    """As Flowers-102: few images a class. Colours, told apart by nearest class means, in closed form."""
    rng = np.random.default_rng(0)
    from PIL import Image

    for number in range(102):
        colour = 40 + 180 * rng.random(3)
        for part, count in (("train", 2), ("val", 1), ("test", 1)):
            folder = tmp_path / "flowers" / part / f"{number:03}"
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(colour + rng.normal(0, 6, (18, 18, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    figures = train(tmp_path / "flowers", tmp_path / "out", shots=2, shots_head="prototype")
    assert figures["images"] == 102 and figures["top1"] > 0.3 and figures["top5"] > 0.7
    written = json.loads((tmp_path / "out/training.json").read_text())
    assert len(written["tables"][0]["rows"]) == 102 and len(written["confusion"]) == 102


def test_several_labels_an_image_to_an_artifact(tmp_path: Path) -> None:
    """Each of three colours is a label of its own; the artifact's sigmoids say which."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    lines = ["file,labels"]
    for number in range(120):
        on = rng.random(3) < 0.5
        pixels = rng.integers(0, 120, (18, 18, 3)) + 120 * on
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"set/{number}.png")
        lines.append(f"{number}.png,{';'.join(name for name, yes in zip(NAMES, on, strict=True) if yes)}")
    (tmp_path / "set/labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "set/classes.txt").write_text("\n".join(NAMES) + "\n")
    figures = train(tmp_path / "set", tmp_path / "trained", epochs=12)
    assert figures["f1"] > 0.9
    run = vitedge.compress(tmp_path / "trained", run=tmp_path / "run", calib=str(tmp_path / "set"), calib_size=16)
    run.build("onnxruntime", precision="fp32", attention="parts", mlp_groups="apart")
    said = run.predict(tmp_path / "set/0.png")
    truth = set(lines[1].partition(",")[2].split(";")) - {""}
    assert said.activation == "sigmoid" and {g.name for g in said[0].top if g.probability > 0.5} == truth


@pytest.mark.parametrize("name", ["clip", "attention pool", "cls and mean", "distilled"])
def test_a_backbone_learns_classes_of_its_own(name: str) -> None:
    """With a projection, without a classifier, with several heads: a new one of zeros stands in their place."""
    model = make(VARIANTS[name])
    fresh = with_new_head(model, 5, multi_label=False)
    x = torch.randn(2, model.config.channels, *model.config.image_size)
    assert fresh(x).shape == (2, 5) and not fresh(x).any() and fresh.config.activation == "softmax"
    assert all(
        torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items() if "head" not in key
    )
    with pytest.raises(VitedgeError, match="every patch"):
        with_new_head(make(VARIANTS["patches"]), 5, multi_label=False)


def test_a_backbone_without_a_head_is_trained(tmp_path: Path) -> None:
    """As vit-base-patch16-224-in21k comes: its embedding, normalised as CLIP does, and no classes."""
    config = replace(SMALL, activation="none", classes=16, normalize=True)
    save_folder(tmp_path / "backbone", backbone(config), Preprocess(18, 16), None)
    for label, name in enumerate(NAMES):
        draw(tmp_path / "set" / name, label, 24)
    loaded = load_model(str(tmp_path / "backbone"))
    assert loaded.model.config.activation == "none"
    assert train(tmp_path / "set", tmp_path / "out", loaded.model)["top1"] > 0.8
