"""Mutated checkpoints and descriptions: a model, or one VitedgeError; never another exception."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.convert import to_library
from vitedge.vit.checkpoint.layout import HUGGING_FACE, TIMM

BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    10**6,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "gelu",
    "8",
    [],
    [8, 8],
    {},
]
HF: dict[str, Any] = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
HF |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_act": "gelu"}
HF |= {"layer_norm_eps": 1e-6, "problem_type": None, "id2label": {str(i): f"c{i}" for i in range(10)}}
PROCESSOR: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
PROCESSOR |= {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "crop_size": 32,
}
PROCESSOR |= {"do_center_crop": False, "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": None}
DATA: dict[str, Any] = {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3}
DATA |= {"std": [0.5] * 3, "crop_mode": "center", "label_offset": 0}
TIMM_CONFIG: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "num_classes": 10, "global_pool": "token"}
TIMM_CONFIG |= {
    "model_args": {"num_heads": 2, "embed_dim": 32, "img_size": 32, "act_layer": "gelu"},
    "pretrained_cfg": DATA,
}
TIMM_CONFIG |= {"label_names": [f"c{i}" for i in range(10)]}
PREPROCESS = {
    "resize": 32,
    "crop": 32,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bilinear",
    "squash": False,
}


def tried(source: Path, **options: Any) -> None:
    """Loads it: a model that computes, or one error with its three parts."""
    try:
        loaded = load_model(str(source), **options)
    except VitedgeError as error:
        assert error.what and "\n" not in error.what and len(str(error)) < 3000
        return
    side = loaded.preprocess.crop
    with torch.inference_mode():
        assert loaded.model(torch.zeros(1, 3, side, side)).shape == (1, loaded.model.config.classes)


@st.composite
def edits(draw: Any, document: Any) -> Any:
    """The document with one to three of its values, at any depth, replaced or removed."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        node = changed
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            value = draw(st.sampled_from([..., *VALUES]))
            if value is ...:
                del node[key]
            else:
                node[key] = value
            break
    return changed


@pytest.fixture
def folders(tmp_path: Path, tiny_model: Any, tiny_folder: Path) -> dict[str, Path]:
    """A model folder of each kind."""
    import shutil

    found = {name: tmp_path / name for name in ("hf", "timm", "own")}
    shutil.copytree(tiny_folder, found["own"])
    for name, layout in (("hf", HUGGING_FACE), ("timm", TIMM)):
        found[name].mkdir()
        state = to_library(layout, dict(tiny_model.state_dict()), 2)
        save_file({k: v.contiguous() for k, v in state.items()}, found[name] / "model.safetensors")
    (found["hf"] / "config.json").write_text(json.dumps(HF))
    (found["hf"] / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (found["timm"] / "config.json").write_text(json.dumps(TIMM_CONFIG))
    for folder in found.values():
        load_model(str(folder))
    return found


@pytest.mark.parametrize("kind", ["hf", "processor", "timm", "arch", "preprocess"])
def test_mutated_descriptions(folders: dict[str, Path], kind: str) -> None:
    arch = json.loads((folders["own"] / "arch.json").read_text())
    folder, name, document = {
        "hf": (folders["hf"], "config.json", HF),
        "processor": (folders["hf"], "preprocessor_config.json", PROCESSOR),
        "timm": (folders["timm"], "config.json", TIMM_CONFIG),
        "arch": (folders["own"], "arch.json", arch),
        "preprocess": (folders["own"], "preprocess.json", PREPROCESS),
    }[kind]

    @BOUNDED
    @given(edits(document))
    def run(changed: Any) -> None:
        (folder / name).write_text(json.dumps(changed))
        tried(folder)

    run()


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, "1" * 100_000, '{"model_type": 1e999}', "\x00", '"\\ud800"', "null", "[]", "3"],
)
def test_documents_that_crash_parsers(folders: dict[str, Path], text: str) -> None:
    for kind, name in (("hf", "config.json"), ("hf", "preprocessor_config.json"), ("own", "arch.json")):
        (folders[kind] / name).write_text(text)
        tried(folders[kind])


def numbers(value: float) -> torch.Tensor:
    return torch.full((2, 2), value)


@pytest.mark.parametrize("layout", [TIMM, HUGGING_FACE], ids=lambda layout: layout.name)
def test_mutated_tensors(tmp_path: Path, tiny_model: Any, layout: Any) -> None:
    state = to_library(layout, dict(tiny_model.state_dict()), 2)
    odd = [
        numbers(0),
        torch.tensor(1.0),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.int64),
        numbers(float("nan")),
        "text",
    ]
    odd += [
        torch.zeros(1).expand(10**7),
        torch.zeros(2, 2).to_sparse(),
        None,
        {"a": torch.zeros(1)},
        torch.zeros(1, 5, 32),
    ]

    @BOUNDED
    @given(st.data())
    def run(data: Any) -> None:
        changed: dict[Any, Any] = dict(state)
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(st.sampled_from(sorted(state)))
            what = data.draw(st.sampled_from(["drop", "odd", "cut", "rename", "deep"]))
            tensor = changed.pop(key, None)
            if what == "odd":
                changed[key] = data.draw(st.sampled_from(odd))
            elif what == "cut" and isinstance(tensor, torch.Tensor) and tensor.ndim:
                changed[key] = tensor[: max(1, len(tensor) // 2)].clone()
            elif what == "rename":
                changed[key.replace("1", "99999999").replace("blocks.0", "blocks.7777777")] = tensor
            elif what == "deep":
                changed[key] = {"x": {"y": tensor}}
        torch.save(changed, tmp_path / "m.pth")
        tried(tmp_path / "m.pth", heads=2, preprocess="inception")

    run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "npz"])
def test_mutated_bytes(tmp_path: Path, tiny_model: Any, kind: str) -> None:
    import numpy as np

    state = to_library(TIMM, dict(tiny_model.state_dict()), 2)
    good = tmp_path / "good"
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, good)
    elif kind == "npz":
        with good.open("wb") as file:
            np.savez(file, **{k: v.numpy() for k, v in state.items()})
    else:
        torch.save(state, good, _use_new_zipfile_serialization=kind == "zip")
    content = good.read_bytes()
    # Structure lies at both ends of these files, and in the pickle of a zip.
    starts = [0, max(0, len(content) - 4000)]
    if kind == "zip":
        with zipfile.ZipFile(good) as archive:
            starts.append(next(i.header_offset for i in archive.infolist() if i.filename.endswith("data.pkl")))
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pth")

    @BOUNDED
    @given(st.data())
    def run(data: Any) -> None:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 3000))
            if at < len(changed):
                changed[at] = data.draw(st.integers(0, 255))
        if data.draw(st.integers(0, 3)) == 0:
            changed = changed[: data.draw(st.integers(0, len(changed)))]
        path.write_bytes(changed)
        tried(path, heads=2, preprocess="inception")

    run()


def test_a_million_blocks_and_other_demands(folders: dict[str, Path]) -> None:
    arch = json.loads((folders["own"] / "arch.json").read_text())
    for change in (
        {"blocks": arch["blocks"][:1] * 100_000},
        {"width": -4},
        {"width": 2**40},
        {"norm_eps": -1},
        {"classes": "10"},
        {"image_size": 10**9},
        {"blocks": []},
        {"colour": 1},
    ):
        (folders["own"] / "arch.json").write_text(json.dumps(arch | change))
        with pytest.raises(VitedgeError, match=r"arch\.json"):
            load_model(str(folders["own"]))
