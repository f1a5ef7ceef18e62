"""The trained ViT-Ti/16 in other forms that compute the same: read or built so, its accuracy stays what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vit.test_vit_variants import exported
from vitedge.data.folder import open_dataset
from vitedge.data.loader import iter_batches
from vitedge.vit.architecture import Architecture
from vitedge.vit.checkpoint import load_model
from vitedge.vit.checkpoint.convert import to_library
from vitedge.vit.checkpoint.families import timm_vit
from vitedge.vit.checkpoint.layout import TIMM
from vitedge.vit.checkpoint.load import LoadedModel
from vitedge.vit.checkpoint.save import build_model

pytestmark = pytest.mark.real
IMAGES = 48


@pytest.fixture(scope="module")
def trained(shared_data: Path) -> LoadedModel:
    return load_model(str(shared_data / "vit_ti_16"))


@pytest.fixture(scope="module")
def images(shared_data: Path, trained: LoadedModel) -> tuple[Tensor, np.ndarray]:
    """Normalised images and their labels."""
    dataset = open_dataset(shared_data / "val", trained.classes, 1000).subset(range(IMAGES))
    pixels, index = next(iter(iter_batches(dataset, trained.preprocess, IMAGES)))
    return torch.from_numpy(trained.preprocess.normalize(pixels)), dataset.labels[index]


@pytest.fixture(scope="module")
def expected(trained: LoadedModel, images) -> Tensor:
    return logits(trained.model, images[0])


@torch.no_grad()
def logits(model: Architecture, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(16)])


def in_timm(model: Architecture) -> Architecture:
    """As timm's model with LayerScale, positions of the patches alone and a [CLS] token that has its own added."""
    timm = pytest.importorskip("timm")
    state = to_library(TIMM, dict(model.state_dict()), len(model.blocks))
    position = state["pos_embed"]
    state["cls_token"] = state["cls_token"] + position[:, :1]
    state["pos_embed"] = position[:, 1:]
    for index in range(len(model.blocks)):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            state[f"blocks.{index}.{scale}.gamma"] = torch.full((model.config.width,), 0.5)
            for kind in ("weight", "bias"):
                state[f"blocks.{index}.{layer}.{kind}"] = 2 * state[f"blocks.{index}.{layer}.{kind}"]
    options = {"no_embed_class": True, "init_values": 1.0}
    theirs = timm.create_model("vit_tiny_patch16_224", **options)
    theirs.load_state_dict(state)
    read = timm_vit.read(theirs.state_dict(), theirs)
    return build_model(read.config, read.state)


def with_second_head(model: Architecture) -> Architecture:
    """As DINOv2's classifiers read [CLS] and the mean of the patches together: the mean counts nothing here."""
    config = replace(model.config, pool=("cls", "mean"))
    zeros = {"heads.0.weight": torch.zeros_like(model.head.weight), "heads.0.bias": torch.zeros(config.classes)}
    return build_model(config, dict(model.state_dict()) | zeros)


def without_key_bias(model: Architecture) -> Architecture:
    """As BEiT and EVA: a bias of the keys adds the same to all of a query's scores, which softmax takes away."""
    state = {k: torch.zeros_like(v) if k.endswith("attention.k.bias") else v for k, v in model.state_dict().items()}
    return build_model(model.config, state)


def as_embedding(model: Architecture) -> Architecture:
    """A backbone without a head, and its classes as text embeddings would be: the head's own rows."""
    state = dict(model.state_dict())
    eye = {"head.weight": torch.eye(model.config.width), "head.bias": torch.zeros(model.config.width)}
    config = replace(model.config, classes=model.config.width, activation="none")
    return build_model(config, state | eye)


@pytest.mark.parametrize("change", [in_timm, with_second_head, without_key_bias])
def test_an_exact_change_keeps_every_class(change, trained, images, expected) -> None:
    x, labels = images
    changed = change(trained.model)
    found = logits(changed, x)
    assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()))
    assert torch.equal(found.argmax(1), expected.argmax(1))
    right = (expected.argmax(1).numpy() == labels).mean()
    assert (found.argmax(1).numpy() == labels).mean() == right and right > 0.5
    assert len(exported(changed).graph.node) > 100


def test_a_backbone_without_its_head_classifies_by_it(trained, images, expected) -> None:
    embeddings = logits(as_embedding(trained.model), images[0])
    head = trained.model.head
    with torch.no_grad():
        assert torch.equal((embeddings @ head.weight.T + head.bias).argmax(1), expected.argmax(1))


def test_a_distilled_variant_stays_near(trained, images, expected) -> None:
    """A distillation token that is a copy of [CLS], and a head for each with half of the weights: attention sees [CLS]
    twice, which is not exact, and changes few classes."""
    model = trained.model
    state = dict(model.state_dict())
    state["class_token"] = state["class_token"].repeat(1, 2, 1)
    state["pos_embedding"] = torch.cat([state["pos_embedding"][:, :1], state["pos_embedding"]], 1)
    for kind in ("weight", "bias"):
        state[f"head.{kind}"] = state[f"head.{kind}"] / 2
        state[f"heads.0.{kind}"] = state[f"head.{kind}"].clone()
    config = replace(model.config, prefix_tokens=("cls", "dist"), pool=("cls", "dist"))
    found = logits(build_model(config, state), images[0])
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.85
