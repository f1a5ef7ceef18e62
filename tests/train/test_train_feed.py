"""The order and the random changes are functions of the seed and the place in the run alone."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from vitedge.data.preprocess import Preprocess
from vitedge.train.augment import make_augment, make_mix
from vitedge.train.feed import Order, Samples, feed
from vitedge.train.images import Pixels
from vitedge.train.options import AugmentOptions


def test_every_image_once_an_epoch_and_none_dropped() -> None:
    keys = [key for batch in islice(Order(10, 4, seed=3), 5) for key in batch]
    for epoch in (0, 1):
        assert sorted(i for i, e in keys if e == epoch) == list(range(10))
    assert [i for i, e in keys if e == 0] != [i for i, e in keys if e == 1]


def test_two_processes_share_what_one_with_twice_the_batch_sees() -> None:
    one = list(islice(Order(23, 8, seed=1), 9))
    parts = [list(islice(Order(23, 4, rank=r, world=2, seed=1), 9)) for r in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == one


def test_accumulation_and_resume_go_on_in_the_same_order() -> None:
    whole = [key for batch in islice(Order(7, 6, seed=2), 6) for key in batch]
    small = [key for batch in islice(Order(7, 3, accumulate=2, seed=2), 12) for key in batch]
    later = [key for batch in islice(Order(7, 3, accumulate=2, seed=2, start=4), 4) for key in batch]
    assert small == whole
    assert later == whole[24:]


def _samples(options: AugmentOptions) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    targets = torch.eye(8)
    preprocess = Preprocess(20, 16)
    return Samples(
        Pixels(pixels, targets), augment=make_augment(options, preprocess), mix=make_mix(options), seed=5
    )


def test_augmentation_depends_on_seed_epoch_and_image_only() -> None:
    options = AugmentOptions(jitter=0.4, randaugment=9, mixup=0.2, cutmix=1.0)
    samples = _samples(options)
    first = samples.__getitems__([(0, 0), (1, 0), (2, 0)])
    torch.manual_seed(99)
    again = samples.__getitems__([(0, 0), (1, 0), (2, 0)])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], samples.__getitems__([(0, 1), (1, 1), (2, 1)])[0])
    assert first[0].shape == (3, 3, 16, 16)
    assert first[0].dtype == torch.uint8


def test_worker_processes_give_the_same_batches() -> None:
    samples = _samples(AugmentOptions(jitter=0.4))
    here = list(islice(feed(samples, Order(8, 3, seed=1)), 4))
    there = list(islice(feed(samples, Order(8, 3, seed=1), workers=2), 4))
    for (a, s), (b, t) in zip(here, there, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(s, t)


def test_mixing_keeps_the_shares() -> None:
    for options in (AugmentOptions(mixup=0.8), AugmentOptions(cutmix=1.0)):
        mix = make_mix(options)
        assert mix is not None
        pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        pixels[1] = 200
        mixed, targets = mix(pixels, torch.eye(2))
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        # The share of the second image is the share of its brightness.
        assert abs(float(mixed[0].float().mean()) / 200 - float(targets[0, 1])) < 0.01
    assert make_mix(AugmentOptions()) is None
