"""Each block of a quantised model trained by itself to what the teacher's block writes, one after another.

As BRECQ (arXiv 2102.05426) does, on the inputs that the quantised blocks before it deliver: every token of every
picture says what a block should write, so that few pictures teach much, and no gradient leaves the block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.prune.store import mixed, pack, through
from vitedge.train.feed import Order, Samples
from vitedge.train.pictures import Normalizer
from vitedge.train.schedule import lr_factor
from vitedge.train.stream import Rotated, normalized
from vitedge.vit.model import VisionTransformer

MOST_VIEWS = 3
WARMUP = 0.05
Groups = Callable[[nn.Module], list[dict[str, Any]]]


def fit_blocks(
    student: VisionTransformer,
    teacher: VisionTransformer,
    samples: Samples,
    preprocess: Preprocess,
    compare: Rotated,
    groups: Groups,
    *,
    steps: int,
    batch: int,
    lr: float,
    seconds: float = math.inf,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> list[tuple[float, float]]:
    """Trains the blocks in place, `steps` steps of Adam each, or as many as there is time for; on the CPU.

    Args:
        groups: what of a block learns, with a `scale` of the peak learning rate `lr`.
        seconds: bound of the wall time of the steps; every block gets its share.
        advance: told of each block.

    Returns:
        The loss of each block, over the first and the last eighth of its steps.

    Raises VitedgeError where a loss is no longer a number.
    """
    # The more is drawn, the more there should be to draw from.
    views = min(MOST_VIEWS, max(1, math.ceil(steps * batch / len(samples))))
    ours, theirs = _embedded(student, teacher, samples, Normalizer(preprocess), views, seed)
    generator = torch.Generator().manual_seed(seed)
    found, last = [], len(student.blocks) - 1
    for index, (block, other) in enumerate(zip(student.blocks, teacher.blocks, strict=True)):
        queries = 1 if index == last else None
        goal = through(partial(other, queries=queries), theirs)
        optimizer = torch.optim.Adam(groups(block), lr=lr, betas=(0.9, 0.99))
        losses, started = [], time.monotonic()
        for step, picked in enumerate(_drawn(len(ours), batch, steps, generator)):
            done = max(step / steps, (time.monotonic() - started) * len(student.blocks) / seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"] * lr_factor(max(done, 1 / steps), WARMUP, 0.0)
            with mixed():
                made = block(ours[picked].float(), queries)
            loss = (normalized(made) - compare.goal(goal[picked])).square().mean()
            losses.append(float(loss.detach()))
            if not losses[-1] < float("inf"):
                raise VitedgeError(
                    f"The loss of block {index} is no longer a number at step {step + 1}.",
                    "The training has diverged.",
                    "Lower qat.block_lr in the configuration.",
                    exit_code=1,
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ours, theirs = through(partial(block, queries=queries), ours), goal
        few = max(1, len(losses) // 8)
        found.append((sum(losses[:few]) / few, sum(losses[-few:]) / few))
        advance(1)
    return found


@torch.no_grad()
def _embedded(
    student: VisionTransformer,
    teacher: VisionTransformer,
    samples: Samples,
    normalize: Normalizer,
    views: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Both models' streams before block 0, [views * I, N, C] in float16."""
    order, parts = Order(len(samples), 16, seed=seed), []
    for keys in order:
        pixels = normalize(samples.__getitems__(keys)[0])
        parts.append((pack(student.embed(pixels)), pack(teacher.embed(pixels))))
        if len(parts) * 16 >= views * len(samples):
            break
    ours, theirs = zip(*parts, strict=True)
    return torch.cat(ours), torch.cat(theirs)


def _drawn(count: int, batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """What each step looks at: permutations of `count`, one after another."""
    need = steps * batch
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-need // count))]
    return list(torch.cat(rounds)[:need].split(batch)) if need else []
