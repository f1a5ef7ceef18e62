"""Sensitivity, mixed precision and the analysis, on a small ViT with one activation that INT8 ruins."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.data.sample import load_pixels
from vitedge.errors import VitedgeError
from vitedge.metrics import kl
from vitedge.quant import QuantOptions, Scheme, calibrate, simulate
from vitedge.quant.analysis import layer_errors
from vitedge.quant.checks import check_pixels
from vitedge.quant.mixed import lost, rank
from vitedge.quant.sensitivity import Sensitivity, logits_of, sensitivities
from vitedge.quant.static import split
from vitedge.quant.weights import WeightRounder
from vitedge.vit.checkpoint import load_model
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights

PREP = Preprocess(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
BAD = "block1.mlp.gelu"


@pytest.fixture(scope="module")
def case() -> tuple[VisionTransformer, torch.Tensor]:
    config = uniform(image_size=32, patch_size=8, width=24, depth=3, heads=3, hidden=48, classes=10)
    model = init_weights(VisionTransformer(config), seed=1).eval()
    with torch.no_grad():
        model.class_token.normal_(generator=torch.Generator().manual_seed(0))
        model.head.weight *= 4
        model.blocks[1].mlp.fc1.weight[7] *= 300  # one unit takes the range of all others
        model.blocks[1].mlp.fc2.weight[:, 7] *= 0.003
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
    return model, torch.from_numpy(PREP.normalize(pixels))


def test_the_bad_activation_comes_first(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    scheme = calibrate(model, batched(x), QuantOptions(), PREP)
    found = sensitivities(model, scheme, x[:16], PREP)
    assert found[0].name == BAD and found[0].kind == "activation"
    assert [e.divergence for e in found] == sorted((e.divergence for e in found), reverse=True)
    assert {e.name for e in found if e.kind == "weight"} == set(model.linears())
    # An effect from the middle of the model on is the same as from its start.
    alone = Scheme("linear", {BAD: scheme.activations[BAD]}, {}, {})
    with torch.no_grad():
        whole = kl(model(x[:16]), simulate(model, alone, PREP)(x[:16]))
    assert found[0].divergence == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("preset", ["linear", "full"])
def test_max_drop(case, preset: str) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    loose = calibrate(model, batched(x, 7), QuantOptions(preset=preset, max_drop=100.0), PREP)  # type: ignore[arg-type]
    assert loose.facts["mixed"]["float"] == [] and loose.facts["mixed"]["images"] == 12
    tight = calibrate(model, batched(x, 7), QuantOptions(preset=preset, max_drop=2.5), PREP)  # type: ignore[arg-type]
    assert f"activation {BAD}" in tight.facts["mixed"]["float"]
    assert tight.facts["int8_macs"] < loose.facts["int8_macs"] <= 1
    assert BAD not in tight.activations
    _, held = split(batched(x, 7), 0.25)
    points, error = lost(logits_of(model, held()), logits_of(simulate(model, tight, PREP), held()), "top1")
    assert points + error <= 2.5
    assert any("12 held-out images" in line for line in tight.facts["warnings"])


def test_weights_are_rounded_for_the_activations_that_are_left(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    options = QuantOptions(preset="full", max_drop=2.5)
    tight = calibrate(model, batched(x, 7), options, PREP)
    left_out = {line.split()[1] for line in tight.facts["mixed"]["float"] if line.startswith("weight")}
    assert BAD not in tight.activations and BAD not in left_out
    fitted, _ = split(batched(x, 7), options.held_out)
    rounder = WeightRounder(model, tight.activations, options, PREP, set(model.linears()) - left_out)
    rounder.run(fitted)
    assert tight.weights.keys() == rounder.weights.keys()
    for name, weight in rounder.weights.items():
        assert np.array_equal(weight.values, tight.weights[name].values), name
    # With every activation rounded, the weights behind the bad one make up for what is not there any more. Which of
    # them are left in INT8 is a near thing that the last bits of a CPU's sums decide.
    whole = calibrate(model, fitted, QuantOptions(preset="full"), PREP)
    behind = [name for name in tight.weights if name.startswith("block2.")]
    assert behind
    for name in [n for n in behind if n == "block2.mlp.fc1"] or behind:
        assert not np.array_equal(whole.weights[name].values, tight.weights[name].values), name
    assert tight.facts["mixed"]["tried"][-1]["weights"]


def test_layers_that_are_not_rounded_stay_float(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    rounder = WeightRounder(model, {}, QuantOptions(), PREP, {"block0.mlp.fc1", "head"})
    rounder.run(batched(x))
    assert set(rounder.weights) == {"block0.mlp.fc1", "head"} == set(rounder.biases)
    assert torch.equal(rounder.sim.blocks[0].mlp.fc2.weight, model.blocks[0].mlp.fc2.weight)
    assert not torch.equal(rounder.sim.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_what_goes_to_float_first_does_the_most_harm_for_its_products(case) -> None:  # type: ignore[no-untyped-def]
    model, _ = case

    def effect(name: str, kind: str, divergence: float) -> Sensitivity:
        return Sensitivity(name, kind, divergence, 0.0)  # type: ignore[arg-type]

    stream, read = effect("block0.residual1", "activation", 0.1), effect("block0.norm2", "activation", 0.2)
    harmless, weight = effect("block0.residual2", "activation", 1e-9), effect("block0.attention.q", "weight", 1e-3)
    # Of the same name, the value q is read by attention's small product, the weight makes a larger one.
    value = effect("block0.attention.q", "activation", 1e-3)
    assert rank(model.config, [harmless, read, weight, stream, value]) == [stream, read, value, weight, harmless]


@pytest.mark.real
def test_mixed_precision_on_a_trained_model(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few sums in float, which take no products with them, give back most of what INT8 everywhere loses."""
    loaded = load_model(str(shared_data / "vit_ti_16"))
    prep, model = loaded.preprocess, loaded.model.eval()
    pixels, _ = load_pixels(open_dataset(shared_data / "calib"), prep, 64, 0, tmp_path / "pixels.npy")
    x = torch.from_numpy(prep.normalize(np.asarray(pixels)))
    model, _ = condition(model, batched(x[:32]), ConditionOptions(massive=0.0, rotate="hadamard", images=16))
    monkeypatch.setattr("vitedge.quant.sensitivity.IMAGES", 4)  # the ranking is what takes long
    options = QuantOptions(preset="full", rounding="nearest", max_drop=1.5, held_out=0.5)
    scheme = calibrate(model, batched(x), options, prep)
    mixed = scheme.facts["mixed"]
    assert scheme.facts["int8_macs"] >= 0.9 and mixed["tried"][-1]["weights"]
    assert mixed["tried"][-1]["lost"] + mixed["tried"][-1]["error"] <= 1.5
    assert any("residual" in line for line in mixed["float"])


def test_max_drop_zero_still_ends(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    scheme = calibrate(model, batched(x[:16]), QuantOptions(max_drop=0.0, metric="agreement"), PREP)
    assert scheme.facts["mixed"]["tried"]


def test_ranges_by_their_effect_and_spared_activations(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    auto = calibrate(model, batched(x), QuantOptions(spare=0.12), PREP)
    assert auto.facts["spared"][0] == BAD and BAD not in auto.activations
    assert auto.facts["int8_macs"] >= 0.85 * calibrate(model, batched(x), QuantOptions(), PREP).facts["int8_macs"]
    for other in ("mse", "minmax"):
        fixed = calibrate(model, batched(x), QuantOptions(observer=other), PREP)  # type: ignore[arg-type]
        found = {e.name: e.sqnr_db for e in sensitivities(model, fixed, x[:16], PREP)}
        for name, noise in auto.facts["noise"].items():
            if found.get(name, 99) < 40:  # beyond that, which roundings fall how is all that differs
                assert -10 * np.log10(noise) >= found[name] - 1, name


def test_lost() -> None:
    reference = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    other = reference.clone()
    other[3] = torch.tensor([0.0, 1.0])
    assert lost(reference, other, "agreement")[0] == 25
    p = torch.tensor([1.0, 0.0]).softmax(-1)
    assert lost(reference, other, "top1")[0] == pytest.approx(100 * float(p[0] - p[1]) / 4, rel=1e-5)
    # That no image of four moved says little about the next one: the error is that of one more that does.
    points, error = lost(reference, reference, "top1")
    assert points == 0 and error == pytest.approx(5, rel=0.01)
    assert lost(reference.repeat(100, 1), reference.repeat(100, 1), "top1")[1] < 0.1


def test_embeddings_lose_cosine_and_no_class() -> None:
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    turned = torch.tensor([[4.0, 3.0], [2.0, 0.0], [0.0, 1.0]])  # the largest part of the first is another
    points, error = lost(reference, turned, "cosine")
    assert points == pytest.approx(100 * (1 - 24 / 25) / 3)
    assert error == pytest.approx(points)  # of three, one alone loses: its deviation over the root of three
    assert lost(reference, 5 * reference, "cosine") == (pytest.approx(0), pytest.approx(0))


def test_the_loss_is_counted_from_before_conditioning(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.flip(0))  # another class nearly everywhere
    options = QuantOptions(max_drop=2.5)
    scheme = calibrate(model, batched(x, 7), options, PREP, reference=other)
    assert any("nothing could stay in INT8" in line for line in scheme.facts["warnings"])


def test_split_is_by_image_and_whole() -> None:
    x = torch.arange(20).float()[:, None]
    fitted, held = split(batched(x, 7), 0.25)
    a, b = torch.cat(list(fitted())), torch.cat(list(held()))
    assert len(b) == 5 and sorted(torch.cat([a, b]).flatten().tolist()) == list(range(20))


def test_analysis(case) -> None:  # type: ignore[no-untyped-def]
    model, x = case
    scheme = calibrate(model, batched(x), QuantOptions(), PREP)
    rows = layer_errors(model, scheme, batched(x)(), PREP)
    assert rows[0].name == BAD and "groups" in rows[0].advice
    row = next(r for r in rows if r.name == "block0.norm1")
    assert row.sqnr_db is not None and row.sqnr_db > 20 and row.cosine is not None and row.cosine > 0.99
    assert all(r.sqnr_db is None for r in rows if r.kind == "weight")


def test_pixels_that_calibrate_badly() -> None:
    rng = np.random.default_rng(0)
    good = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    assert check_pixels(good, PREP) == []
    assert "Only 8" in check_pixels(good[:8], PREP)[0]
    assert "kind" in check_pixels(good // 16 + 240, PREP)[0]
    with pytest.raises(VitedgeError, match="same image"):
        check_pixels(np.repeat(good[:1], 40, 0), PREP)
    for nothing in (None, good[:0]):
        with pytest.raises(VitedgeError, match="there are none"):
            check_pixels(nothing, PREP)
