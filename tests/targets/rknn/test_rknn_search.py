"""The pure parts: tensor names, the search, the layer table, the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vitedge.targets.base import CostRow
from vitedge.targets.rknn import cost
from vitedge.targets.rknn.dataset import split, write_dataset
from vitedge.targets.rknn.harm import expected_drop, noise_power
from vitedge.targets.rknn.rounding import noise_of_parts, rounded
from vitedge.targets.rknn.search import CHEAP, Trial, rank, search
from vitedge.targets.rknn.tensors import by_part, cycles_of_parts, part_of

# Lines of a log of rknn-toolkit2 2.5.0.
LOG = """
D RKNN: [23:08:00.696]      Network Layer Information Table
D RKNN: [23:08:00.696] --------------------------------------------------------------------
D RKNN: [23:08:00.696] ID   OpType             DataType Target InputShape  OutputShape  Cycles(DDR/NPU/Total)    RW(KB)
D RKNN: [23:08:00.696] --------------------------------------------------------------------
D RKNN: [23:08:00.696] 1    InputOperator      INT8     CPU    \\      (1,3,224,224)          \
0/0/0      0            InputOperator:pixels
D RKNN: [23:08:00.696] 2    Conv               INT8     NPU (1,3,224,224),(48,3,4,4),(48)  (1,48,56,56)           \
12847/100352/100352      149          Conv:patch_embed.space_to_depth0
D RKNN: [23:08:00.696] 3    exNorm             FLOAT16  NPU (1,192,1,197),(1,192,1,1),...  (1,192,1,197)   \
0/0/0      37           exNorm:block0.norm1#1
D RKNN: [23:08:00.696] 4    Reshape            INT8     CPU (1,1000,1,1),(2)   (1,1000)               \
0/0/0      1            Reshape:head.matmul_rs
D RKNN: [23:08:00.696] --------------------------------------------------------------------
D RKNN: [23:08:00.696] <<<<<<<< end: rknn::RKNNModelRegCmdbuildPass
D RKNN: [23:08:00.725] Total Internal Memory Size: 1078.19KB
D RKNN: [23:08:00.725] Total Weight Memory Size: 6143.69KB
"""


def test_the_layer_table_becomes_a_cost_table() -> None:
    table = cost.parse_layers(LOG)
    assert table is not None
    assert [(r.op, r.dtype, r.device, r.cycles, r.kib) for r in table.rows] == [
        ("InputOperator", "int8", "cpu", None, 0.0),
        ("Conv", "int8", "npu", 100352, 149.0),
        ("exNorm", "float16", "npu", None, 37.0),
        ("Reshape", "int8", "cpu", None, 1.0),
    ]
    assert table.total_cycles == 100352
    assert "exNorm" in table.not_modelled and "InputOperator" not in table.not_modelled
    assert cost.cpu_fallbacks(table) == ["Reshape Reshape:head.matmul_rs"]
    assert cost.from_json(cost.to_json(table)) == table
    assert cost.parse_memory(LOG) == {"weight_kib": 6143.69, "internal_kib": 1078.19}


def test_the_last_table_counts_and_none_is_none() -> None:
    second = LOG.replace("100352/100352", "7/7")
    table = cost.parse_layers(LOG + second)
    assert table is not None and table.total_cycles == 7
    assert cost.parse_layers("D RKNN: nothing") is None


def test_the_compilers_names_are_told_apart_by_part() -> None:
    # As rknn-toolkit2 2.5.0 names them.
    names = {
        "patch_embed": "patch",
        "patch_embed.flat_sw": "patch",
        "patches.positioned_sw-rs": "stream",
        "patches_sw_rs": "stream",
        "block0.norm1#1": "norm",
        "block11.norm1.cls-rs": "norm",
        "block11.cls-rs": "stream",
        "block0.attention.q.heads_tp_rs": "block0.attention",
        "block0.attention.context.heads_2sdpa_q_softmax": "block0.attention",
        "block10.attention.out.matmul_mm_tp_sw": "block10.attention",
        "block0.residual1-rs": "stream",
        "block4.merged_tp-rs": "stream",
        "pre_norm#1": "norm",
        "pool.attention.k_tp": "head",
        "block7.mlp.gelu.0_tp-rs": "block7.mlp",
        "norm#1": "norm",
        "head.matmul": "head",
        "logits": "head",
        "pixels": None,
        "patch_embed.space_to_depth0": None,
    }
    assert {name: part_of(name) for name in names} == names
    parts = by_part(["block0.norm1#1", "block0.norm1.scale", "logits", "logits_int8"], ["block0.norm1.scale"])
    assert parts == {"norm": ["block0.norm1#1"], "head": ["logits"]}


class Model:
    """Each part in INT8 adds its noise; what is lost grows with it."""

    def __init__(self, noise: dict[str, float]) -> None:
        self.noise = noise
        self.builds = 0
        self.spread = np.linspace(0.5, 1.5, 16)

    def __call__(self, parts: Sequence[str]) -> Trial:
        self.builds += 1
        left = sum(v for k, v in self.noise.items() if k not in parts) + 1e-6
        cycles = 100 + sum(10 for p in parts if p not in CHEAP)
        power = tuple(left * self.spread)
        return Trial(tuple(parts), cycles, 1 - left, -10 * np.log10(left), 100 * left, 0.0, power)

    def rank(self, parts: Sequence[str]) -> list[str]:
        return rank({part: self.noise[part] * self.spread for part in parts}, dict.fromkeys(parts, 10))


def noises(**blocks: float) -> dict[str, float]:
    return {"stream": 0.3, "norm": 0.02, "patch": 0.01, "head": 0.01} | blocks


def test_all_int8_is_taken_where_it_is_good_enough() -> None:
    model = Model({"stream": 0.01, "block0.mlp": 0.01})
    assert search(model, model.noise, 5.0, model.rank)[-1].parts == ()
    assert model.builds == 1


def test_the_cheap_parts_are_enough_without_a_bad_block() -> None:
    model = Model(noises(b=0.0))
    assert set(search(model, model.noise, 5.0, model.rank)[-1].parts) == set(CHEAP)


def test_the_worst_blocks_are_taken_and_no_more_than_needed() -> None:
    blocks = {f"block{i}.mlp": 0.002 for i in range(12)} | {"block7.mlp": 0.2, "block3.mlp": 0.05, "block5.mlp": 0.04}
    model = Model(noises(**blocks))
    best = search(model, model.noise, 5.0, model.rank)[-1]
    assert best.lost <= 5.0
    assert {p for p in best.parts if p.startswith("block")} == {"block7.mlp", "block3.mlp", "block5.mlp"}


def test_a_part_that_turns_out_not_to_be_needed_is_int8_again() -> None:
    # "patch" is ranked first, for its noise has few cycles in INT8; the second part would have been enough.
    model = Model({"stream": 0.3, "patch": 0.02, "block7.mlp": 0.2, "block3.mlp": 0.01})
    ranked = ["patch", "block7.mlp", "block3.mlp"]
    trials = search(model, model.noise, 5.0, lambda parts: [p for p in ranked if p in parts])
    assert trials[-1].parts == ("stream", "block7.mlp") and trials[-1].lost <= 5.0
    # One that is needed stays.
    trials = search(model, model.noise, 2.0, lambda parts: [p for p in ranked if p in parts])
    assert trials[-1].parts == ("stream", "patch", "block7.mlp")


def test_where_nothing_is_enough_the_best_is_taken() -> None:
    model = Model(noises(**{"block0.mlp": 0.1}) | {"other": 0.5})
    best = search(model, [k for k in model.noise if k != "other"], 1.0, model.rank)[-1]
    assert "block0.mlp" in best.parts and best.lost > 1.0


def test_parts_are_ranked_by_noise_a_cycle_and_those_within_its_error_are_left_out() -> None:
    sure, one_image = np.full(16, 0.02), np.zeros(16)
    one_image[3] = 0.5
    noise = {"block0.mlp": sure, "block1.mlp": 3 * sure, "block2.mlp": 2 * sure, "block3.mlp": one_image}
    cycles = {"block0.mlp": 10, "block1.mlp": 60, "block2.mlp": 10}
    assert rank(noise, cycles) == ["block2.mlp", "block0.mlp", "block1.mlp"]


def test_the_noise_of_a_part_is_that_of_its_own_values_rounded(tmp_path: Path) -> None:
    """Against NumPy, on a graph of two products; the names are the compiler's."""
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(12, n)).astype(np.float32) for n in (12, 5))
    first[0, 0] = 40  # one channel whose range the others share
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["block0.mlp.fc1"]),
        helper.make_node("MatMul", ["block0.mlp.fc1", "w2"], ["block1.mlp.fc2"]),
    ]
    constants = {"w1": first, "w2": second, "shape": np.array([1, 12], np.int64)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 2, 2, 3])],
        [helper.make_tensor_value_info("block1.mlp.fc2", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    pixels = rng.integers(0, 256, (20, 2, 2, 3), dtype=np.uint8)
    parts = {"block0.mlp": ["block0.mlp.fc1_mm_tp-rs"], "none": ["pixels_sw"]}
    found = noise_of_parts(tmp_path / "g.onnx", parts, pixels[8:], pixels[:8])
    assert np.all(found["none"] == 0)

    def hidden(images: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 12).astype(np.float32) @ weight

    scale = np.abs(first).max(0) / 127
    ranged = hidden(pixels[:8], first)
    low, high = min(ranged.min(), 0.0), max(ranged.max(), 0.0)
    step = (high - low) / 255
    levels = np.clip(np.round(hidden(pixels[8:], np.round(first / scale) * scale) / step), round(low / step), None)
    rounded = np.minimum(levels, round(low / step) + 255) * step
    reference = hidden(pixels[8:], first) @ second
    np.testing.assert_allclose(found["block0.mlp"], noise_power(reference, rounded @ second), rtol=0.02)


def test_a_value_is_rounded_beside_others_whose_names_begin_like_its_own() -> None:
    """The activations of a part have values inside, such as `block0.mlp.gelu.scaled`."""
    names = ["block0.mlp.gelu" + end for end in (".exact", ".scaled", ".whole", ".clipped", "/exact", "/scaled", "")]
    x = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 2, 2])
    chain = zip(["pixels", *names], names, strict=False)
    nodes = [helper.make_node("Neg", [value], [result], name=result) for value, result in chain]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 2, 2]) for name in names]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    graph = rounded(model, names, dict.fromkeys(names, (-255.0, 0.0)))
    made = [name for node in graph.graph.node for name in node.output]
    assert len(made) == len(set(made)) == 5 * len(names)
    onnx.checker.check_model(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixels": np.full((1, 3, 2, 2), 7.4, np.float32)})
    assert [values.flat[0] for values in found] == [-7, 0, 0, 0, 0, 0, 0], "0 is the greatest level"


def test_cycles_are_counted_by_part() -> None:
    rows = [
        CostRow("Conv:block3.mlp.gelu", "ConvExGelu", "int8", "npu", 70, 1.0),
        CostRow("Conv:block3.mlp.fc2_mm", "ConvAdd", "int8", "npu", 30, 1.0),
        CostRow("exNorm:block3.norm2#1", "exNorm", "float16", "npu", None, 1.0),
        CostRow("InputOperator:pixels", "InputOperator", "int8", "cpu", None, 0.0),
    ]
    assert cycles_of_parts(cost.make_table(rows)) == {"block3.mlp": 100, "norm": 0}


def test_the_limit_is_kept_by_the_loss_and_its_error() -> None:
    trial = Trial((), 1, 1.0, 20.0, 0.8, 0.1)
    assert trial.keeps(1.0) and not trial.keeps(0.85)


def logits_and_noise(sigma: float, seed: int, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.normal(0, 2, (images, 100)).astype(np.float32)
    return reference, (reference + rng.normal(0, sigma, reference.shape)).astype(np.float32)


def test_the_expected_drop_is_what_noise_costs_on_average() -> None:
    """Against what many outcomes of the noise cost, by the float model's own probabilities."""
    reference, _ = logits_and_noise(0.4, 0)
    p = np.exp(reference) / np.exp(reference).sum(1, keepdims=True)
    image = np.arange(len(reference))
    costs = []
    for seed in range(1, 61):
        first = (reference + np.random.default_rng(seed).normal(0, 0.4, reference.shape)).argmax(1)
        costs.append(100 * float((p.max(1) - p[image, first]).mean()))
    lost, error = expected_drop(reference, np.full(len(reference), 0.16))
    assert abs(lost - np.mean(costs)) < 0.1 * np.mean(costs)
    # One outcome is far less sure of it.
    assert error < np.std(costs)


def test_the_noise_is_measured_without_what_moves_all_classes() -> None:
    reference, logits = logits_and_noise(0.3, 1)
    power = noise_power(reference, logits + 5)
    assert power.shape == (400,) and abs(power.mean() - 0.09) < 0.005
    assert expected_drop(reference, np.zeros(400)) == (0.0, 0.0)


def test_a_single_logit_is_judged_by_its_sign() -> None:
    reference = np.array([[0.1], [3.0], [-0.2]])
    lost, _ = expected_drop(reference, np.full(3, 0.25))
    assert 0 < lost < 5


def test_the_data_set_is_nchw_in_raw_scale_with_the_whole_range(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(40, 200, (3, 8, 6, 3), dtype=np.uint8)
    lines = write_dataset(pixels, tmp_path / "set").read_text().split()
    images = [np.load(line) for line in lines]
    assert [i.shape for i in images] == [(1, 3, 8, 6)] * 3
    assert images[0].min() == 0 and images[0].max() == 255
    assert np.array_equal(images[1][0].transpose(1, 2, 0), pixels[1])


def test_calibration_and_check_images_are_different_ones() -> None:
    calibrate, check = split(256, 32, 96)
    assert len(calibrate) == 32 and len(check) == 96 and not set(calibrate) & set(check)
    calibrate, check = split(10, 32, 96)
    assert len(calibrate) == 5 and len(check) == 5 and not set(calibrate) & set(check)
    assert len(split(1, 32, 96)[1]) == 1
