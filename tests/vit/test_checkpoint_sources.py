"""Models as users have them: their own library's logits, or one refusal that names the reason. Each makes its input."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.data.preprocess_sources import from_huggingface
from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.reference import can_verify, drawn_images, verify

CFG = {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with weights so large that every mistake shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def timm_vit(seed: int = 0, **options: Any) -> nn.Module:
    library = pytest.importorskip("timm.models.vision_transformer")
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 3,
        "mlp_ratio": 2,
    }
    return shaken(library.VisionTransformer(**sizes | options), seed)


def hf_vit(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes | {"image_size": 32, "patch_size": 8, "num_labels": 3} | options)
    return shaken(transformers.ViTForImageClassification(config))


def timm_folder(folder: Path, model: nn.Module, **top: Any) -> Path:
    """As timm's save_for_hf writes it."""
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": CFG}
    (folder / "config.json").write_text(json.dumps(config | top))
    return folder


def hf_folder(folder: Path, model: nn.Module, **processor: Any) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    values = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values | {"image_std": [0.5] * 3} | processor))
    return folder


def check(source: Path, theirs: nn.Module, **options: Any) -> Any:
    """Loads it and compares the logits."""
    loaded = load_model(str(source), **{"preprocess": "inception"} | options)
    with torch.inference_mode():
        found = loaded.model(X)
        wanted = theirs(X)
        wanted = getattr(wanted, "logits", wanted)
    assert (found - wanted).abs().max() < 1e-5 * max(1, float(wanted.abs().max()))
    return loaded


def refusal(source: Path, **options: Any) -> VitedgeError:
    with pytest.raises(VitedgeError) as caught:
        load_model(str(source), **{"preprocess": "inception", "heads": 4} | options)
    assert caught.value.what and caught.value.todo
    return caught.value


# ---- what shapes can't tell ----


def test_heads_from_the_description(tmp_path: Path) -> None:
    model = timm_vit(num_heads=8)
    loaded = check(timm_folder(tmp_path / "m", model, model_args={"num_heads": 8}), model, preprocess=None)
    assert loaded.model.config.blocks[0].heads == 8 and not loaded.warnings


def test_heads_are_asked_for(tmp_path: Path) -> None:
    torch.save(timm_vit().state_dict(), tmp_path / "m.pth")
    assert "--heads" in refusal(tmp_path / "m.pth", heads=None).todo
    check(tmp_path / "m.pth", timm_vit(), heads=4)  # what it advises


def test_an_architectures_name_tells_heads_only_at_its_width(tmp_path: Path) -> None:
    assert "--heads" in refusal(timm_folder(tmp_path / "m", timm_vit()), heads=None).todo
    wide = timm_vit(embed_dim=192, num_heads=3)
    check(timm_folder(tmp_path / "w", wide), wide)


def test_published_shapes_are_known_aloud(tmp_path: Path) -> None:
    model = timm_vit(embed_dim=192, num_heads=3, depth=12, mlp_ratio=4)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    loaded = check(tmp_path / "m.pth", model)
    assert any("3 heads" in note and "ViT-Ti" in note for note in loaded.notes)


def test_heads_from_the_training_settings_in_the_file(tmp_path: Path) -> None:
    model = timm_vit(num_heads=2)
    torch.save(
        {"model": model.state_dict(), "args": argparse.Namespace(num_heads=2, lr=np.float64(0.1))}, tmp_path / "m.pth"
    )
    loaded = check(tmp_path / "m.pth", model)
    assert any("2 heads" in note for note in loaded.notes)


def test_given_heads_against_the_description_are_said(tmp_path: Path) -> None:
    folder = timm_folder(tmp_path / "m", timm_vit(), model_args={"num_heads": 4})
    loaded = load_model(str(folder), heads=2)
    assert "--heads 2" in loaded.warnings[0] and "4" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("top", "named"),
    [
        ({"global_pool": "avg"}, "mean of all tokens"),
        ({"model_args": {"global_pool": "avg", "fc_norm": False}}, "mean of all tokens"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "quick_gelu"),
        ({"model_args": {"act_layer": "gelu_tanh"}}, "tanh"),
        ({"model_args": {"act_layer": "relu"}}, "ReLU"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "rmsnorm"),
        ({"model_args": {"img_size": [16, 64]}}, "do not fit"),
        ({"model_args": {"attn_layer": "diff"}}, "attn_layer"),
        ({"architecture": "vit_base_patch16_rpn_224"}, "ResPostBlock|VisionTransformer|make"),
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "missing: .*norm_pre"),
        ({"architecture": "vit_base_patch16_siglip_224"}, "AttentionPoolLatent"),
        ({"architecture": "vit_of_nowhere_patch16_224"}, "does not have"),
    ],
)
def test_timm_descriptions_of_other_models(tmp_path: Path, top: dict, named: str) -> None:
    pytest.importorskip("timm")
    import re

    error = refusal(timm_folder(tmp_path / "m", timm_vit(), **top))
    assert re.search(named, f"{error.what} {error.why}")


def test_a_file_of_a_folder_means_the_folder(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", hf_vit(hidden_act="relu", layer_norm_eps=1e-2))
    for source in (folder, folder / "model.safetensors"):
        assert "in its MLPs" in refusal(source).what


@pytest.mark.parametrize("act", ["quick_gelu", "gelu_new"])
def test_other_forms_of_gelu_are_computed_as_they_are(tmp_path: Path, act: str) -> None:
    model = hf_vit(hidden_act=act, layer_norm_eps=1e-2)
    folder = hf_folder(tmp_path / "m", model)
    for source in (folder, folder / "model.safetensors"):
        check(source, model)


def test_a_file_of_a_folder_has_its_preprocessing_and_names(tmp_path: Path) -> None:
    model = hf_vit(layer_norm_eps=1e-2, id2label={0: "ant", 1: "bee", 2: "cat"})
    folder = hf_folder(tmp_path / "m", model)
    loaded = check(folder / "model.safetensors", model, preprocess=None)
    assert loaded.preprocess.squash and loaded.classes == ["ant", "bee", "cat"]
    assert loaded.model.config.norm_eps == 1e-2


def test_norm_eps_can_be_given(tmp_path: Path) -> None:
    model = timm_vit(norm_layer=lambda width, **other: nn.LayerNorm(width, eps=1e-1))
    torch.save(model.state_dict(), tmp_path / "m.pth")
    check(tmp_path / "m.pth", model, heads=4, norm_eps=1e-1)


def test_a_config_of_another_model_is_noticed(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", hf_vit())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    assert "different models" in refusal(folder).what


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ({"ant": 0, "bee": 1, "cat": 2}, "swapped"),
        (["ant", "bee", "cat"], "list"),
        ({"0": 5, "1": 6, "2": 7}, "numbers"),
        ({"1": "a", "2": "b", "3": "c"}, "keys"),
        ("ant", "str"),
    ],
)
def test_wrong_id2label(tmp_path: Path, labels: Any, named: str) -> None:
    folder = hf_folder(tmp_path / "m", hf_vit())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    error = refusal(folder)
    assert "id2label" in error.what and named in error.why and "--classes" in error.todo
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    assert load_model(str(folder), classes=tmp_path / "names.txt").classes == ["x", "y", "z"]  # what it advises


def test_missing_number_of_heads(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", hf_vit())
    config = json.loads((folder / "config.json").read_text())
    del config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "--heads" in refusal(folder, heads=None).todo


# ---- blocks and heads of other kinds ----


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (lambda t: {"norm_layer": t.layers.RmsNorm}, "RMSNorm"),
        (lambda t: {"block_fn": t.models.vision_transformer.ResPostBlock}, "post-norm"),
        (lambda t: {"block_fn": t.models.vision_transformer.ParallelThingsBlock}, "parallel"),
        (lambda t: {"mlp_layer": t.layers.SwiGLU}, "gated"),
        (lambda t: {"mlp_layer": t.layers.GluMlp}, "gated"),
        (lambda t: {"qk_norm": True}, "qk_norm"),
        (lambda t: {"pre_norm": True}, "before the first block"),
        (lambda t: {"reg_tokens": 4}, "register"),
        (lambda t: {"num_classes": 0}, "no classification head"),
        (lambda t: {"pos_embed": "none"}, "position"),
        (lambda t: {"final_norm": False}, "no LayerNorm after"),
        (lambda t: {"class_token": False, "global_pool": "avg"}, "average pooling"),
        (lambda t: {"class_token": False, "global_pool": "map"}, "attention pooling"),
        (lambda t: {"img_size": (16, 40)}, "square grid"),
        (lambda t: {"in_chans": 1}, "1 channel"),
    ],
)
def test_blocks_that_are_not_plain_are_named(tmp_path: Path, options: Callable, named: str) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm_vit(**options(timm)).state_dict(), tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth")
    assert named in error.what


@pytest.mark.parametrize(
    "options",
    [
        {"no_embed_class": True},
        {"init_values": 1e-5},
        {"qkv_bias": False},
        {"depth": 1},
        {"proj_bias": False, "init_values": 0.1},
    ],
)
def test_blocks_that_are_exact(tmp_path: Path, options: dict) -> None:
    model = timm_vit(**options)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    check(tmp_path / "m.pth", model, heads=4)


def test_grey_becomes_rgb_as_the_error_says(tmp_path: Path) -> None:
    model = timm_vit(in_chans=1)
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].repeat(1, 3, 1, 1) / 3
    torch.save(state, tmp_path / "m.pth")
    loaded = load_model(str(tmp_path / "m.pth"), heads=4, preprocess="inception")
    grey = X[:, :1]
    with torch.inference_mode():
        assert torch.allclose(loaded.model(grey.expand(-1, 3, -1, -1)), model(grey), atol=1e-4)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels(tmp_path: Path, channels: int) -> None:
    model = timm_vit(in_chans=channels)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    loaded = load_model(str(tmp_path / "m.pth"), heads=4, preprocess="inception")
    assert loaded.preprocess.mean == loaded.preprocess.std == (0.5,) * channels
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        assert torch.allclose(loaded.model(x), model(x), atol=1e-4)
    with pytest.raises(VitedgeError, match=f"{channels} numbers"):
        load_model(str(tmp_path / "m.pth"), heads=4, preprocess="imagenet")


def test_grey_and_bgr_are_exact(tmp_path: Path) -> None:
    images = drawn_images(40)
    values = {"resize": 32, "crop": 32, "squash": True, "mean": [0.4], "std": [0.3], "channels": "grey"}
    model = timm_vit(in_chans=1)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    (tmp_path / "grey.json").write_text(json.dumps(values))
    loaded = load_model(str(tmp_path / "m.pth"), heads=4, preprocess=str(tmp_path / "grey.json"))
    theirs = [np.asarray(i.convert("L").resize((32, 32), Image.Resampling.BICUBIC), np.float32) for i in images]
    x = (torch.from_numpy(np.stack(theirs))[:, None] / 255 - 0.4) / 0.3
    ours = torch.from_numpy(loaded.preprocess.normalize(np.stack([loaded.preprocess.apply(i) for i in images])))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ours), model(x), atol=1e-4, rtol=1e-4)
    images[1].save(tmp_path / "i.png")
    assert np.ptp(np.asarray(loaded.preprocess.open(tmp_path / "i.png")).astype(int), axis=2).max() == 0

    model = timm_vit()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    values |= {"mean": [104, 117, 124], "std": [57, 58, 59], "channels": "bgr"}
    (tmp_path / "bgr.json").write_text(json.dumps(values))
    loaded = load_model(str(tmp_path / "m.pth"), heads=4, preprocess=str(tmp_path / "bgr.json"))
    pixels = np.stack([loaded.preprocess.apply(i) for i in images])
    x = torch.from_numpy((pixels[..., ::-1] - np.float32([104, 117, 124])) / np.float32([57, 58, 59]))
    ours = torch.from_numpy(loaded.preprocess.normalize(pixels))
    assert loaded.preprocess.channels == "rgb"
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ours), model(x.permute(0, 3, 1, 2)), atol=1e-4, rtol=1e-4)
    for wrong in ({"channels": "bgra"}, {"channels": "rgb", "mean": [0.5], "std": [0.5]}, {"corner": "up"}):
        (tmp_path / "w.json").write_text(json.dumps(values | wrong))
        error = refusal(tmp_path / "m.pth", preprocess=str(tmp_path / "w.json"))
        assert list(wrong)[1 if "mean" in wrong else 0] in error.what


def test_torchvision_heads(tmp_path: Path) -> None:
    library = pytest.importorskip("torchvision.models")
    for head in (nn.Linear(32, 3), nn.Sequential(nn.Linear(32, 3))):
        model = library.VisionTransformer(32, 8, 2, 4, 32, 64)
        model.heads = head
        torch.save(shaken(model).state_dict(), tmp_path / "m.pth")
        check(tmp_path / "m.pth", model, heads=4)
    model.heads = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 3))
    torch.save(shaken(model).state_dict(), tmp_path / "m.pth")
    assert "model.heads = model.heads[-1]" in refusal(tmp_path / "m.pth").todo
    dropped = model
    dropped.heads = dropped.heads[-1]  # what it advises
    torch.save(dropped.state_dict(), tmp_path / "m.pth")
    check(tmp_path / "m.pth", dropped, heads=4)


def test_pruned_elsewhere(tmp_path: Path) -> None:
    from torch.nn.utils import prune

    model = timm_vit()
    for block in model.blocks:  # type: ignore[union-attr]
        prune.l1_unstructured(block.mlp.fc1, "weight", amount=0.5)
    torch.save(model.state_dict(), tmp_path / "masked.pth")
    check(tmp_path / "masked.pth", model, heads=4)
    state = timm_vit().state_dict()
    for key in ("blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias"):
        state[key] = state[key][:40].clone()
    state["blocks.1.mlp.fc2.weight"] = state["blocks.1.mlp.fc2.weight"][:, :40].clone()
    torch.save(state, tmp_path / "units.pth")
    loaded = load_model(str(tmp_path / "units.pth"), heads=4, preprocess="inception")
    assert [block.hidden for block in loaded.model.config.blocks] == [64, 40]
    for i in range(2):
        state[f"blocks.{i}.attn.qkv.weight"] = state[f"blocks.{i}.attn.qkv.weight"][:72].clone()
        state[f"blocks.{i}.attn.qkv.bias"] = state[f"blocks.{i}.attn.qkv.bias"][:72].clone()
        state[f"blocks.{i}.attn.proj.weight"] = state[f"blocks.{i}.attn.proj.weight"][:, :24].clone()
    torch.save(state, tmp_path / "heads.pth")
    assert "were cut" in refusal(tmp_path / "heads.pth").what


# ---- wrappers and files ----


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda state: {prefix + k: v for k, v in state.items()}


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "module": prefixed("module."),
    "compiled in DDP": prefixed("_orig_mod.module."),
    "DDP of compiled": prefixed("module._orig_mod."),
    "fsdp": lambda s: {
        k.replace("blocks.0.", "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module."): v for k, v in s.items()
    },
    "lightning": lambda s: {"state_dict": prefixed("model.")(s), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    "nested": lambda s: {"state_dict": prefixed("net.backbone.")(s)},
    "net": lambda s: {"net": s, "epoch": 3},
    "params": lambda s: {"params": s},
    "criterion": lambda s: {"state_dict": prefixed("model.")(s) | {"criterion.weight": torch.ones(3)}},
    "optimizer": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{}]}},
    "numpy": lambda s: {"state_dict": s, "best": np.float64(0.5), "curve": np.arange(3.0), "n": np.int32(3)},
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("file", ["m.pth", "m.pth.tar", "m.ckpt"])
def test_wrappers(tmp_path: Path, name: str, file: str) -> None:
    model = timm_vit()
    torch.save(WRAPPERS[name](model.state_dict()), tmp_path / file)
    check(tmp_path / file, model, heads=4)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_ema_is_taken_and_said(tmp_path: Path, key: str) -> None:
    model, ema = timm_vit(0), timm_vit(1)
    averaged = {f"module.{k}": v for k, v in ema.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    torch.save({"state_dict": model.state_dict(), key: averaged}, tmp_path / "m.pth")
    loaded = check(tmp_path / "m.pth", ema, heads=4)
    assert any(key in note and "--weights" in note for note in loaded.notes)
    check(tmp_path / "m.pth", ema, heads=4, weights="ema")
    check(tmp_path / "m.pth", model, heads=4, weights="model")
    assert "'state_dict." in refusal(tmp_path / "m.pth", weights="best").why


def test_two_models_are_asked_about(tmp_path: Path) -> None:
    student, teacher = timm_vit(0), timm_vit(1)
    torch.save({"student": student.state_dict(), "teacher": teacher.state_dict()}, tmp_path / "m.pth")
    error = refusal(tmp_path / "m.pth")
    assert "student" in error.what and "--weights student" in error.todo
    check(tmp_path / "m.pth", student, heads=4, weights="student")
    check(tmp_path / "m.pth", teacher, heads=4, weights="teacher")


def test_tensors_beside_the_model_are_not_dropped(tmp_path: Path) -> None:
    state = prefixed("backbone.")(timm_vit().state_dict()) | {"classifier.weight": torch.ones(3, 32)}
    torch.save(state, tmp_path / "m.pth")
    assert "classifier.weight" in refusal(tmp_path / "m.pth").why


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("blocks.0.attn.qkv.lora_A.default.weight", "merge_and_unload"),
        ("blocks.0.attn.qkv.base_layer.weight", "merge_and_unload"),
        ("blocks.0.mlp.fc1.parametrizations.weight.original0", "remove_parametrizations"),
        ("_flat_param", "FULL_STATE_DICT"),
        ("blocks.0.mlp.fc1.SCB", "float model"),
    ],
)
def test_unfinished_weights_say_what_to_do(tmp_path: Path, key: str, named: str) -> None:
    torch.save(timm_vit().state_dict() | {key: torch.ones(3)}, tmp_path / "m.pth")
    assert named in refusal(tmp_path / "m.pth").todo


@pytest.mark.parametrize("shard", [False, True])
def test_shards(tmp_path: Path, shard: bool) -> None:
    model = hf_vit()
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # type: ignore[operator]
    first = sorted(tmp_path.glob("model-00001*"))[0]
    check(first if shard else tmp_path, model)
    first.unlink()
    assert "missing" in refusal(tmp_path).what


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_trainer_folders(tmp_path: Path, name: str) -> None:
    model = hf_vit()
    folder = hf_folder(tmp_path / "m", model)
    for beside in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"a": 1}, folder / beside)
    if name.endswith("bin"):
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / name)
    check(folder, model, preprocess=None)
    check(folder / name, model, preprocess=None)


def test_a_folder_of_several_advises_what_works(tmp_path: Path) -> None:
    model = timm_vit()
    for name in ("a.pth", "b.pth"):
        torch.save(model.state_dict(), tmp_path / name)
    advised = refusal(tmp_path).todo.rpartition("--model ")[2].rstrip(".")
    check(Path(advised), model, heads=4)
    outer = tmp_path / "outer"
    (outer / "checkpoint-5").mkdir(parents=True)
    hf_folder(outer / "checkpoint-5", hf_vit())
    advised = refusal(outer).todo.rpartition("--model ")[2].rstrip(".")
    check(Path(advised), hf_vit(), preprocess=None)


def test_adapter_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert "merge_and_unload" in refusal(tmp_path).todo


def script(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


NOT_CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"), "Git LFS"),
    "html": (lambda p: p.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>"), "web page"),
    "json": (lambda p: p.write_text('{"error": "not found"}'), "JSON"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x0a\x12\x07pytorch" + bytes(40)), "ONNX"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)), "Keras"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(40)), "gzip"),
    "torchscript": (script, "TorchScript"),
    "noise": (lambda p: p.write_bytes(bytes(range(1, 200))), "truncated or damaged"),
    "list": (lambda p: torch.save([1, 2], p), "no state dict"),
    "module": (lambda p: torch.save(nn.Linear(2, 2), p), "run code"),
    "integers": (lambda p: torch.save({k: v.int() for k, v in timm_vit().state_dict().items()}, p), "floating-point"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    make, named = NOT_CHECKPOINTS[kind]
    make(tmp_path / "model.pth")
    assert named in refusal(tmp_path / "model.pth").what


@pytest.mark.filterwarnings("ignore")
def test_torchscript_becomes_what_its_error_says(tmp_path: Path) -> None:
    model = timm_vit()
    torch.jit.trace(model, X).save(str(tmp_path / "script.pt"))
    assert "torch.jit.load" in refusal(tmp_path / "script.pt").todo
    torch.save(torch.jit.load(tmp_path / "script.pt", map_location="cpu").state_dict(), tmp_path / "model.pth")
    check(tmp_path / "model.pth", model, heads=4)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_jax_release(tmp_path: Path, prefix: str) -> None:
    model = timm_vit(num_heads=8)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for name, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{theirs}LayerNorm_{number}/scale"] = state[f"{ours}{name}.weight"]
            arrays[f"{theirs}LayerNorm_{number}/bias"] = state[f"{ours}{name}.bias"]
        for number in range(2):
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}mlp.fc{number + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}mlp.fc{number + 1}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights, biases = (np.split(state[f"{ours}attn.qkv.{kind}"], 3) for kind in ("weight", "bias"))
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{attention}{part}/kernel"] = weight.T.reshape(32, 8, 4)
            arrays[f"{attention}{part}/bias"] = bias.reshape(8, 4)
        arrays[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(8, 4, 32)
        arrays[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
    np.savez(tmp_path / "m.npz", **{prefix + k: v for k, v in arrays.items()})
    loaded = check(tmp_path / "m.npz", model)
    assert loaded.model.config.blocks[0].heads == 8
    assert any("erf" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("google/vit-base-patch16-224", "hf download google/vit-base-patch16-224"),
        ("timm/vit_base_patch16_224.augreg_in21k_ft_in1k", "create_model('vit_base_patch16_224.augreg_in21k_ft_in1k'"),
        ("hf-hub:timm/vit_tiny_patch16_224", "create_model('vit_tiny_patch16_224'"),
        ("deit_tiny_patch16_224", "save_for_hf"),
        ("https://download.example/vit.pth", "Download it"),
        ("vit_b_61", "vit_b_16"),
        ("random:vit_ti_16x", "vit_ti_16"),
        ("vit_s_16", "--model random:vit_s_16"),
    ],
)
def test_names_as_people_know_them(name: str, advice: str) -> None:
    with pytest.raises(VitedgeError) as caught:
        load_model(name)
    assert advice in f"{caught.value.why} {caught.value.todo}"


def test_saving_with_timm_as_the_error_says(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = shaken(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3))
    timm.models.save_for_hf(model, tmp_path)
    loaded = load_model(str(tmp_path))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(loaded.model(x), model(x), atol=1e-3)
    assert loaded.model.config.blocks[0].heads == 3


# ---- how images are prepared ----


@pytest.mark.parametrize(
    "change",
    [
        {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32},
        {"rescale_factor": 1 / 127.5},
        {"rescale_offset": True, "image_processor_type": "EfficientNetImageProcessor", "rescale_factor": 1 / 127.5}
        | {"include_top": False},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [123.675, 116.28, 103.53], "image_std": [58.395, 57.12, 57.375]},
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True},
    ],
)
def test_image_processors(change: dict) -> None:
    values = {"image_processor_type": "ViTImageProcessor", "size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    values |= {"resample": 2}
    values = {k: v for k, v in (values | change).items() if v is not None}
    ours = from_huggingface(values)
    image = drawn_images(40)[1]
    x = np.asarray(image if not ours.squash else image.resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    if not ours.squash:
        wide, high = image.size
        short = min(wide, high)
        image = image.resize((36 * wide // short, 36 * high // short), Image.Resampling.BILINEAR)
        left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
        x = np.asarray(image.crop((left, top, left + 32, top + 32)), np.float64)
    if values.get("do_rescale", True):
        x = x * values.get("rescale_factor", 1 / 255) - (1 if values.get("rescale_offset") else 0)
    if values.get("do_normalize", True):
        x = (x - np.array(values["image_mean"])) / np.array(values["image_std"])
    found = ours.normalize(ours.apply(drawn_images(40)[1])[None])[0]
    np.testing.assert_allclose(found, x.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"do_flip_channel_order": True}, "BGR"),
        ({"image_processor_type": "LevitImageProcessor"}, "not known"),
        ({"image_processor_type": None, "size": 36, "crop_size": 32}, "no image_processor_type"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "no size"),
        ({"size": "big"}, "size"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
    ],
)
def test_image_processors_that_are_refused(change: dict, named: str) -> None:
    values = {
        k: v for k, v in ({"image_processor_type": "ViTImageProcessor", "size": 32} | change).items() if v is not None
    }
    with pytest.raises(VitedgeError, match=named):
        from_huggingface(values)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]), ([0, 0, 0], [255, 255, 255]), ([123, 117, 104], [1, 1, 1])],
)
def test_units_of_255_are_recognised_and_said(tmp_path: Path, tiny_folder: Path, mean: list, std: list) -> None:
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "m")
    values = {"resize": 32, "crop": 32, "mean": mean, "std": std}
    (tmp_path / "m" / "preprocess.json").write_text(json.dumps(values))
    loaded = load_model(str(tmp_path / "m"))
    pixels = np.full((1, 2, 2, 3), 200, np.uint8)
    want = (200 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(loaded.preprocess.normalize(pixels)[0, :, 0, 0], want, rtol=1e-5)
    assert any("0..255" in note for note in loaded.notes)


def test_orientation_and_grey_are_the_sources(tmp_path: Path) -> None:
    image, exif = drawn_images(40)[1], Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.png", exif=exif)
    lying = Preprocess(32, 32)
    upright = Preprocess(32, 32, upright=True)
    assert lying.open(tmp_path / "phone.png").size == image.size
    assert upright.open(tmp_path / "phone.png").size == image.size[::-1]
    lying.save(tmp_path / "p.json")
    saved = json.loads((tmp_path / "p.json").read_text())
    assert saved["upright"] is False and saved["grey16"] == "clip"
    Image.fromarray(np.array([[0, 200, 1000, 65535]], np.uint16)).save(tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as opened:
        np.testing.assert_array_equal(np.asarray(lying.open(tmp_path / "g.png")), np.asarray(opened.convert("RGB")))
    scaled = Preprocess(32, 32, grey16="scale").open(tmp_path / "g.png")
    assert np.asarray(scaled)[0, :, 0].tolist() == [0, 1, 4, 255]


def test_each_source_says_its_orientation(tmp_path: Path) -> None:
    assert load_model(str(timm_folder(tmp_path / "t", timm_vit())), heads=4).preprocess.upright is False
    assert load_model(str(hf_folder(tmp_path / "h", hf_vit()))).preprocess.upright is True


def test_overrides_show_both(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", hf_vit(id2label={0: "ant", 1: "bee", 2: "cat"}))
    (tmp_path / "names.txt").write_text("ant\nbug\ncat\n")
    loaded = load_model(str(folder), preprocess="imagenet", classes=tmp_path / "names.txt")
    first, second = loaded.warnings
    assert "--preprocess" in first and "0.485" in first and "0.5" in first
    assert "--classes" in second and "'bug'" in second and "'bee'" in second
    multi = hf_folder(tmp_path / "n", hf_vit(problem_type="multi_label_classification"))
    assert "sigmoid" in load_model(str(multi), activation="softmax").warnings[0]


def test_one_logit_is_a_sigmoid_aloud(tmp_path: Path) -> None:
    torch.save(timm_vit(num_classes=1).state_dict(), tmp_path / "m.pth")
    loaded = load_model(str(tmp_path / "m.pth"), heads=4, preprocess="inception")
    assert loaded.model.config.activation == "sigmoid" and any("sigmoid" in note for note in loaded.notes)
    given = load_model(str(tmp_path / "m.pth"), heads=4, preprocess="inception", activation="softmax")
    assert given.model.config.activation == "softmax"


# ---- --verify ----


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[dict[str, Path]]:
    library = pytest.importorskip("torchvision.models")
    torch.save(shaken(library.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=3)).state_dict(), tmp_path / "tv.pth")
    yield {
        "torchvision": tmp_path / "tv.pth",
        "timm": timm_folder(tmp_path / "t", timm_vit(no_embed_class=True), model_args={"num_heads": 4}),
        "transformers": hf_folder(tmp_path / "h", hf_vit().half()),
    }


def test_verify_agrees_and_sees_what_is_wrong(sources: dict[str, Path]) -> None:
    for package, source in sources.items():
        own = package != "torchvision"
        loaded = load_model(str(source), heads=None if own else 4, preprocess=None if own else "inception")
        assert loaded.reference is not None and can_verify(loaded.reference)
        text = verify(loaded.model, loaded.preprocess, loaded.reference)
        assert package in text and text.startswith("verified") and ("preprocessing" in text) == own
        with torch.no_grad():
            loaded.model.blocks[0].attention.q.weight *= 1.01
        with pytest.raises(VitedgeError, match="does not compute"):
            verify(loaded.model, loaded.preprocess, loaded.reference)
        if own:
            wrong = Preprocess(40, 32, "bilinear", (0.4,) * 3, (0.5,) * 3)
            with pytest.raises(VitedgeError, match="not prepared"):
                verify(loaded.model, wrong, loaded.reference)


def test_verify_from_the_command_line(sources: dict[str, Path], tmp_path: Path, repository: Path) -> None:
    def compress(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "vitedge",
            "compress",
            "--run",
            "run",
            "--model",
            str(sources["timm"]),
            *arguments,
        ]
        environment = {"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin", "COLUMNS": "300", "HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    wrong = compress("--heads", "2", "--no-condition")
    assert wrong.returncode == 1 and "does not compute what timm computes" in wrong.stderr, wrong.stderr
    assert "verified" in compress("--no-condition").stderr


def test_inspect_takes_the_same_options_and_shows_the_notes(tmp_path: Path) -> None:
    from vitedge.sections import ModelSection, SourceSection
    from vitedge.steps.inspect import inspect_model

    model, ema = timm_vit(0), timm_vit(1)
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": ema.state_dict()}, tmp_path / "m.pth")
    for section in (SourceSection, ModelSection):
        found = inspect_model(section(model=str(tmp_path / "m.pth"), heads=4))
        assert found.model.blocks[0].heads == 4 and "state_dict_ema" in found.tables["Layers"].note


def test_inspect_tells_what_was_overridden_and_nothing_of_what_nobody_gave(tiny_folder: Path) -> None:
    from vitedge.sections import ModelSection
    from vitedge.steps.inspect import inspect_model

    note = inspect_model(ModelSection(model=str(tiny_folder))).tables["Layers"].note
    assert "overrid" not in note
    note = inspect_model(ModelSection(model=str(tiny_folder), preprocess="inception", heads=1)).tables["Layers"].note
    assert "--preprocess overrides what came with the model" in note and "--heads 1 is not used" in note
