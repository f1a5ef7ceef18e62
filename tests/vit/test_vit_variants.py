"""Every feature of the architecture: graph, counts, exact transforms, pruning, quantisation of one small model each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from tests.vit.variants import VARIANTS, images, make
from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.data.preprocess import Preprocess
from vitedge.export.vit import export_vit
from vitedge.metrics import sqnr_db
from vitedge.prune import PruneOptions, prune
from vitedge.quant import QuantOptions, calibrate, insert_qdq, quantize_dynamic, round_weights, simulate
from vitedge.targets.onnxruntime.rewrites import exact_here
from vitedge.vit.architecture import Architecture
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import model_macs, model_params
from vitedge.vit.products import products, stem_units, units

NAMES = list(VARIANTS)


def preprocess_of(config: ViTConfig) -> Preprocess:
    half = (0.5,) * config.channels
    return SimpleNamespace(mean=half, std=half)


def run(graph, x: torch.Tensor) -> np.ndarray:
    """What ONNX Runtime makes of the normalised images."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    model = exact_here(graph).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return session.run(["logits"], {"pixels": pixels})[0]


def exported(model: Architecture, batch: int | None = None):
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return export_vit(model.config, weights, preprocess_of(model.config), batch)


def of(model: Architecture, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def apart(a, b) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / np.ptp(a))


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_computes_what_the_model_computes(name: str) -> None:
    model, x = make(VARIANTS[name]), images(VARIANTS[name])
    expected = of(model, x)
    assert float(expected.std()) > 1e-3
    for batch, part in ((None, x), (1, x[:1]), (4, x)):
        assert apart(expected[: len(part)], run(exported(model, batch), part)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_model_stands_in_the_graph(name: str) -> None:
    config = VARIANTS[name]
    model = make(config)
    graph = exported(model).graph
    made = {output for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    for unit in units(config):
        assert f"{unit.name}.weight" in constants and (unit.source in made or unit.source == "pixels")
        assert (f"{unit.name}.bias" in constants) == unit.bias
    sites = set(model.sites()) - {"embed"} | ({"embed"} & made) - {"pool.attention.q"}
    assert sites - {"pool.attention.q"} <= made
    assert {unit.layer for unit in units(config)} == set(model.linears())


@pytest.mark.parametrize("name", NAMES)
def test_counts_of_macs_and_parameters(name: str) -> None:
    config = VARIANTS[name]
    model = make(config)
    assert model_params(config) == sum(p.numel() for p in model.parameters())
    listed = sum(unit.macs for unit in units(config)) + sum(macs for _, _, macs in products(config))
    assert listed == model_macs(config)
    assert ViTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", NAMES)
def test_conditioning_leaves_the_function(name: str) -> None:
    model, x = make(VARIANTS[name]), images(VARIANTS[name], 12)
    options = ConditionOptions(registers=False, rotate="random", groups=2, group_size=8)
    new, report = condition(model, batched(x), options)
    expected, found = of(model, x), of(new, x)
    assert apart(expected, found) < 1e-4
    assert [step.name for step in report.steps][:2] == ["fold", "rotate"]
    if not model.streams():
        assert report.steps[1].chosen["kind"] == "off"
        return
    # The stream was turned: what is written to it is another vector of the same length.
    with torch.no_grad():
        before, after = model.run_block(0, model.embed(x)), new.run_block(0, new.embed(x))
    assert float((before - after).abs().max()) > 0.1 * float(before.abs().max())
    assert apart(expected, run(exported(new), x)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_pruning_removes_what_is_asked_for(name: str) -> None:
    config = VARIANTS[name]
    model, x = make(config), images(config, 40)
    options = PruneOptions(prune=0.2, align=4, head_align=4, min_hidden=8, fit_steps=4)
    small, _ = prune(model, batched(x), options)
    assert model_macs(small.config) <= 0.8 * model_macs(config)
    assert model_params(small.config) == sum(p.numel() for p in small.parameters())
    if not config.blocks[0].free_logits:
        assert {b.qk_dim for b in small.config.blocks} == {16}
    expected = of(small, x[:4])
    assert apart(expected, run(exported(small), x[:4])) < 1e-5
    assert sqnr_db(of(model, x), of(small, x)) > 0


@pytest.mark.parametrize("preset", ["linear", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_static_quantisation_is_what_the_simulation_says(name: str, preset: str) -> None:
    config = VARIANTS[name]
    model, x = make(config), images(config, 24)
    model, _ = condition(model, batched(x), ConditionOptions(rotate="hadamard", groups=1))
    scheme = calibrate(model, batched(x), QuantOptions(preset=preset, stem="int8"), preprocess_of(config))
    # A depthwise convolution stays float where what it reads does.
    rounded = [unit for unit in units(model.config) if preset == "full" or unit.kind != "depthwise"]
    assert {unit.name for unit in rounded} == set(scheme.weights)
    sim = of(simulate(model, scheme, preprocess_of(config)), x)
    expected = of(model, x)
    found = run(insert_qdq(exported(model), scheme), x)
    noise = sqnr_db(expected, sim)
    assert noise > 12
    # A value at a tie may fall the other way, but the two are nearer to each other than to the float model.
    assert sqnr_db(sim, found) > noise + 3
    assert scheme.facts["int8_macs"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_quantisation(name: str) -> None:
    config = VARIANTS[name]
    model, x = make(config), images(config, 8)
    scheme = round_weights(model, batched(x), QuantOptions(), preprocess_of(config))
    found = run(quantize_dynamic(exported(model), scheme), x)
    assert sqnr_db(of(model, x), found) > 12


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_rounded_without_images(name: str) -> None:
    """Also of a model whose images are not square, or have other channels than three."""
    config = VARIANTS[name]
    model, x = make(config), images(config, 8)
    fitted = round_weights(model, batched(x), QuantOptions(), preprocess_of(config))
    # A single channel is told: read from files, grey images have three.
    blind = round_weights(model, None, preprocess=None if config.channels > 1 else preprocess_of(config))
    assert fitted.weights.keys() == blind.weights.keys() and fitted.activations.keys() == blind.activations.keys()
    found = run(quantize_dynamic(exported(model), blind), x)
    assert sqnr_db(of(model, x), found) > 12


@pytest.mark.parametrize("mode", ["linear", "full", "dynamic"])
def test_a_stem_stays_float_unless_asked_for(mode: str) -> None:
    config = VARIANTS["resnet stem"]
    model, x = make(config), images(config, 16)
    options, preprocess = QuantOptions(preset="full" if mode == "full" else "linear"), preprocess_of(config)
    if mode == "dynamic":
        options = options.model_copy(update={"stem": "int8"})  # nothing fuses it
        graph = quantize_dynamic(exported(model), scheme := round_weights(model, batched(x), options, preprocess))
    else:
        graph = insert_qdq(exported(model), scheme := calibrate(model, batched(x), options, preprocess))
    stem = {unit.name for unit in stem_units(config)}
    assert stem and not stem & scheme.weights.keys()
    assert not {unit.source for unit in stem_units(config)} & scheme.activations.keys()
    macs = sum(unit.macs for unit in stem_units(config)) / model_macs(config)
    assert scheme.facts["float_stem_macs"] == pytest.approx(macs) and scheme.facts["int8_macs"] < 1 - macs
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for name in stem:
        assert constants[f"{name}.weight"].data_type == TensorProto.FLOAT
