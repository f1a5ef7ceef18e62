"""Matching and merging as pure functions, and in a model."""

from __future__ import annotations

import copy

import pytest
import torch

from vitedge.condition.orthogonal import hadamard_rotation
from vitedge.errors import VitedgeError
from vitedge.tokens.matching import compose, directions, match, merge
from vitedge.tokens.modules import merge_history, replaying
from vitedge.vit.block import BlockTokens, Merge
from vitedge.vit.checkpoint.save import build_model, read_model, save_model
from vitedge.vit.macs import model_macs
from vitedge.vit.model import VisionTransformer


def with_merges(model: VisionTransformer, merges: dict[int, Merge]) -> VisionTransformer:
    config = model.config
    for index, how in merges.items():
        config = config.with_block(index, merge=how)
    return build_model(config, model.state_dict())


def test_nearest_pairs_become_one_and_prefix_stays() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 9, 16)
    x[:, 4] = 2 * x[:, 3] + 1  # the same direction once centred: tokens 3 and 4 are of the two sets
    groups = match(x, None, 8, prefix=1)
    assert (groups[:, 0] == 0).all() and (groups[:, 3] == groups[:, 4]).all()
    assert all(len(set(row.tolist())) == 8 for row in groups)
    merged, sizes = merge(x, None, groups, 8)
    where = groups[:, 3]
    for image in range(3):
        assert sizes[image, where[image]] == 2 and sizes[image].sum() == 9
        assert torch.allclose(merged[image, where[image]], (x[image, 3] + x[image, 4]) / 2, atol=1e-6)
        assert torch.equal(merged[image, 0], x[image, 0])


def test_larger_tokens_cost_more_to_merge() -> None:
    x = torch.eye(5)[None]
    x = torch.cat([x, x[:, 4:]], 1)  # tokens 1..5 of equal distance but for 5 and 4
    sizes = torch.tensor([[1.0, 50, 40, 1, 1, 1]])
    groups = match(x, sizes, 5, prefix=1)
    assert groups[0, 1] != groups[0, 2]


def test_sizes_and_means_do_not_depend_on_the_way() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 17, 8).double()
    first = match(x.float(), None, 13, 1)
    y, sizes = merge(x, None, first, 13)
    second = match(y.float(), sizes, 9, 1)
    twice, count = merge(y, sizes, second, 9)
    once, total = merge(x, None, compose(first, second), 9)
    assert torch.allclose(twice, once) and torch.equal(count, total)


def test_matching_turns_with_a_rotation_and_ignores_a_shift() -> None:
    """What conditioning does to the residual stream: it is centred, then turned by a rotation that keeps the ones."""
    x = 3 + torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(2))
    turned = (x - x.mean(-1, keepdim=True)) @ hadamard_rotation(24, 0).float()
    assert torch.allclose(directions(x).norm(dim=-1), torch.ones(2, 17), atol=1e-4)
    assert torch.equal(match(x, None, 11, 1), match(turned, None, 11, 1))


def test_merged_tokens_weigh_what_their_parts_weigh(tiny_model) -> None:
    """Merging equal tokens changes nothing: the sizes in the softmax make up for their number."""
    model = tiny_model
    x = torch.randn(2, 17, model.config.width)
    x[:, 2::2] = x[:, 1::2]
    block = next(iter(with_merges(model, {0: Merge(9)}).encoder()))
    plain = next(iter(model.encoder()))
    rest = list(model.encoder())[-1]
    want = rest(plain(x))
    found = rest(block(x))[..., : model.config.width]
    assert found.shape[1] in (1, 9)
    assert torch.allclose(found[:, 0], want[:, 0], atol=1e-5)


def test_configuration_travels_and_counts(tiny_model, tmp_path) -> None:
    groups = (0, *range(1, 9), *range(1, 9))
    model = with_merges(tiny_model, {0: Merge(9, groups)})
    save_model(tmp_path, model)
    again = read_model(tmp_path)
    assert again.config == model.config and again.config.blocks[0].merge == Merge(9, groups)
    alike = build_model(model.config.merged_alike(), model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode(), merge_history(alike) as seen:
        assert torch.isfinite(alike(x)).all()
    assert seen[0].tolist() == [list(groups)] * 2
    config = model.config
    assert config.block_tokens(0) == BlockTokens(17, 17, 9) and config.block_tokens(1) == BlockTokens(9, 1, 1)
    assert model_macs(config) < model_macs(tiny_model.config)
    with pytest.raises(VitedgeError, match="constant"):
        with_merges(tiny_model, {0: Merge(9)}).config.merged_alike()
    with pytest.raises(ValueError, match="groups"):
        Merge(4, (0, 1, 1, 2))


def test_counts_agree_with_torch_where_tokens_are_merged(tiny_model) -> None:
    """Attention and Linears; what merging itself costs is scatter and argmax here, and small products in the graph."""
    from torch.utils.flop_counter import FlopCounterMode

    model = with_merges(tiny_model, {0: Merge(9, (0, *range(1, 9), *range(1, 9)), matched=False)})
    for site in model.sites().values():
        site.register_forward_hook(lambda *a: None)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    assert model_macs(model.config) - 17 * 9 * 32 == counter.get_total_flops() // 2


def test_attention_is_drawn_back_to_the_whole_grid(tiny_model) -> None:
    from vitedge.report.attention import rollout

    pixels = torch.randn(2, 3, 32, 32).numpy()
    dense, merged = rollout(tiny_model, pixels), rollout(with_merges(tiny_model, {0: Merge(12)}), pixels)
    assert merged.shape == dense.shape == (2, 4, 4)
    # Merging 5 of 17 tokens leaves nearly the same map, and its sum does not depend on how they are grouped.
    assert abs(merged.sum() - dense.sum()) < 0.05 * dense.sum()


def test_the_same_groups_again(tiny_model) -> None:
    """What a transform is checked with: pairs that are equally near, but for rounding, are the same ones."""
    model = with_merges(tiny_model, {0: Merge(12)})
    other = copy.deepcopy(model)  # `with_merges` shares its weights
    with torch.no_grad():
        next(iter(other.encoder())).attention.out.weight += 0.3 * torch.randn(32, 32)
    batches = torch.randn(4, 3, 32, 32).split(2)
    with torch.inference_mode():
        with merge_history(model) as groups:
            for batch in batches:
                model(batch)
        with replaying(other, groups), merge_history(other) as again:
            for batch in batches:
                other(batch)
        with merge_history(other) as own:
            other(batches[0])
    assert all(torch.equal(a, b) for a, b in zip(groups, again, strict=True))
    assert not torch.equal(own[0], groups[0])
