"""The parts that need no TensorRT: layer information, what an engine is bound to, trtexec, CUDA's real
library.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from vitedge.errors import VitedgeError
from vitedge.targets.tensorrt import cuda, trtexec
from vitedge.targets.tensorrt.api import version_tuple
from vitedge.targets.tensorrt.facts import read_plan, refuse_misfit
from vitedge.targets.tensorrt.layers import engine_layers, layer_type, onnx_nodes, summarize
from vitedge.targets.tensorrt.network import EngineSpec
from vitedge.targets.tensorrt.options import Profile

bindings = sys.modules["tensorrt_test_bindings"]  # loaded by conftest.py
# As TensorRT 10.10 prints them (NVIDIA/TensorRT issue 4397), with our names.
LAYERS = [
    {
        "Name": "block0.attention.q+block0.attention.k_myl0_16",
        "LayerType": "gemm",
        "Outputs": [{"Name": "__mye56053", "Dimensions": [3, 40, 256], "Format/Datatype": "Half"}],
        "TacticName": "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64",
        "Metadata": "[ONNX Layer: block0.attention.q.matmul][ONNX Layer: block0.attention.k.matmul]",
    },
    {
        "Name": "_gemm_mha_v2_myl0_17",
        "LayerType": "kgen",
        "Outputs": [{"Name": "__mye54417", "Dimensions": [4, 40, 64], "Format/Datatype": "Half"}],
        "TacticName": "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a",
        "Metadata": "[ONNX Layer: block0.attention.scores][ONNX Layer: block0.attention.probs]",
    },
    {
        "Name": "__myl_MeaSubMul_myl0_18",
        "LayerType": "kgen",
        "Outputs": [{"Name": "x", "Dimensions": [1, 40, 256], "Format/Datatype": "Float"}],
        "Metadata": "[ONNX Layer: block0.norm2][ONNX Layer: block1.attention.probs]",
    },
]
SOFTMAXES = ["block0.attention.probs", "block1.attention.probs"]


def test_layers_as_tensorrt_prints_them():
    layers = engine_layers(json.dumps({"Layers": LAYERS, "Bindings": ["pixels", "logits"]}))
    assert onnx_nodes(layers[1]) == ["block0.attention.scores", "block0.attention.probs"]
    assert [layer_type(layer) for layer in layers] == ["fp16", "fp16", "fp32"]
    summary = summarize(layers, SOFTMAXES)
    # A softmax inside an ordinary kernel is not a fused attention.
    assert summary["attention_fused"] == "1/2" and summary["attention_unfused"] == [SOFTMAXES[1]]
    assert summary["types"] == {"fp16": 2, "fp32": 1}
    assert summary["float32_layers"] == ["__myl_MeaSubMul_myl0_18"]


def test_layers_without_onnx_names_are_counted():
    layers = [{"Name": f"_gemm_mha_v2_myl0_{i}"} for i in range(3)]
    assert summarize(layers, SOFTMAXES)["attention_fused"] == "2/2"
    assert summarize([], SOFTMAXES)["attention_fused"] == "0/2"


def test_layers_in_other_forms():
    assert engine_layers('{"Layers": ["conv1", "fc"]}') == [{"Name": "conv1"}, {"Name": "fc"}]
    assert engine_layers("not json") == [] and engine_layers("[1]") == []


MACHINE = {"tensorrt": "10.3.0", "gpu": "Orin", "compute_capability": "8.7"}


@pytest.mark.parametrize(
    ("made", "flags", "reason"),
    [
        ({}, {}, None),
        ({"tensorrt": "10.13.3.9"}, {}, "built with TensorRT 10.13.3.9, here is 10.3.0"),
        ({"tensorrt": "10.0.1"}, {"version_compatible": True}, None),
        ({"tensorrt": "10.13.3"}, {"version_compatible": True}, "here is the older 10.3.0"),
        ({"compute_capability": "8.6", "gpu": "RTX 3060"}, {}, "compute capability 8.6, here is 8.7"),
        ({"gpu": "NVIDIA Thor"}, {}, "GPU NVIDIA Thor, here is Orin"),
        ({"compute_capability": "8.6", "gpu": "RTX 3060"}, {"hardware_compatible": True}, None),
    ],
)
def test_an_engine_built_elsewhere(made, flags, reason):
    metadata = {"machine": MACHINE | made, **flags}
    if reason is None:
        refuse_misfit(metadata, MACHINE)
        return
    with pytest.raises(VitedgeError, match="does not fit this machine") as caught:
        refuse_misfit(metadata, MACHINE)
    assert reason in caught.value.why and "vitedge build --target tensorrt" in caught.value.todo


def test_what_is_not_known_is_no_misfit():
    """trtexec alone tells no GPU."""
    refuse_misfit({"machine": {"tensorrt": "10.3.0"}}, MACHINE)


def test_an_engine_that_is_not_whole(tmp_path):
    path = tmp_path / "model.engine"
    good = {"engine_bytes": 4, "engine_sha256": hashlib.sha256(b"plan").hexdigest()}
    path.write_bytes(b"plan")
    assert read_plan(path, good) == b"plan"
    path.write_bytes(b"pla")
    with pytest.raises(VitedgeError, match="truncated"):
        read_plan(path, good)
    path.write_bytes(b"plam")
    with pytest.raises(VitedgeError, match="damaged"):
        read_plan(path, good)
    with pytest.raises(VitedgeError, match="can't be read"):
        read_plan(tmp_path / "none", good)


SPEC = EngineSpec(Path("m.onnx"), (Profile(1, 4, 8),), True, 512, 4, True, True, 1)


def test_the_trtexec_command():
    line = trtexec.command(SPEC, Path("m.engine"), (224, 224, 3), timing_cache=Path("t.cache"))
    assert line == [
        "trtexec",
        "--onnx=m.onnx",
        "--saveEngine=m.engine",
        "--skipInference",
        "--stronglyTyped",
        "--profilingVerbosity=detailed",
        "--minShapes=pixels:1x224x224x3",
        "--optShapes=pixels:4x224x224x3",
        "--maxShapes=pixels:8x224x224x3",
        "--memPoolSize=workspace:512",
        "--builderOptimizationLevel=4",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
        "--useDLACore=1",
        "--allowGPUFallback",
        "--timingCacheFile=t.cache",
    ]


def test_trtexec_11_has_no_flag_for_types_and_fp32_no_tf32():
    line = trtexec.command(EngineSpec(Path("m.onnx"), tf32=False), Path("m"), (4, 4, 3), version=(11, 4))
    assert "--stronglyTyped" not in line and "--noTF32" in line
    assert not any("Shapes" in part for part in line)


def test_sparse_weights_are_named():
    from vitedge.prune.zeros import has_two_of_four

    dense = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    sparse = dense.copy()
    sparse[::2] = 0
    for weight, found in ((dense, False), (sparse, True)):
        graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(weight, "a.weight")])
        assert has_two_of_four(onnx.helper.make_model(graph)) == found
        line = trtexec.command(EngineSpec(Path("m.onnx"), sparse=found), Path("m"), (4, 4, 3))
        assert ("--sparsity=enable" in line) == found


def test_several_profiles_are_numbered():
    spec = EngineSpec(Path("m.onnx"), (Profile(1, 1, 1), Profile(8, 8, 8)))
    line = trtexec.command(spec, Path("m"), (4, 4, 3))
    assert line.index("--profile=0") < line.index("--minShapes=pixels:1x4x4x3") < line.index("--profile=1")


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_trtexec_as_a_process(tmp_path):
    tool = script(tmp_path / "a", 'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help"')
    assert trtexec.trtexec_version(tool) == "10.3.0"
    old = script(tmp_path / "b", 'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec"')
    assert trtexec.trtexec_version(old) == "8.5.2"
    new = script(tmp_path / "c", 'echo "&&&& RUNNING TensorRT.trtexec [TensorRT v110400] [b106] # trtexec"')
    assert trtexec.trtexec_version(new) == "11.4.0"
    assert trtexec.trtexec_version(script(tmp_path / "d", "exit 0")) is None
    assert trtexec.trtexec_version(str(tmp_path / "none")) is None


def test_trtexec_that_fails_or_is_killed(tmp_path):
    log = tmp_path / "build.log"
    tool = script(tmp_path / "fail", 'echo "[I] fine"; echo "[E] Error[4]: no tactic for node"; exit 1')
    with pytest.raises(VitedgeError, match="no tactic for node"):
        trtexec.build([tool], log)
    tool = script(tmp_path / "killed", "kill -9 $$")
    with pytest.raises(VitedgeError, match=r"signal 9.*out of memory"):
        trtexec.build([tool], log)
    with pytest.raises(VitedgeError, match="could not be run"):
        trtexec.build([str(tmp_path / "none")], log)


def test_logits_through_trtexec(tmp_path):
    """`--exportOutput` writes names, dimensions and values."""
    tool = script(
        tmp_path / "run",
        'for a in "$@"; do case $a in --exportOutput=*) f=${a#*=};; esac; done\n'
        'echo \'[{"name": "logits", "dimensions": "2x3", "values": [1, 2, 3, 4, 5, 6.5]}]\' > "$f"',
    )
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    logits = trtexec.infer(tool, tmp_path / "m.engine", pixels, tmp_path, dynamic=True)
    assert logits.tolist() == [[1, 2, 3], [4, 5, 6.5]] and logits.dtype == np.float32
    assert (tmp_path / "pixels.bin").stat().st_size == 2 * 4 * 4 * 3


def test_versions():
    assert version_tuple("10.3.0") == (10, 3) and version_tuple("11.4.0.106") == (11, 4)
    assert version_tuple("10") == (10, 0) and version_tuple("8.5.2.2") < (10, 3)


@pytest.fixture(scope="module")
def real_cudart() -> Path:
    """NVIDIA's own libcudart from its package: 900 kB, and it loads without a driver."""
    folder = bindings.cache_folder() / "cudart"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            wheels = folder.with_name("cudart-wheel")
            with zipfile.ZipFile(bindings.download("nvidia-cuda-runtime-cu12==12.6.77", wheels)) as wheel:
                wheel.extractall(folder)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            if os.environ.get("VITEDGE_REQUIRE_BINDINGS"):
                raise
            pytest.skip(f"no CUDA runtime: {error}")
    return next(folder.rglob("libcudart.so.12"))


def test_cudas_real_library_has_every_function(real_cudart):
    library = cuda.Cuda(ctypes.CDLL(str(real_cudart)))
    assert library.integer("cudaRuntimeGetVersion") == 12060


def test_no_driver(real_cudart, monkeypatch):
    """Read from CUDA itself on a machine without a GPU; with one, the library loads."""
    monkeypatch.setattr(cuda, "candidates", lambda: iter([str(real_cudart)]))
    cuda.load.cache_clear()
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(VitedgeError, match="No NVIDIA GPU can be used") as caught:
        cuda.load()
    assert "cudaGetDeviceCount" in caught.value.why
    monkeypatch.setattr(cuda, "candidates", lambda: iter(["libnothing.so"]))
    with pytest.raises(VitedgeError, match="libcudart, version 12 or newer"):
        cuda.load()
    cuda.load.cache_clear()


def test_the_stand_in_is_held_to_the_same_functions(cudart):
    for name in cuda._SIGNATURES:
        assert getattr(cudart, name)


def test_importing_the_target_imports_no_vendor_library_nor_torch():
    code = (
        "import sys; from vitedge.targets import get; import vitedge.targets.tensorrt.runner; "
        "get('tensorrt').Options(); "
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
