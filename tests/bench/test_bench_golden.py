"""What can go wrong on a board, put into an artifact on purpose: each is found, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench_run import QUICK, vitedge
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter, ValidationError

import vitedge as api
from vitedge.bench.golden import judge
from vitedge.bench.golden.check import check_golden
from vitedge.bench.golden.judge import Judgement
from vitedge.bench.jobs import Settings
from vitedge.bench.pack_index import PackIndex
from vitedge.bench.unpack import pack_jobs, unpack
from vitedge.reporter import Reporter

FP32 = "onnxruntime-fp32"


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_folder, shapes_folder) -> Path:
    """A pack of a two-block ViT, with the artifacts that have their blocks' outputs."""
    folder = tmp_path_factory.mktemp("golden")
    run = api.compress(tiny_folder, calib=shapes_folder, run=folder / "run", quantize="static")
    for precision in ("fp32", "int8"):
        # As exported: the value names of attention stay.
        run.build("onnxruntime", precision=precision, attention="parts", mlp_groups="apart", block_outputs=True)
    run.pack(folder / "pack.tar", data=shapes_folder)
    return folder / "pack.tar"


def checked(pack: Path, into: Path, spoil: Callable[[onnx.ModelProto], None] | None = None) -> dict[str, Judgement]:
    """The pack's golden references, after both files of the FP32 artifact were changed."""
    folder, index = unpack(pack, into)
    for file in ("model.onnx", "blocks/model.onnx") if spoil else ():
        path = folder / "artifacts" / FP32 / file
        model = onnx.load(path)
        spoil(model)
        onnx.save(model, path)
    jobs = pack_jobs(folder, index)
    return check_golden(folder, index, jobs if spoil is None else jobs[:1], Settings(), Reporter())


def after(model: onnx.ModelProto, value: str, op: str, *constants: np.ndarray, **attributes) -> None:
    """Puts an operator behind a value: its readers, and the graph's output of that name, get the result."""
    graph = model.graph
    at = next(number for number, node in enumerate(graph.node) if value in node.output)
    made = graph.node[at]
    made.output[list(made.output).index(value)] = f"{value}.right"
    names = []
    for number, constant in enumerate(constants):
        names.append(f"{value}.fault{number}")
        graph.initializer.append(numpy_helper.from_array(constant, names[-1]))
    graph.node.insert(at + 1, helper.make_node(op, [f"{value}.right", *names], [value], **attributes))


def before_input(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: np.ndarray) -> None:
    """Puts operators between the pixels and what reads them: they read "pixels" and make "pixels.wrong"."""
    for node in model.graph.node:
        node.input[:] = ["pixels.wrong" if name == "pixels" else name for name in node.input]
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for number, node in enumerate(nodes):
        model.graph.node.insert(number, node)


def zeros(model: onnx.ModelProto) -> None:
    after(model, "block1.attention.context", "Mul", np.float32(0))


def not_a_number(model: onnx.ModelProto) -> None:
    after(model, "block1.residual2", "Add", np.float32("nan"))


def saturated(model: onnx.ModelProto) -> None:
    after(model, "block0.residual2", "Clip", np.float32(-1.5), np.float32(1.5))


def swapped(model: onnx.ModelProto) -> None:
    order = helper.make_node("Gather", ["pixels", "bgr"], ["pixels.wrong"], axis=3)
    before_input(model, order, bgr=np.array([2, 1, 0]))


def planes(model: onnx.ModelProto) -> None:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    nodes = [
        helper.make_node("Reshape", ["pixels", "planes"], ["pixels.planes"]),
        helper.make_node("Transpose", ["pixels.planes"], ["pixels.wrong"], perm=[0, 2, 3, 1]),
    ]
    before_input(model, *nodes, planes=np.array([shape[0], shape[3], *shape[1:3]]))


def twice(model: onnx.ModelProto) -> None:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["pixels.real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels.real", "fault.half"], ["pixels.scaled"]),
        helper.make_node("Sub", ["pixels.scaled", "fault.one"], ["pixels.wrong"]),
    ]
    # ((x / 255) - 0.5) / 0.5, the preprocessing of this model.
    before_input(model, *nodes, **{"fault.half": np.float32(127.5), "fault.one": np.float32(1)})


def other_weights(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(3)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), tensor.name))


def test_artifacts_that_compute_right_are_equal(packed: Path, tmp_path: Path) -> None:
    found = checked(packed, tmp_path / "out")
    assert set(found) == {FP32, "onnxruntime-int8"}
    assert {one.verdict for one in found.values()} == {"equal"}
    assert all(one.agreement is not None and not one.cause for one in found.values())
    assert found["onnxruntime-int8"].own_sqnr_db == found["onnxruntime-int8"].sqnr_db > 10


@pytest.mark.parametrize(
    ("spoil", "cause", "where"),
    [
        (zeros, "zeros", "block 1, attention"),
        (not_a_number, "not_finite", "block 1, MLP"),
        (saturated, "saturated", "block 0, MLP"),
        (swapped, "channels_swapped", ""),
        (twice, "normalised_twice", ""),
        (planes, "layout", ""),
        (other_weights, "another_model", "patch embedding"),
    ],
)
def test_each_fault_is_found_and_named(packed: Path, tmp_path: Path, spoil, cause: str, where: str) -> None:
    found = checked(packed, tmp_path / "out", spoil)[FP32]
    assert (found.verdict, found.cause, found.where) == ("wrong", cause, where), found
    assert found.advice and judge.CAUSES[cause][0] in found.words


def test_an_old_runtime_is_named(packed: Path, tmp_path: Path) -> None:
    """An artifact of a newer ONNX Runtime: it does not load, or computes otherwise."""
    folder, index = unpack(packed, tmp_path / "out")
    metadata = folder / "artifacts" / FP32 / "metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"onnxruntime": "99.1.0"}))

    def newer(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    for spoil in (other_weights, newer):
        path = folder / "artifacts" / FP32 / "model.onnx"
        model = onnx.load(path)
        spoil(model)
        onnx.save(model, path)
        found = check_golden(folder, index, pack_jobs(folder, index)[:1], Settings(), Reporter())[FP32]
        assert found.cause == "old_runtime" and "99.1.0" in found.words and "older" in found.words, found


def test_the_commands_tell_it(packed: Path, tmp_path: Path) -> None:
    done = vitedge("doctor", "--pack", packed, "--json", cwd=tmp_path)
    assert {one["verdict"] for one in json.loads(done.stdout)["golden"].values()} == {"equal"}
    done = vitedge("bench", packed, *QUICK, "--only", "fp32", "--json", tmp_path / "r.json", cwd=tmp_path)
    assert "Golden references" in done.stdout and "as where it was built" in done.stdout
    row = json.loads((tmp_path / "r.json").read_text())["rows"][1]
    assert row["golden"]["verdict"] == "equal" and row["status"] == "ok"


def test_references_that_do_not_fit_their_pack_are_refused(packed: Path, tmp_path: Path) -> None:
    _, found = unpack(packed, tmp_path / "out")
    index = found.model_dump(by_alias=True)
    validate = TypeAdapter(PackIndex).validate_python
    validate(index)
    outside = index | {"golden": index["golden"] | {"positions": [40]}}
    with pytest.raises(ValidationError, match="not among its images"):
        validate(outside)
    files = {name: one for name, one in index["files"].items() if name != "golden/float32/logits.npy"}
    with pytest.raises(ValidationError, match=r"golden/float32/logits.npy is missing"):
        validate(index | {"files": files})
    artifacts = index["golden"]["artifacts"]
    leaves = artifacts | {FP32: artifacts[FP32] | {"blocks": "../../../model.onnx"}}
    with pytest.raises(ValidationError, match="no plain relative path"):
        validate(index | {"golden": index["golden"] | {"artifacts": leaves}})


def test_blocks_are_asked_of_targets_that_have_them(packed: Path) -> None:
    run = api.open(packed.parent / "run")
    with pytest.raises(api.VitedgeError, match="no artifacts with block outputs"):
        run.build("tensorrt", block_outputs=True)


REFERENCE = np.random.default_rng(0).normal(0, 1, (4, 50)).astype(np.float32)


def noisy(db: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, REFERENCE.shape) * 10 ** (-db / 20)
    return (REFERENCE + noise).astype(np.float32)


def test_noise_may_be_another_one_but_hardly_larger() -> None:
    own = noisy(17)
    assert judge.judge_logits(REFERENCE, own, "int8", own=own).verdict == "equal"
    assert judge.judge_logits(REFERENCE, noisy(17, 2), "int8", own=own).verdict == "near"
    assert judge.judge_logits(REFERENCE, noisy(10, 2), "int8", own=own).verdict == "wrong"
    # Without the artifact's own logits a precision has to be near enough.
    assert judge.judge_logits(REFERENCE, noisy(10, 2), "int8").verdict == "near"
    assert judge.judge_logits(REFERENCE, noisy(10, 2), "fp16").verdict == "wrong"


def test_logits_that_are_all_alike_or_none() -> None:
    same = np.repeat(REFERENCE[:1], 4, axis=0)
    assert judge.judge_logits(REFERENCE, same, "fp32").cause == "nothing"
    assert judge.judge_logits(REFERENCE, np.zeros_like(REFERENCE), "fp32").detail == "all zeros"
    assert judge.judge_logits(REFERENCE, REFERENCE[:, :10], "fp32").cause == "another_model"
    assert judge.judge_logits(REFERENCE, REFERENCE * np.float32("inf"), "fp32").cause == "not_finite"
    assert judge.judge_logits(REFERENCE, REFERENCE * 2, "fp32").cause == "unknown"


def test_a_fault_between_blocks_is_told_with_its_figures() -> None:
    taps = ["embed", "block0.residual1", "block0.residual2"]
    values = {tap: np.random.default_rng(n).normal(0, 1, (2, 5, 8)).astype(np.float32) for n, tap in enumerate(taps)}
    limits = dict.fromkeys(taps, 30.0)
    assert judge.first_bad(taps, values, values, limits) is None
    bad = judge.first_bad(taps, values, values | {"block0.residual2": values["block0.residual2"] * 1.2}, limits)
    assert bad is not None and bad[:2] == ("block0.residual2", "unknown") and "SQNR 14.0 dB" in bad[2]
