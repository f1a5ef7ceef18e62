"""The optimiser and the first weights of the small ViT."""

from __future__ import annotations

import pytest
import torch

from vitedge.train.muon import MuonAdamW, orthogonalize
from vitedge.vit.config import uniform
from vitedge.vit.local_init import cosine_patches, init_local, position_codes, shift


def test_orthogonalize_is_near_the_polar_factor() -> None:
    for shape in ((12, 30), (30, 12)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        result = orthogonalize(matrix)
        values = torch.linalg.svdvals(result)
        assert values.min() > 0.6 and values.max() < 1.3
        cosine = torch.nn.functional.cosine_similarity(result.flatten(), (u @ vt).flatten(), dim=0)
        assert cosine > 0.97


def test_groups_without_muon_are_adamw() -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = MuonAdamW([{"params": [ours], "weight_decay": 0.1}], lr=0.01)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for _ in range(5):
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_shift_moves_the_code_of_a_place() -> None:
    codes, frequencies = position_codes(5, 16)
    moved = codes @ shift(frequencies, 1, 2).T
    at = lambda row, column: row * 5 + column  # noqa: E731
    torch.testing.assert_close(moved[at(1, 2)], codes[at(2, 4)])
    torch.testing.assert_close(moved[at(3, 0)], codes[at(4, 2)])


def test_patches_are_orthogonal() -> None:
    kernels = cosine_patches(4, 48).flatten(1)
    gram = kernels @ kernels.T
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 1e-5
    assert float(gram.diagonal()[3:].min()) == pytest.approx(1)


def test_heads_look_at_their_neighbours() -> None:
    config = uniform(image_size=32, patch_size=4, width=64, depth=2, heads=4, hidden=128, classes=10)
    model = init_local(config).eval()
    seen = []
    model.blocks[0].attention.scores_site.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    scores = seen[0][:, :, 1:, 1:].mean(0)
    # Heads 0 to 3 look right, down, left, up, from the patch in row 3, column 4 of eight.
    for head, (row, column) in enumerate([(3, 5), (4, 4), (3, 3), (2, 4)]):
        assert int(scores[head, 3 * 8 + 4].argmax()) == row * 8 + column
