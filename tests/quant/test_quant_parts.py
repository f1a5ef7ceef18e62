"""The pure parts of quantisation, against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.moments import Moments
from vitedge.quant.fake import simulate
from vitedge.quant.histogram import BINS, Histogram
from vitedge.quant.observers import OBSERVERS, observe
from vitedge.quant.options import QuantOptions
from vitedge.quant.rounding import best_bias, gptq, gptq_or_nearest, nearest
from vitedge.quant.scheme import Activation, Scheme, Weight
from vitedge.quant.uniform import activation_for, fake_quantize, round_to, weight_scales
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights


def filled(x: torch.Tensor, parts: int = 5) -> Histogram:
    histogram = Histogram()
    for part in x.chunk(parts):
        histogram.update(part)
    return histogram


def test_histogram_grows_and_loses_nothing() -> None:
    x = torch.cat([torch.randn(1000) * 0.01, torch.randn(1000) * 100, torch.tensor([5000.0])])
    histogram = filled(x)
    assert histogram.counts.sum() == len(x) and len(histogram.counts) == BINS
    assert histogram.minimum == float(x.min()) and histogram.maximum == 5000
    mean = (histogram.centres * histogram.counts).sum() / len(x)
    assert abs(mean - x.double().mean()) < histogram.width


def test_histogram_of_zeros() -> None:
    histogram = filled(torch.zeros(100))
    to = observe(histogram, QuantOptions(observer="minmax"))
    assert to.scale == 1.0 and torch.equal(fake_quantize(torch.zeros(3), to), torch.zeros(3))


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_observers_on_a_heavy_tail(name: str, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(200_000, generator=generator), torch.tensor([60.0])])
    options = QuantOptions(observer=name, symmetric=symmetric, percentile=99.99)  # type: ignore[arg-type]
    to = observe(filled(x), options)
    high = to.range[1]
    if name == "minmax":
        assert high >= 59.9
    else:
        assert 3 < high < 50
    assert to.zero_point == 128 if symmetric else 0 <= to.zero_point <= 255


def test_mse_is_no_worse_than_the_others() -> None:
    x = torch.nn.functional.gelu(torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 2)
    error = {}
    for name in OBSERVERS:
        to = observe(filled(x), QuantOptions(observer=name))  # type: ignore[arg-type]
        error[name] = float((fake_quantize(x, to) - x).square().mean())
    assert error["mse"] <= 1.01 * min(error.values())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_exact(low: float, high: float) -> None:
    to = activation_for(low, high)
    assert float(fake_quantize(torch.zeros(1), to)) == 0
    if high > low:
        assert to.range[0] <= low + to.scale and to.range[1] >= high - to.scale


def test_weight_scales_and_dead_rows() -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    scale = weight_scales(weight)
    assert scale[2] == 1 and (scale > 0).all()
    error = (round_to(weight.double(), scale) * scale[:, None] - weight).square().sum()
    absmax = torch.where(weight.abs().amax(1) > 0, weight.abs().amax(1) / 127, torch.ones(6)).double()
    assert error <= (round_to(weight.double(), absmax) * absmax[:, None] - weight).square().sum()


def test_gptq_beats_nearest_on_correlated_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=generator)
    x = torch.randn(2000, 32, generator=generator) @ mix + 3
    weight, bias = torch.randn(16, 32, generator=generator), torch.randn(16, generator=generator)
    moments = Moments(32, 16)
    for part in x.split(500):
        moments.add(part, part @ weight.T + bias)
    scale = weight_scales(weight, 4)[:, None].expand(16, 32)
    error = {}
    for name, values in (
        ("gptq", gptq(weight, scale, moments.covariance(), 4)),
        ("nearest", nearest(weight, scale, 4)),
    ):
        assert values.abs().max() <= 7 and torch.equal(values, values.round())
        rounded = values * scale
        fixed = best_bias(rounded, bias, moments)
        error[name] = float(((x.double() @ rounded.T + fixed) - (x @ weight.T + bias)).square().mean())
        plain = float(((x.double() @ rounded.T + bias) - (x @ weight.T + bias)).square().mean())
        assert error[name] <= plain
    assert error["gptq"] < 0.7 * error["nearest"]


def test_singular_moments_are_damped_more_or_rounded_to_nearest() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    scale = weight_scales(weight)[:, None].expand(8, 16)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    x[:, 8:] = x[:, :8]  # rank 8
    for inputs, fitted in ((x, True), (torch.full((50, 16), 1e4) + 1e-4 * x, None), (torch.zeros(50, 16), None)):
        moments = Moments(16)
        moments.add(inputs)
        values, by_gptq = gptq_or_nearest(weight, scale, moments.covariance(), 8, 0.01)
        assert torch.isfinite(values).all() and values.abs().max() <= 127
        assert fitted is None or by_gptq == fitted
    broken = torch.eye(16, dtype=torch.float64)
    broken[0, 1] = broken[1, 0] = 1e9  # not a covariance: no damping makes it one
    values, by_gptq = gptq_or_nearest(weight, scale, broken, 8, 0.01)
    assert not by_gptq and torch.equal(values, nearest(weight, scale))


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    weight[:, ::2] = 0
    moments = Moments(16)
    moments.add(torch.randn(200, 16, generator=torch.Generator().manual_seed(1)).cumsum(1))
    values = gptq(weight, weight_scales(weight)[:, None].expand(8, 16), moments.covariance())
    assert (values[:, ::2] == 0).all() and (values[:, 1::2] != 0).any()


@pytest.mark.parametrize("kind", ["one block", "layer scale 1e-5"])
def test_small_fine_tunes_are_quantised(kind: str) -> None:
    from vitedge.quant import calibrate

    depth = 1 if kind == "one block" else 2
    config = uniform(image_size=16, patch_size=4, width=24, depth=depth, heads=2, hidden=48, classes=3)
    model = init_weights(VisionTransformer(config), seed=0).eval()
    if kind != "one block":
        with torch.no_grad():
            for block in model.encoder():
                for layer in (block.attention.out, block.mlp.fc2):
                    layer.weight.mul_(1e-5)
                    layer.bias.mul_(1e-5)
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made = calibrate(model, lambda: iter(x.split(8)))
    with torch.no_grad():
        apart = simulate(model, made, Preprocess(resize=16, crop=16, mean=(0.5,) * 3, std=(0.5,) * 3))(x) - model(x)
    assert apart.abs().max() < 0.05 * model(x).abs().max()
    if kind == "one block":  # what [CLS] alone reads is the same for every image
        assert any("to nearest" in said for said in made.facts["warnings"])


def scheme() -> Scheme:
    values = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    return Scheme(
        preset="linear",
        activations={"norm": Activation(0.02, 131)},
        weights={"head": Weight(values, np.full(4, 0.1, np.float32), 1)},
        biases={"head": np.ones(4, np.float32)},
        groups={"block0": (16, 32)},
        facts={"images": 3},
    )


def test_scheme_round_trip_and_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    scheme().save(tmp_path / "a")
    scheme().save(tmp_path / "b")
    loaded = Scheme.load(tmp_path / "a")
    assert loaded.activations == scheme().activations and loaded.groups == scheme().groups
    assert np.array_equal(loaded.weights["head"].values, scheme().weights["head"].values)
    for name in ("scheme.json", "scheme.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_scheme_missing_or_damaged(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VitedgeError, match="no quantisation scheme"):
        Scheme.load(tmp_path)
    scheme().save(tmp_path)
    (tmp_path / "scheme.safetensors").write_bytes(b"nonsense")
    with pytest.raises(VitedgeError, match="damaged"):
        Scheme.load(tmp_path)
    (tmp_path / "scheme.json").write_text("{}")
    with pytest.raises(VitedgeError):
        Scheme.load(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"preset": "half"}, {"observer": "kl"}, {"percentile": 3}, {"weight_bits": 4}, {"max_drop": -1}]
)
def test_wrong_options(wrong: dict) -> None:
    with pytest.raises(VitedgeError):
        QuantOptions(**wrong)
