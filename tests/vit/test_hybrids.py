"""ViTs on a convolutional stem: timm's in full size, every step on a small one, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.command import vitedge
from tests.vit.test_verify_families import timm_folder
from tests.vit.test_vit_families import SMALL, check, filled
from tests.vit.test_vit_variants import apart, exported, of, preprocess_of, run
from tests.vit.variants import VARIANTS, images, make
from vitedge import targets
from vitedge.condition.apply import batched
from vitedge.data.preprocess import Preprocess
from vitedge.data.shapes import SHAPES
from vitedge.errors import VitedgeError
from vitedge.metrics import agreement, sqnr_db
from vitedge.quant import QuantOptions, calibrate, insert_qdq, simulate
from vitedge.quant.learned_model import learnable, learned_scheme
from vitedge.reporter import Reporter
from vitedge.steps.scheme import make_scheme
from vitedge.targets.rknn import rewrites
from vitedge.targets.rknn.check import check_graph
from vitedge.targets.rknn.tensors import PATCH, part_of
from vitedge.targets.tensorrt.check import graph_problems
from vitedge.targets.tensorrt.quantized import place
from vitedge.vit.checkpoint import load_model, save_model
from vitedge.vit.checkpoint.families import timm_vit
from vitedge.vit.checkpoint.plain import PLAIN
from vitedge.vit.checkpoint.save import to_torchvision
from vitedge.vit.config import ViTConfig
from vitedge.vit.products import stem_units
from vitedge.vit.stem import StemLayer

# timm's name, image size, what else its constructor is told.
FULL = [
    ("vit_tiny_r_s16_p8_224", 224, {}),
    ("vit_tiny_r_s16_p8_224", 256, {}),
    ("vit_small_r26_s32_224", 224, {}),
    ("vit_small_r26_s32_224", 256, {"depth": 2}),
    ("vit_base_r50_s16_224", 224, {}),
    # A grid of 15: maps of odd sizes, whose padding is uneven.
    ("vit_base_r50_s16_224", 240, {"depth": 2}),
]
NAMES = ("resnet stem", "convolutional stem")


@pytest.mark.parametrize(("name", "size", "arguments"), FULL)
def test_logits_are_timms_in_full_size(name: str, size: int, arguments: dict) -> None:
    timm = pytest.importorskip("timm")
    model = filled(timm.create_model(name, img_size=size, **arguments))
    with torch.device("meta"):
        described = timm.create_model(name, img_size=size, **arguments)
    check(timm_vit.read(model.state_dict(), described), model)


def test_a_sequence_as_levits_with_batch_norms_and_an_overlap_at_its_end() -> None:
    layers = pytest.importorskip("timm.layers")
    from timm.models.vision_transformer import VisionTransformer

    def conv(*sizes: int, last: bool = False) -> torch.nn.Module:
        return layers.ConvNormAct(*sizes, stride=2, act_layer=torch.nn.Hardswish, apply_act=not last)

    stem = torch.nn.Sequential(conv(3, 12, 3), conv(12, 24, 3), conv(24, 48, 3, last=True))
    embed = partial(layers.HybridEmbed, backbone=stem, proj=False)
    model = filled(VisionTransformer(img_size=64, patch_size=1, embed_layer=embed, num_classes=10, **SMALL))
    read = timm_vit.read(model.state_dict(), model)
    assert read.config.stem is not None and [str(layer) for layer in read.config.stem.layers] == [
        "3x3, stride 2, hard_swish",
        "3x3, stride 2, hard_swish",
        "3x3, stride 2",
    ]
    check(read, model)


def test_another_image_size_is_timms(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import checkpoint_filter_fn

    name, small = "vit_tiny_r_s16_p8_224", {**SMALL, "num_classes": 10}
    folder = timm_folder(tmp_path / "m", name, **small)
    source = load_model(str(folder))
    larger = timm.create_model(name, img_size=96, **small).eval()
    model = filled(timm.create_model(name, img_size=64, **small))
    larger.load_state_dict(checkpoint_filter_fn(model.state_dict(), larger))
    ours = load_model(str(folder), image_size=96).model
    assert (source.model.config.grid, ours.config.grid) == ((2, 2), (3, 3))
    x = images(ours.config, 2)
    assert apart(of(larger, x), of(ours, x)) < 1e-5


def small_hybrid(folder: Path) -> ViTConfig:
    """A model folder with a hybrid for the drawn shapes."""
    config = VARIANTS["resnet stem"]
    config = ViTConfig.from_dict({**config.to_dict(), "classes": len(SHAPES)})
    save_model(folder, make(config))
    Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3).save(folder / "preprocess.json")
    (folder / "classes.txt").write_text("\n".join(SHAPES) + "\n")
    return config


def test_from_the_checkpoint_to_artifacts(tmp_path: Path, shapes_folder: Path) -> None:
    pytest.importorskip("openvino")
    config = small_hybrid(tmp_path / "model")
    common = ["--model", "model", "--calib", shapes_folder, "--align", 4, "--head-align", 4, "--min-hidden", 8]
    bits = targets.get("openvino").weight_bits()
    done = vitedge(tmp_path, "compress", *common, "--prune", 0.2, "--quantize", "static", "--weight-bits", bits)
    assert "in the stem, which stays float." in done.stdout
    run_folder = tmp_path / "vitedge-run"
    small = ViTConfig.from_dict(json.loads((run_folder / "model/arch.json").read_text()))
    assert small.stem == config.stem and small.blocks != config.blocks
    pixels, logits = np.load(run_folder / "calib/pixels.npy"), []
    for target in ("onnxruntime", "openvino"):
        vitedge(tmp_path, "build", "--target", target, "--precision", "int8")
        built = run_folder / f"build/{target}-int8"
        metadata = json.loads((built / "metadata.json").read_text())
        assert metadata["check"]["accepted"] is True and metadata["check"]["sqnr_db"] > 20
        runner = targets.get(target).open(built / metadata["artifact"], metadata, threads=1)
        logits.append(np.concatenate([runner.infer(image[None]) for image in pixels]))
        runner.close()
    assert agreement(*logits) >= 0.95 and sqnr_db(*map(torch.from_numpy, logits)) > 25
    shown = vitedge(tmp_path, "inspect").stdout
    assert "patch_embed.stem.conv" in shown and "GroupNorm of 4, relu" in shown
    assert "leaves the convolutions before block0 in float" in shown
    report = json.loads((run_folder / "analysis/30-quantize.json").read_text())
    assert "share of MACs in the stem, which stays float" in json.dumps(report)


@pytest.mark.parametrize("name", NAMES)
def test_graphs_for_the_other_targets(name: str, tmp_path: Path) -> None:
    config = VARIANTS[name]
    model, x = make(config), images(config, 16)
    graph, expected = exported(model, 1), of(model, x)
    onnx.save(graph, tmp_path / "float32.onnx")
    assert not check_graph(tmp_path / "float32.onnx")
    rewritten, done = rewrites.apply(graph)
    assert "pixels" in done
    # Mixed precision has the stem as one part with the patches.
    assert {part_of(unit.name) for unit in stem_units(config)} == {PATCH}
    pixels = ((x + 1) * 127.5).round().numpy()
    session = onnxruntime.InferenceSession(rewritten.SerializeToString(), providers=["CPUExecutionProvider"])
    assert apart(expected[:1], session.run(None, {"pixels": pixels[:1]})[0]) < 1e-5
    scheme = calibrate(model, batched(x), QuantOptions(stem="int8"), preprocess_of(config))
    placed, facts = place(exported(model), scheme)
    assert not graph_problems(placed)
    reasons = {facts["float"][unit.name] for unit in stem_units(config)}
    assert reasons == {"the zeros around its input would be shifted too"}
    assert sqnr_db(expected, run(placed, x)) > 12


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_at_the_scheme_of_a_stem_in_int8(name: str) -> None:
    config, preprocess = VARIANTS[name], preprocess_of(VARIANTS[name])
    model, x = make(config), images(config, 16)
    scheme = calibrate(model, batched(x), QuantOptions(stem="int8"), preprocess)
    student = learnable(model, scheme, preprocess)
    learned = learned_scheme(student, scheme, preprocess, {})
    for unit in stem_units(config):
        before, after = scheme.weights[unit.name], learned.weights[unit.name]
        assert np.array_equal(before.values, after.values)
        np.testing.assert_allclose(after.scale, before.scale, rtol=1e-6)
        np.testing.assert_allclose(learned.biases[unit.name], scheme.biases[unit.name], atol=1e-6)
    student(x).square().sum().backward()
    assert all(float(student.linears()[unit.layer].factor.grad.abs().sum()) > 0 for unit in stem_units(config))
    # Weights start beside their integers, so that the two are near, and not equal.
    assert sqnr_db(of(simulate(model, scheme, preprocess), x), of(student, x)) > 25


@pytest.mark.parametrize("name", NAMES)
def test_openvino_multiplies_a_stem_in_integers(name: str) -> None:
    ov = pytest.importorskip("openvino")
    config, preprocess = VARIANTS[name], preprocess_of(VARIANTS[name])
    model, x = make(config), images(config, 16)
    scheme = calibrate(model, batched(x), QuantOptions(stem="int8", weight_bits=7), preprocess)
    graph = insert_qdq(exported(model, len(x)), scheme)
    core = ov.Core()
    # A CPU that has bf16 would compute all else in it.
    floats = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(graph.SerializeToString(), b""), "CPU", floats)
    kinds = {
        op.get_friendly_name(): op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "Convolution"
    }
    assert len(kinds) == len(stem_units(config)) and set(kinds.values()) <= {"i8", "u8"}, kinds
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    noise = sqnr_db(of(model, x), found := compiled([pixels])[0])
    assert sqnr_db(run(graph, x), found) > max(noise, 20)


def refusal(error: pytest.ExceptionInfo[VitedgeError]) -> tuple[str, str, str]:
    return error.value.what, error.value.why, error.value.todo


def test_a_stem_with_other_parts_is_refused_by_name() -> None:
    timm = pytest.importorskip("timm")
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    backbone = timm.create_model("seresnet18", features_only=True, out_indices=[4])
    embed = partial(HybridEmbed, backbone=backbone)
    model = VisionTransformer(img_size=64, patch_size=1, embed_layer=embed, **SMALL)
    with pytest.raises(VitedgeError) as error:
        timm_vit.read(model.state_dict(), model)
    assert refusal(error) == (
        "This timm VisionTransformer checkpoint has SEModule in its convolutional stem.",
        "The architecture of vitedge has no such part, and without it every output would be wrong.",
        "Choose another model of that family.",
    )


def test_a_state_dict_alone_is_asked_for_its_description(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    folder = timm_folder(tmp_path / "m", "vit_tiny_r_s16_p8_224", num_classes=10)
    (folder / "config.json").unlink()
    with pytest.raises(VitedgeError) as error:
        load_model(str(folder), preprocess="imagenet")
    assert refusal(error) == (
        "This timm checkpoint has a stem of several layers ('patch_embed.backbone.conv.weight').",
        PLAIN,
        "DeiT, CLIP, SigLIP, DINOv2, DINOv3, Swin, PVT v2, EVA-02 and timm's hybrids are read with the config.json of "
        "timm, transformers or open_clip beside the weights, or with timm's name of the model: --architecture NAME.",
    )


def test_a_description_that_is_no_stem_is_refused() -> None:
    config = VARIANTS["resnet stem"].to_dict()
    layers = config["stem"]["layers"]  # type: ignore[index]

    def broken(at: int, **changes: object) -> str:
        stem = {"layers": [{**layer, **(changes if i == at else {})} for i, layer in enumerate(layers)]}
        with pytest.raises(VitedgeError) as error:
            ViTConfig.from_dict({**config, "stem": stem})
        return str(error.value)

    assert "does not make the patches" in broken(0, stride=1)
    assert "that is not before it" in broken(0, source="conv3")
    assert "different shapes" in broken(5, channels=16)
    assert "groups don't divide" in broken(0, groups=5)
    assert "ends with the convolution" in broken(6, act="relu")
    assert "pools 16 channels" in broken(1, channels=8)
    with pytest.raises(VitedgeError, match="32 x 36 pixels does not divide into patches of 8"):
        ViTConfig.from_dict({**config, "image_size": (32, 36)})


def test_padding_as_tensorflow_has_it() -> None:
    layer = partial(StemLayer, "conv", 8)
    assert layer(7, 2, "same").pads(224) == (2, 3)
    assert layer(3, 2, "same").pads(15) == (1, 1)
    assert layer(3, 1, 1).pads(15) == (1, 1)
    assert layer(1, 2, "same").pads(8) == (0, 0)


def test_other_steps_that_leave_the_stem_out(tmp_path: Path) -> None:
    model = make(VARIANTS["resnet stem"])
    with pytest.raises(VitedgeError) as error:
        to_torchvision(model)
    assert "a stem, can't be written under torchvision's names" in error.value.what
    options = QuantOptions(stem="int8")
    with pytest.raises(VitedgeError) as error:
        make_scheme("dynamic", model, None, preprocess_of(model.config), options, Reporter(), model)
    assert refusal(error) == (
        "Dynamic quantisation leaves the convolutional stem in float.",
        "quantize.stem asks for int8, whose scales are found on calibration images.",
        "Take --quantize static, or leave quantize.stem out.",
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit-hybrid", "architectures": ["ViTHybridModel"]}))
    torch.save({"vit.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VitedgeError) as error:
        load_model(str(tmp_path))
    assert refusal(error) == (
        f"By {tmp_path / 'config.json'} the model is transformers' ViTHybrid.",
        "transformers 5 has it no more, so that nothing could prove how its tensors are read.",
        "It was made of timm's vit_base_r50_s16_384, which is read: "
        "--model timm:vit_base_r50_s16_384.orig_in21k_ft_in1k; weights of your own: load them into that.",
    )
