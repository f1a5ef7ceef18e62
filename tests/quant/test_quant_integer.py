"""The simulation's kernels against whole numbers, and against ONNX Runtime's, bit for bit where it says so."""

from __future__ import annotations

import platform

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.quant.uneven import PREP
from vitedge.quant.integer import (
    IntegerConv,
    IntegerLinear,
    IntegerMatMul,
    KernelGelu,
    KernelNorm,
    KernelSoftmax,
    Product,
    codes,
)
from vitedge.quant.scheme import Activation, Weight

SOURCE = Activation(0.0137, 131)
WHOLE = slice(None)


def rounded(*shape: int, to: Activation = SOURCE, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """(values that `to` can hold, their integers less the zero point)."""
    integers = np.random.default_rng(seed).integers(0, 256, shape) - to.zero_point
    return torch.from_numpy(integers.astype(np.float32)) * to.scale, integers


def weight(rows: int, columns: int, seed: int = 1) -> Weight:
    """Integers [rows, columns] as the graph has them: [in, out]."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    return Weight(values, rng.uniform(0.001, 0.01, columns).astype(np.float32), 1)


def product(integers: np.ndarray, w: Weight, source: Activation = SOURCE) -> np.ndarray:
    """The exact sums, times both step sizes."""
    scale = np.float32(source.scale) * w.scale
    return (integers @ w.values.astype(np.int64)).astype(np.float32) * scale


def test_integers_are_found_again() -> None:
    x, integers = rounded(50, 40)
    assert np.array_equal(codes(x, SOURCE).numpy(), integers)


def test_a_product_is_the_exact_sum_scaled_once() -> None:
    x, integers = rounded(9, 300)
    w, bias = weight(300, 7), torch.linspace(-1, 1, 7)
    ours = IntegerLinear([Product(WHOLE, WHOLE, SOURCE, w, bias)])(x)
    assert np.array_equal(ours.numpy(), product(integers, w) + bias.numpy())


def test_pieces_of_rows_are_joined_and_pieces_of_columns_added() -> None:
    x, integers = rounded(9, 20)
    left, right = weight(20, 3), weight(20, 4, seed=2)
    joined = IntegerLinear(
        [Product(slice(0, 3), WHOLE, SOURCE, left, None), Product(slice(3, 7), WHOLE, SOURCE, right, None)]
    )
    assert np.array_equal(joined(x).numpy(), np.concatenate([product(integers, left), product(integers, right)], -1))
    upper, floats = weight(12, 5), torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    bias = torch.linspace(-1, 1, 5)
    added = IntegerLinear(
        [Product(WHOLE, slice(0, 12), SOURCE, upper, bias), Product(WHOLE, slice(12, 20), None, floats, None)]
    )
    expected = product(integers[:, :12], upper) + bias.numpy() + x[:, 12:].numpy() @ floats.numpy()
    np.testing.assert_allclose(added(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_product_of_two_activations() -> None:
    other = Activation(0.004, 0)
    (a, x), (b, y) = rounded(2, 5, 30), rounded(2, 30, 6, to=other, seed=3)
    ours = IntegerMatMul(SOURCE, other)(a, b)
    scale = np.float32(SOURCE.scale) * np.float32(other.scale)
    assert np.array_equal(ours.numpy(), (x @ y).astype(np.float32) * scale)


def test_the_patch_embedding_finds_the_pixels_again() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    one = Weight(np.ones((1, 3, 8, 8), np.int8), np.ones(1, np.float32), 0)
    conv = IntegerConv(one, torch.zeros(1), PREP, (8, 8))
    expected = pixels.astype(np.float32).reshape(1, 2, 8, 2, 8, 3).sum((2, 4, 5))
    assert np.array_equal(conv(torch.from_numpy(PREP.normalize(pixels)))[:, 0].numpy(), expected)


@pytest.mark.parametrize("width", [24, 192, 768])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm_is_the_runtimes(width: int, affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.LayerNorm(width, eps=1e-6)
    with torch.no_grad():
        if affine:
            norm.weight.normal_(generator=generator)
            norm.bias.normal_(generator=generator)
        x = (torch.randn(400, width, generator=generator) * 30 + 5).round() * 0.0317
        ours = KernelNorm.of(norm)(x).numpy()
    scale, bias = (numpy_helper.from_array(p.detach().numpy(), n) for p, n in ((norm.weight, "w"), (norm.bias, "b")))
    node = helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1, epsilon=1e-6)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [400, width]) for n in "xy"]
    graph = helper.make_graph([node], "norm", values[:1], values[1:], [scale, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # The order of the sums is that of one version's kernel, on processors with AVX2.
    if onnxruntime.__version__.startswith("1.31.") and platform.machine() == "x86_64":
        assert np.array_equal(ours, theirs)


def test_softmax_and_gelu_are_torchs_but_for_the_last_bit() -> None:
    x = torch.linspace(-12, 12, 197 * 40).reshape(40, 197)
    torch.testing.assert_close(KernelSoftmax(-1)(x), x.softmax(-1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(KernelGelu()(x), torch.nn.functional.gelu(x), rtol=1e-6, atol=1e-6)
