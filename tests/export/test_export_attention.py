"""The attention output of a graph is the model's own rollout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from tests.vit.test_vit_variants import exported, preprocess_of
from tests.vit.variants import DENSE, PLAIN, VARIANTS, images, make
from vitedge.condition.apply import batched
from vitedge.export.attention import with_attention
from vitedge.quant import QuantOptions, calibrate, insert_qdq, simulate
from vitedge.report.attention import rollout
from vitedge.vit.block import Merge

HALF = Merge(left=9)
ALIKE = Merge(left=10, groups=tuple(min(k, 9) for k in range(17)), matched=False)
MERGED = {
    "merged twice": replace(PLAIN, blocks=(replace(DENSE, merge=Merge(left=12)), replace(DENSE, merge=HALF), DENSE)),
    "merged alike": replace(PLAIN, blocks=(replace(DENSE, merge=ALIKE), DENSE, DENSE)),
    "merged, mean": replace(PLAIN, pool=("mean",), blocks=(DENSE, replace(DENSE, merge=Merge(left=12)), DENSE)),
    "merged last, mean": replace(
        PLAIN,
        pool=("mean",),
        prefix_tokens=(),
        blocks=(DENSE, replace(DENSE, merge=Merge(left=12)), replace(DENSE, merge=HALF)),
    ),
    "a block without attention": replace(PLAIN, blocks=(DENSE, replace(DENSE, heads=0), DENSE)),
    "the last without attention": replace(PLAIN, blocks=(DENSE, DENSE, replace(DENSE, heads=0))),
}
CONFIGS = {name: config for name, config in VARIANTS.items() if name != "patches"} | MERGED


def run(graph, x: torch.Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return session.run(["logits", "attention"], {"pixels": pixels})


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_rollout_of_the_model(name: str) -> None:
    config = CONFIGS[name]
    model, x = make(config), images(config, 3)
    expected = rollout(model, x.numpy())
    with torch.no_grad():
        logits = model(x).numpy()
    for batch, part in ((None, x), (1, x[:1])):
        found = run(with_attention(exported(model, batch), config), part)
        assert found[1].shape == (len(part), *config.grid)
        assert np.abs(found[1] - expected[: len(part)]).max() < 1e-5 * np.abs(expected).max()
        assert np.abs(found[0] - logits[: len(part)]).max() < 1e-4 * np.abs(logits).max()
    assert expected.std() > 1e-3 * expected.mean()


def test_of_a_quantised_graph_it_is_that_of_its_simulation() -> None:
    config = PLAIN
    model, x = make(config), images(config, 16)
    scheme = calibrate(model, batched(x), QuantOptions(preset="full"), preprocess_of(config))
    found = run(with_attention(insert_qdq(exported(model), scheme), config), x)[1]
    expected = rollout(simulate(model, scheme, preprocess_of(config)), x.numpy())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_patches_as_output_have_none() -> None:
    config = VARIANTS["patches"]
    with pytest.raises(ValueError, match="nothing joins"):
        with_attention(exported(make(config)), config)
