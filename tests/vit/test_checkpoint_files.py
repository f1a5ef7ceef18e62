"""Checkpoints in every layout, and the ways in which they can be wrong."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model, save_model
from vitedge.vit.checkpoint.convert import to_library
from vitedge.vit.checkpoint.layout import HUGGING_FACE, TIMM, TORCHVISION
from vitedge.vit.model import VisionTransformer


@pytest.fixture
def tensors(tiny_model: VisionTransformer) -> dict[str, torch.Tensor]:
    return to_library(TORCHVISION, dict(tiny_model.state_dict()), 2)


def refusal(source: object, **options: object) -> VitedgeError:
    with pytest.raises(VitedgeError) as caught:
        load_model(str(source), **{"heads": 2, "preprocess": "inception"} | options)
    return caught.value


@pytest.mark.parametrize("layout", [TORCHVISION, TIMM, HUGGING_FACE], ids=lambda layout: layout.name)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_layout_and_file_type(tmp_path, tiny_model, layout, suffix) -> None:
    state = to_library(layout, dict(tiny_model.state_dict()), 2)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "epoch": torch.tensor(3)}, path)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    loaded = load_model(str(path), heads=2, preprocess="inception")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), tiny_model(x))
    assert layout.name in loaded.origin


def test_hugging_face_folder(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
        id2label={0: "ant", 1: "bee", 2: "cat"},
        problem_type="multi_label_classification",
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    flags = {"do_resize": True, "do_normalize": True, "do_rescale": True, "image_processor_type": "ViTImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | flags))
    loaded = load_model(str(tmp_path))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs(x).logits
        assert (loaded.model(x) - expected).abs().max() < 1e-5 * (expected.max() - expected.min())
    assert loaded.classes == ["ant", "bee", "cat"]
    assert loaded.model.config.activation == "sigmoid"
    assert loaded.model.config.norm_eps == config.layer_norm_eps


def test_own_folder_and_files_beside(tmp_path, tiny_folder, tensors) -> None:
    own = load_model(str(tiny_folder))
    assert own.classes is not None and own.preprocess.crop == 32
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "weights.safetensors")
    for name in ("preprocess.json", "classes.txt"):
        (tmp_path / name).write_text((tiny_folder / name).read_text())
    beside = load_model(str(tmp_path), heads=2)
    assert beside.classes == own.classes and beside.preprocess == own.preprocess


def test_pruned_model_survives_its_folder(tmp_path, tiny_config) -> None:
    config = tiny_config.with_block(0, heads=1, hidden=32).with_block(1, v_dim=8, groups=(40, 24))
    model = VisionTransformer(config).eval()
    save_model(tmp_path, model)
    loaded = load_model(str(tmp_path), preprocess="inception").model
    assert loaded.config == config
    want = model.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in loaded.state_dict().items())


def test_another_resolution(tiny_folder) -> None:
    resized = load_model(str(tiny_folder), image_size=48)
    assert resized.model.config.tokens == 37 and resized.preprocess.crop == 48
    assert resized.model(torch.randn(1, 3, 48, 48)).shape == (1, 10)
    assert "does not divide" in refusal(tiny_folder, image_size=50).what


def test_missing_and_unknown_keys_are_named(tmp_path, tensors) -> None:
    weight = tensors.pop("encoder.layers.encoder_layer_1.mlp.0.weight")
    tensors["encoder.layers.encoder_layer_1.mlp.O.weight"] = weight
    torch.save(tensors, tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth")
    assert "torchvision" in error.what
    assert "encoder_layer_1.mlp.0.weight" in error.why and "looks like" in error.why


def test_foreign_checkpoint(tmp_path) -> None:
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)}, tmp_path / "resnet.pth")
    error = refusal(tmp_path / "resnet.pth")
    assert "not the checkpoint of a Vision Transformer" in error.what and "conv1.weight" in error.why


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(tmp_path, tensors, suffix) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "truncated or damaged" in refusal(path).what


def test_a_pickle_that_wants_code_is_refused(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    error = refusal(tmp_path / "evil.pth")
    assert "run code" in error.what and "state_dict" in error.todo
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    refusal(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


def test_nan_in_the_weights(tmp_path, tensors) -> None:
    tensors["heads.head.weight"][1, 2] = float("nan")
    torch.save(tensors, tmp_path / "m.pth")
    assert "heads.head.weight" in refusal(tmp_path / "m.pth").what


def test_class_names_that_do_not_fit(tmp_path, tiny_folder) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    error = refusal(tiny_folder, classes=tmp_path / "names.txt")
    assert "10 classes" in error.what and "2 class names" in error.what


def test_preprocessing_is_never_guessed(tmp_path, tensors) -> None:
    torch.save(tensors, tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth", preprocess=None)
    assert "how its images were prepared" in error.what and "--preprocess" in error.todo


def test_names(tmp_path) -> None:
    assert "no model 'vit_c_16'" in refusal("vit_c_16").what
    assert "vit_b_16" in refusal("vit_c_16").todo
    assert "There is no model './nowhere'" in refusal("./nowhere").what
    random = load_model("random:vit_ti_16")
    assert random.random and random.model.config.width == 192
    assert random.model.head.weight.abs().max() > 0


def test_no_network_says_how_to_pass_a_file(tmp_path, monkeypatch) -> None:
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    error = refusal("vit_b_16")
    assert error.exit_code == 1 and "--model FILE" in error.todo and "random:vit_b_16" in error.todo
    assert "no weights 'NOPE'" in refusal("vit_b_16:NOPE").what


@pytest.mark.parametrize(("key", "meaning"), [("dist_token", "distillation"), ("reg_token", "register")])
def test_relatives_that_are_not_plain_vits(tmp_path, tiny_model, key, meaning) -> None:
    tensors = to_library(TIMM, dict(tiny_model.state_dict()), 2) | {key: torch.zeros(1, 1, 32)}
    torch.save(tensors, tmp_path / "m.pth")
    assert meaning in refusal(tmp_path / "m.pth").what
