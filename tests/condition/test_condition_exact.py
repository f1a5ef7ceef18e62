"""Every exact transform leaves the logits as they are, with outliers put in and uneven widths."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from vitedge.condition import ConditionOptions, condition
from vitedge.condition.apply import batched
from vitedge.condition.fold import fold_attention_scale, fold_norms
from vitedge.condition.groups import group_units
from vitedge.condition.heads import balance_heads, scale_values
from vitedge.condition.orthogonal import hadamard_rotation, random_rotation, spreading_rotation
from vitedge.condition.rotate import centre_stream, rotate_stream, stream_moment
from vitedge.condition.smooth import smooth_norms
from vitedge.vit.block import BlockConfig, Merge
from vitedge.vit.config import ViTConfig
from vitedge.vit.model import VisionTransformer, init_weights

BLOCKS = (
    BlockConfig(heads=3, qk_dim=8, v_dim=8, hidden=96, scale=0.35, merge=Merge(13)),
    BlockConfig(heads=2, qk_dim=6, v_dim=10, hidden=48, scale=0.4),
    BlockConfig(heads=0, qk_dim=0, v_dim=0, hidden=32, scale=1.0, merge=Merge(9)),
    BlockConfig(heads=1, qk_dim=8, v_dim=8, hidden=0, scale=0.3),
    BlockConfig(heads=3, qk_dim=8, v_dim=8, hidden=64, scale=0.35),
)


def outlier_vit(width: int = 24, blocks: tuple[BlockConfig, ...] = BLOCKS) -> VisionTransformer:
    config = ViTConfig(image_size=32, patch_size=8, channels=3, width=width, classes=10, blocks=blocks)
    model = init_weights(VisionTransformer(config), seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for block in model.blocks:
            if block.mlp is not None:
                block.mlp.fc1.weight[5] *= 30  # a unit far out, and a massive column
                block.mlp.fc2.weight[:, 5] *= 10
            if block.norm1 is not None:
                block.norm1.weight[3] = 12.0
    return model


def images(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _rotated(make: Callable) -> Callable:
    def change(model: VisionTransformer, x: torch.Tensor) -> None:
        fold_norms(model)
        centre_stream(model)
        rotate_stream(model, make(model, x))

    return change


TRANSFORMS: dict[str, Callable[[VisionTransformer, torch.Tensor], object]] = {
    "fold": lambda m, x: (fold_norms(m), fold_attention_scale(m)),
    "centre": lambda m, x: (fold_norms(m), centre_stream(m)),
    "random": _rotated(lambda m, x: random_rotation(m.config.width, 0)),
    "hadamard": _rotated(lambda m, x: hadamard_rotation(m.config.width, 0)),
    "learned": _rotated(lambda m, x: spreading_rotation(stream_moment(m, [x]), 0)),
    "smooth": lambda m, x: smooth_norms(m, [x]),
    "balance": lambda m, x: (balance_heads(m, [x]), scale_values(m, [x])),
    "groups": lambda m, x: group_units(m, [x], 3, 1.5, 16),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("width", [24, 21])  # with a Hadamard matrix, and without
def test_leaves_logits(name: str, width: int) -> None:
    model, x = outlier_vit(width), images()
    changed = copy.deepcopy(model)
    TRANSFORMS[name](changed, x)
    with torch.no_grad():
        before, after = model(x), changed(x)
    assert (before - after).abs().max() / (before.max() - before.min()) < 1e-5
    assert any(
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), changed.state_dict().values(), strict=True)
    ), "nothing was changed"


def test_all_together_and_reproducible() -> None:
    model, x = outlier_vit(), images()
    ours, report = condition(model, batched(x, 5), ConditionOptions(group_gain=1.5))
    again, _ = condition(model, batched(x, 5), ConditionOptions(group_gain=1.5))
    with torch.no_grad():
        before, after = model(x), ours(x)
    assert (before - after).abs().max() / (before.max() - before.min()) < 1e-5
    assert all(step.exact and step.agreement == 1 for step in report.steps)
    assert [s.name for s in report.steps] == ["fold", "rotate", "smooth", "balance", "groups"]
    assert ours.config.blocks[0].groups and ours.config.blocks[0].scale == 1.0
    for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for block in ours.blocks:  # what the configuration says holds in the modules too
        if block.mlp is not None:
            assert len(block.mlp.gelu_sites) == max(1, len(block.config.groups))


def test_report_is_json() -> None:
    import json

    _, report = condition(outlier_vit(), batched(images(), 4))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    rotate = next(s for s in data["steps"] if s["name"] == "rotate")
    noise = rotate["chosen"]["noise"]
    assert noise[rotate["chosen"]["kind"]] == min(noise.values())
    assert set(rotate["crest"]) >= {"residual", "norm", "gelu"}


def test_a_head_of_zeros() -> None:
    model = outlier_vit()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    _, report = condition(model, batched(torch.randn(8, 3, 32, 32)))
    assert all(step.logit_difference == 0 for step in report.steps if step.exact)


def test_a_transform_that_changes_the_model_is_refused(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from vitedge.condition import apply
    from vitedge.errors import VitedgeError

    def wrong(model, batches) -> None:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            model.head.weight *= 1.01

    monkeypatch.setattr(apply, "balance_heads", wrong)
    with pytest.raises(VitedgeError, match="'balance' changed"):
        condition(outlier_vit(), batched(images()))


@pytest.mark.real
def test_real_model(shared_data) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    from vitedge.vit.checkpoint.load import load_model

    loaded = load_model(str(shared_data / "vit_ti_16"))
    files = sorted((shared_data / "calib" / "images").iterdir())[:12]
    import numpy as np

    pixels = np.stack([np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in files])
    x = torch.from_numpy(loaded.preprocess.normalize(pixels))
    ours, report = condition(loaded.model, batched(x, 4), ConditionOptions())
    with torch.no_grad():
        before, after = loaded.model(x), ours(x)
    assert (before - after).abs().max() / (before.max() - before.min()) < 1e-4
    crest = {kind: value for step in report.steps for kind, value in step.crest.items()}
    first = report.steps[0].crest
    assert crest["residual"][1] < first["residual"][0] / 5
    assert crest["gelu"][1] < first["gelu"][0] / 3
