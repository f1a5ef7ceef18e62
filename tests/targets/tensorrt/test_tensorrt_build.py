"""The build's control flow on the stand-in: what TensorRT is told, what comes back, what is refused."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.export.vit import export_vit
from vitedge.targets import get
from vitedge.targets.base import BuildRequest
from vitedge.targets.tensorrt import api, build, trtexec
from vitedge.targets.tensorrt.options import Profile, TensorRTOptions, parse_profiles
from vitedge.vit.config import uniform

PLAN = b"plan" * 100
TARGET = get("tensorrt")


def tiny(batch: int | None = 1) -> onnx.ModelProto:
    config = uniform(image_size=32, patch_size=8, width=32, depth=2, heads=2, hidden=48, classes=10)
    rng = np.random.default_rng(0)
    w = {"patch_embed.weight": (32, 3, 8, 8), "patch_embed.bias": (32,), "class_token": (1, 1, 32)}
    w |= {"pos_embedding": (1, 17, 32), "norm.weight": (32,), "norm.bias": (32,)}
    w |= {"head.weight": (10, 32), "head.bias": (10,)}
    for i in range(2):
        for part in ("q", "k", "v", "out"):
            w |= {f"blocks.{i}.attention.{part}.weight": (32, 32), f"blocks.{i}.attention.{part}.bias": (32,)}
        w |= {f"blocks.{i}.mlp.fc1.weight": (48, 32), f"blocks.{i}.mlp.fc1.bias": (48,)}
        w |= {f"blocks.{i}.mlp.fc2.weight": (32, 48), f"blocks.{i}.mlp.fc2.bias": (32,)}
        for norm in ("norm1", "norm2"):
            w |= {f"blocks.{i}.{norm}.weight": (32,), f"blocks.{i}.{norm}.bias": (32,)}
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in w.items()}
    return export_vit(config, weights, Preprocess(resize=36, crop=32), batch=batch)


@pytest.fixture
def request_for(tmp_path: Path):
    """Makes a build request on a tiny ViT."""

    def make(precision="fp16", batch=1, pixels=True, **options) -> BuildRequest:
        onnx.save(tiny(batch), str(tmp_path / "float32.onnx"))
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        return BuildRequest(
            onnx=tmp_path / "float32.onnx",
            out=out,
            precision=precision,
            platform=None,
            options=TensorRTOptions(**options),
            pixels=images if pixels else None,
        )

    return make


@pytest.fixture
def machine(trt, device, monkeypatch, tmp_path):
    """A machine with that TensorRT and a GPU, no trtexec, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    layer = {
        "Name": "_gemm_mha_v2_myl0_1",
        "LayerType": "kgen",
        "Outputs": [{"Name": "o", "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: block0.attention.scores][ONNX Layer: block0.attention.probs]",
    }
    second = layer | {"Metadata": "[ONNX Layer: block1.attention.probs]"}
    trt.script.update(
        {
            "Builder.build_serialized_network": lambda *_: PLAN,
            "ITimingCache.serialize": lambda _: b"times",
            "EngineInspector.get_engine_information": lambda *_: json.dumps({"Layers": [layer, second]}),
            "INetworkDefinition.num_inputs": lambda _: 1,
            "INetworkDefinition.get_input": lambda *_: Tensor(),
        }
    )
    return trt


class Tensor:
    name, shape = "pixels", (-1, 32, 32, 3)


def called(trt, name: str) -> list[tuple]:
    return [arguments for path, arguments, _ in trt.calls if path == name]


def test_an_fp16_build(machine, request_for):
    request = request_for(workspace_mib=256, opt_level=4)
    result = TARGET.build(request)
    assert result.artifact == "model.engine" and (request.out / result.artifact).read_bytes() == PLAN
    flag = machine.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert called(machine, "Builder.create_network") == [(1 << int(flag),)]
    assert called(machine, "OnnxParser.parse_from_file") == [(str(request.out / "model.onnx"),)]
    workspace = machine.MemoryPoolType.WORKSPACE
    assert called(machine, "IBuilderConfig.set_memory_pool_limit") == [(workspace, 256 << 20)]
    assert called(machine, "IBuilderConfig.builder_optimization_level=") == [(4,)]
    assert not called(machine, "IBuilderConfig.set_flag") and not called(machine, "IBuilderConfig.clear_flag")
    assert not called(machine, "IBuilderConfig.add_optimization_profile")
    kinds = {i.data_type for i in onnx.load(str(request.out / "model.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    facts = result.metadata
    assert facts["machine"]["tensorrt"] == machine.__version__
    assert facts["machine"]["compute_capability"] == "8.7" and facts["machine"]["cuda"] == "12.6"
    assert facts["engine"]["attention_fused"] == "2/2" == facts["graph"]["attention"]["fusable"]
    assert facts["graph"]["float16"]["residual"]["exponent"] == 0
    assert facts["engine_bytes"] == len(PLAN) and len(facts["engine_sha256"]) == 64
    assert {p.name for p in request.out.iterdir()} >= {"build.log", "layers.json", "graph.json"}
    json.dumps(facts, allow_nan=False)


def test_fp32_is_fp32(machine, request_for):
    request = request_for("fp32", pixels=False)
    TARGET.build(request)
    assert called(machine, "IBuilderConfig.clear_flag") == [(machine.BuilderFlag.TF32,)]
    kinds = {i.data_type for i in onnx.load(str(request.out / "model.onnx")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds


def test_profiles_of_a_free_batch(machine, request_for):
    TARGET.build(request_for(batch=None, dynamic_batch="1,8"))
    shapes = called(machine, "IOptimizationProfile.set_shape")
    assert shapes == [("pixels", *([[n, 32, 32, 3]] * 3)) for n in (1, 8)]
    assert len(called(machine, "IBuilderConfig.add_optimization_profile")) == 2


def test_compatibility_and_dla(machine, request_for):
    machine.script["Builder.num_DLA_cores"] = lambda _: 2
    result = TARGET.build(request_for(version_compatible=True, hardware_compatible=True, dla=1))
    flags = called(machine, "IBuilderConfig.set_flag")
    assert flags == [(machine.BuilderFlag.VERSION_COMPATIBLE,), (machine.BuilderFlag.GPU_FALLBACK,)]
    level = machine.HardwareCompatibilityLevel.AMPERE_PLUS
    assert called(machine, "IBuilderConfig.hardware_compatibility_level=") == [(level,)]
    assert called(machine, "IBuilderConfig.DLA_core=") == [(1,)]
    assert result.metadata["version_compatible"] and result.metadata["hardware_compatible"]


def test_the_timing_cache_is_kept_by_gpu_and_version(machine, request_for, tmp_path):
    given = []
    machine.script["IBuilderConfig.create_timing_cache"] = lambda _, content: (
        given.append(content) or machine.ITimingCache.__new__(machine.ITimingCache)
    )
    TARGET.build(request_for())
    TARGET.build(request_for())
    assert given == [b"", b"times"]
    (cache,) = (tmp_path / "cache").rglob("*.cache")
    assert machine.__version__ in cache.name and "sm8.7" in cache.name


def test_a_timing_cache_of_another_version_is_refused(machine, request_for, tmp_path):
    path = tmp_path / "old.cache"
    TARGET.build(request_for(timing_cache=str(path)))
    note = path.with_name("old.cache.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"tensorrt": "8.6.2"}))
    with pytest.raises(VitedgeError, match=r"tensorrt 8\.6\.2 \(here"):
        TARGET.build(request_for(timing_cache=str(path)))
    note.unlink()
    machine.script["IBuilderConfig.set_timing_cache"] = lambda *_: False
    with pytest.raises(VitedgeError, match="timing cache does not fit"):
        TARGET.build(request_for(timing_cache=str(path)))


def test_parser_errors_name_node_and_operator(machine, request_for):
    machine.script["OnnxParser.parse_from_file"] = lambda *_: False
    machine.script["OnnxParser.num_errors"] = lambda _: 1
    machine.script["ParserError.node_name"] = lambda _: "block3.mlp.gelu"
    machine.script["ParserError.node_operator"] = lambda _: "Gelu"
    machine.script["ParserError.desc"] = lambda _: "no importer registered for op: Gelu"
    machine.script["OnnxParser.get_error"] = lambda *_: machine.ParserError.__new__(machine.ParserError)
    request = request_for()
    with pytest.raises(VitedgeError, match=r"Gelu 'block3\.mlp\.gelu': no importer") as caught:
        TARGET.build(request)
    assert caught.value.exit_code == 1
    assert (request.out / "build.log").is_file() and not (request.out / "model.engine").exists()


def test_out_of_memory_says_what_helps(machine, request_for, monkeypatch):
    loggers = []
    make = api.make_logger
    monkeypatch.setattr(api, "make_logger", lambda *a: loggers.append(make(*a)) or loggers[-1])

    def fail(*_):
        loggers[-1].log(machine.ILogger.ERROR, "Requested size was 4294967296 bytes: out of memory.")

    machine.script["Builder.build_serialized_network"] = fail
    with pytest.raises(VitedgeError, match=r"ran out of memory.*swapfile"):
        TARGET.build(request_for())
    machine.script["Builder.build_serialized_network"] = lambda *_: None
    with pytest.raises(VitedgeError, match="could not build the engine"):
        TARGET.build(request_for())


def test_progress_and_control_c(machine, request_for, monkeypatch):
    monitors = []
    make = api.make_monitor
    monkeypatch.setattr(api, "make_monitor", lambda *a: monitors.append(make(*a)) or monitors[-1])

    def press(phase, step, of):
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(build, "_progress", lambda: press)

    def steps(*_):
        monitor = monitors[-1]
        monitor.phase_start("Building", None, 3)
        assert monitor.step_complete("Building", 0) is True
        assert monitor.step_complete("Building", 1) is False

    machine.script["Builder.build_serialized_network"] = steps
    with pytest.raises(KeyboardInterrupt):
        TARGET.build(request_for())
    assert called(machine, "IBuilderConfig.progress_monitor=")


def test_an_unfused_attention_is_told(machine, request_for):
    machine.script["EngineInspector.get_engine_information"] = lambda *_: json.dumps({"Layers": [{"Name": "a"}]})
    result = TARGET.build(request_for())
    assert any("Only 0 of 2 attention blocks were fused" in line for line in result.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_batch": "1:4:8"}, "its graph has a batch of 1"),
        ({"dla": 0}, "no DLA core 0"),
        ({"precision": "fp32", "dla": 0}, "FP16 and INT8 only"),
        ({"pixels": False}, "needs calibration images"),
        ({"batch": None, "dynamic_batch": "8:4:1"}, "is not understood"),
    ],
)
def test_refusals(machine, request_for, options, message):
    with pytest.raises(VitedgeError, match=message):
        TARGET.build(request_for(**options))


def test_hardware_compatible_is_refused_on_a_jetson(machine, request_for, monkeypatch):
    monkeypatch.setattr(build, "machine_facts", lambda _: {"tensorrt": "10.3.0", "l4t": "36.4.3"})
    with pytest.raises(VitedgeError, match="not for Jetsons"):
        TARGET.build(request_for(hardware_compatible=True))


def test_a_graph_with_a_foreign_operator_is_refused(machine, request_for):
    request = request_for()
    model = tiny()
    model.graph.node[5].domain = "com.microsoft"
    onnx.save(model, str(request.onnx))
    problems = TARGET.check(request.onnx, "fp16", None)
    assert [(p.node, p.op) for p in problems] == [(model.graph.node[5].name, model.graph.node[5].op_type)]
    assert "ONNX Runtime's own" in problems[0].reason


def test_profiles():
    assert parse_profiles(None) == [Profile(1, 1, 8)]
    assert parse_profiles("1:4:16") == [Profile(1, 4, 16)]
    assert parse_profiles("8,1,8") == [Profile(1, 1, 1), Profile(8, 8, 8)]
    for wrong in ("", "0", "4:1:8", "a", "1:2", "-1", "0,1"):
        with pytest.raises(VitedgeError, match="is not understood"):
            parse_profiles(wrong)


def test_no_tensorrt_and_an_old_one(monkeypatch, trt):
    import sys

    trt.__version__ = "8.5.2.2"
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    probe = TARGET.probe()
    assert not probe.can_build and "JetPack 5" in probe.reason and "JetPack 6" in probe.fix
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    probe = TARGET.probe()
    assert not probe.can_build and not probe.can_run
    assert "not available" in probe.reason and "Jetson" in probe.fix and "pip install tensorrt" in probe.fix


def test_no_gpu(trt, device):
    ctypes.c_int.in_dll(device, "device_count").value = 0
    probe = TARGET.probe()
    assert not probe.can_build and "No NVIDIA GPU" in probe.reason
    assert probe.versions["tensorrt"] == trt.__version__


def test_a_machine_with_all_of_it(trt, device):
    probe = TARGET.probe()
    assert probe.can_build and probe.can_run and probe.device == "gpu"
    assert probe.versions["compute_capability"] == "8.7"


TRTEXEC = """#!/bin/sh
case "$1" in --help) echo "[TensorRT v100300]"; exit 0;; esac
for a in "$@"; do
  case $a in
    --saveEngine=*) printf plan > "${a#*=}";;
    --exportLayerInfo=*) echo '{"Layers": [{"Name": "_gemm_mha_v2_1"}, {"Name": "_gemm_mha_v2_9"}]}' > "${a#*=}";;
    --exportOutput=*) cp "$(dirname "$0")/logits.json" "${a#*=}";;
  esac
done
"""


@pytest.fixture
def only_trtexec(tmp_path, monkeypatch):
    """A board with trtexec and no Python module; its engine gives the logits of `logits.json`."""
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    tool = tmp_path / "trtexec"
    tool.write_text(TRTEXEC)
    tool.chmod(0o755)
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: str(tool))

    def give(logits: np.ndarray) -> None:
        entry = {"name": "logits", "dimensions": "1x10", "values": logits.ravel().tolist()}
        (tmp_path / "logits.json").write_text(json.dumps([entry]))

    return give


def test_a_board_with_trtexec_alone(only_trtexec, request_for, device):
    from dataclasses import replace

    reference = np.arange(40, dtype=np.float32).reshape(4, 10)
    probe = TARGET.probe()
    assert probe.can_build and not probe.can_run and probe.versions["trtexec"] == "10.3.0"
    request = replace(request_for(opt_level=3), reference_logits=reference)
    only_trtexec(reference[:1] + 0.01)
    result = TARGET.build(request)
    assert result.metadata["machine"]["tensorrt"] == "10.3.0"
    assert result.metadata["machine"]["compute_capability"] == "8.7"
    assert "--stronglyTyped" in result.metadata["built_by"]
    assert result.metadata["engine"]["attention_fused"] == "2/2"
    assert result.metadata["trtexec_check"]["sqnr_db"] > 40
    # A miscompiled engine is refused.
    only_trtexec(-reference[:1])
    with pytest.raises(VitedgeError, match=r"does not compute what the model computes.*4723"):
        TARGET.build(request)


def test_print_trtexec(request_for):
    request = request_for(batch=None, dynamic_batch="1:4:8", opt_level=3, print_trtexec=True)
    line = TARGET.preview(lambda: request, request.options)
    assert line.startswith("trtexec ") and f"--onnx={request.out / 'model.onnx'}" in line
    assert "--optShapes=pixels:4x32x32x3" in line and "--builderOptimizationLevel=3" in line
    assert (request.out / "model.onnx").is_file()
    assert TARGET.preview(lambda: pytest.fail("not asked for"), TensorRTOptions()) is None
