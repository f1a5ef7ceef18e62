"""Step sizes that learn: LSQ's gradients by the paper's formula, and a model that starts exactly at its scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.quant.uneven import PREP, conditioned
from vitedge.condition.apply import batched
from vitedge.export.vit import export_vit
from vitedge.quant import QuantOptions, Scheme, calibrate, insert_qdq, simulate
from vitedge.quant.learned import LearnedConv, LearnedLinear, LearnedSite, learned_round
from vitedge.quant.learned_model import learnable, learned_floats, learned_scheme
from vitedge.quant.scheme import Activation
from vitedge.quant.uniform import fake_quantize
from vitedge.targets.onnxruntime.rewrites import Form, apply, exact_here
from vitedge.targets.onnxruntime.runner import OnnxRuntimeRunner
from vitedge.vit.model import VisionTransformer

Case = tuple[VisionTransformer, Tensor, np.ndarray]


@pytest.fixture(scope="module")
def case() -> Case:
    return conditioned()


def paper(x: Tensor, scale: float, low: int, high: int) -> Tensor:
    """Equation 3 of arXiv 1902.08153: the gradient of the rounded value to the step size."""
    v = x.double() / scale
    return torch.where(v <= low, float(low), torch.where(v >= high, float(high), v.round() - v))


@pytest.mark.parametrize("per_row", [False, True])
def test_gradients_are_the_papers(per_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(6, 50, generator=generator)).requires_grad_()
    rows = torch.tensor([0.03, 0.05, 0.02, 0.5, 1.0, 0.01])[:, None] if per_row else torch.tensor([0.02])
    scale = rows.clone().requires_grad_()
    upstream = torch.randn(6, 50, generator=generator)
    learned_round(x, scale, -30, 100).backward(upstream)
    each = torch.stack([paper(row, float(s), -30, 100) for row, s in zip(x.detach(), rows.expand(6, 1), strict=True)])
    moved = each * upstream
    expected = moved.sum(1, keepdim=True) if per_row else moved.sum().reshape(1)
    count = 50 if per_row else 300
    assert scale.grad is not None and x.grad is not None
    torch.testing.assert_close(scale.grad.double(), expected / (count * 100) ** 0.5, rtol=1e-3, atol=1e-4)
    steps = x.detach() / rows.expand(6, 1)
    inside = (steps > -30) & (steps < 100)
    assert 0.1 < float(inside.float().mean()) < 0.9
    assert torch.equal(x.grad, upstream * inside)


def test_a_site_rounds_as_the_scheme_does() -> None:
    x = torch.randn(4, 7, 6)
    parts = [Activation(0.02, 100), None, Activation(0.5, 3)]
    site = LearnedSite([(0, 2, parts[0]), (2, 4, parts[1]), (4, 6, parts[2])])
    expected = [x[..., :2], x[..., 2:4], x[..., 4:]]
    whole = torch.cat([e if to is None else fake_quantize(e, to) for e, to in zip(expected, parts, strict=True)], -1)
    torch.testing.assert_close(site(x), whole)
    assert [None if to is None else to.zero_point for to in site.learned()] == [100, None, 3]
    with torch.no_grad():
        site.factor[0] = -1.0  # whatever a step did
    first = site.learned()[0]
    assert first is not None and first.scale > 0


@pytest.mark.parametrize("preset", ["linear", "full"])
@pytest.mark.parametrize("from_float", [0.0, 1.0])
def test_it_starts_at_the_scheme(case: Case, preset: str, from_float: float) -> None:
    model, x, _ = case
    scheme = calibrate(model, batched(x), QuantOptions(preset=preset), PREP)  # type: ignore[arg-type]
    student = learnable(model, scheme, PREP, from_float=from_float)
    learned = learned_scheme(student, scheme, PREP, {})
    assert learned.activations.keys() == scheme.activations.keys()
    for name, to in scheme.activations.items():
        assert learned.activations[name].zero_point == to.zero_point
        assert learned.activations[name].scale == pytest.approx(to.scale, rel=1e-6)
    for name, weight in scheme.weights.items():
        assert np.array_equal(learned.weights[name].values, weight.values)
        np.testing.assert_allclose(learned.weights[name].scale, weight.scale, rtol=1e-6)
        assert learned.weights[name].axis == weight.axis
    for name, bias in scheme.biases.items():
        np.testing.assert_allclose(learned.biases[name], bias, atol=1e-5)
    quantized = {n for n, s in student.sites().items() if isinstance(s, LearnedSite)}
    simulated = {n for n, s in simulate(model, scheme, PREP).sites().items() if type(s).__name__ == "FakeQuant"}
    assert quantized == simulated
    layers = student.linears().values()
    assert all(isinstance(layer, (LearnedLinear, LearnedConv)) for layer in layers)


def test_without_activations_it_is_exact(case: Case) -> None:
    model, x, _ = case
    full = calibrate(model, batched(x), QuantOptions(), PREP)
    weights = Scheme("linear", {}, full.weights, full.biases)
    with torch.no_grad():
        expected = simulate(model, weights, PREP)(x)
        for from_float in (0.0, 1.0):
            ours = learnable(model, weights, PREP, from_float=from_float)(x)
            assert (ours - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


def test_what_was_learned_reaches_the_graph(case: Case) -> None:
    """After some steps: the graph in ONNX Runtime, the simulation and the model that learned compute the same."""
    model, x, pixels = case
    scheme = calibrate(model, batched(x), QuantOptions(preset="full"), PREP)
    student = learnable(model, scheme, PREP)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        (student(x) - 1).square().mean().backward()
        optimizer.step()
    student.eval()
    learned = learned_scheme(student, scheme, PREP, {})
    moved = [n for n, w in learned.weights.items() if not np.array_equal(w.values, scheme.weights[n].values)]
    assert len(moved) == len(learned.weights)
    assert all(
        to.scale != scheme.activations[n].scale and to.zero_point == scheme.activations[n].zero_point
        for n, to in learned.activations.items()
        if n != "pixels"
    )
    floats = learned_floats(student, model, learned, PREP)
    weights = {k: v.numpy() for k, v in floats.state_dict().items()}
    graph, _ = apply(insert_qdq(export_vit(floats.config, weights, PREP, batch=len(x)), learned), Form("parts"))
    runner = OnnxRuntimeRunner(Path("in memory"), model=exact_here(graph).SerializeToString())
    ours = torch.from_numpy(runner.infer(pixels))
    with torch.no_grad():
        trained, before = student(x), simulate(model, scheme, PREP)(x)
        simulated = simulate(floats, learned, PREP)(x)
    equal = (ours - simulated).abs().amax(1) < 1e-4 * (simulated.amax(1) - simulated.amin(1))
    assert equal.float().mean() >= 0.9
    # What learned adds up floats: one value that falls the other way at a tie moves by a step, and that is all.
    for other in (simulated, ours):
        assert (other - trained).square().mean() < 1e-2 * trained.var()
        assert (other - trained).square().mean() < 1e-2 * (before - trained).square().mean()
    assert (ours.argmax(1) == simulated.argmax(1)).float().mean() >= 0.95
    assert (ours.argmax(1) == trained.argmax(1)).float().mean() >= 0.9
