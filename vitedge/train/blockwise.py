"""Each block of a quantised model trained by itself to what the teacher's block writes, one after another.

As BRECQ (arXiv 2102.05426) does, on the inputs that the quantised blocks before it deliver: every token of every
image says what a block should write, so that few images teach much, and no gradient leaves the block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.prune.store import matched, mixed, pack, pooled, through
from vitedge.reporter import Reporter
from vitedge.tokens.matching import compose
from vitedge.train import state as states
from vitedge.train.feed import Order, Samples
from vitedge.train.images import Normalizer
from vitedge.train.schedule import ParameterGroups, lr_factor
from vitedge.train.state import State
from vitedge.train.stream import Rotated
from vitedge.vit.architecture import Architecture
from vitedge.vit.layers import Block

MOST_VIEWS = 3
WARMUP = 0.05
Groups = Callable[[nn.Module], ParameterGroups]


def fit_blocks(
    student: Architecture,
    teacher: Architecture,
    samples: Samples,
    preprocess: Preprocess,
    compare: Sequence[Rotated],
    groups: Groups,
    *,
    steps: int,
    batch: int,
    lr: float,
    seconds: float = math.inf,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
    state_file: Path | None = None,
    identity: Mapping[str, object] | None = None,
    reporter: Reporter | None = None,
) -> float:
    """Trains the blocks in place, `steps` steps of Adam each, or as many as there is time for; on the CPU.

    Args:
        compare: one a block.
        groups: what of a block learns, with a `scale` of the peak learning rate `lr`.
        seconds: bound of the wall time of the steps; every block gets its share.
        advance: told of each block.
        state_file: keeps the blocks that are done, for a run that is killed; it goes on from the next one.
        identity: what a resumed run must share: the model, the options, the images.
        reporter: told where a resumed run goes on.

    Returns:
        Seconds that went into these blocks before this run was killed; 0 where it was not.

    Raises VitedgeError where a loss is no longer a number.
    """
    identity = identity or {}
    state, last = _restore(student, state_file, identity), len(student.blocks) - 1
    earlier, began = state.seconds, time.monotonic()
    if state.step and reporter is not None:
        reporter.info(f"going on after block {state.step} of {len(student.blocks)}")
    if state.step > last:
        return earlier
    # The more is drawn, the more there should be to draw from.
    views = min(MOST_VIEWS, max(1, math.ceil(steps * batch / len(samples))))
    ours, theirs = _embedded(student, teacher, samples, Normalizer(preprocess), views, seed)
    generator = torch.Generator().manual_seed(seed)
    history: Tensor | None = None  # where each of the teacher's tokens is in the student
    for index, (block, other) in enumerate(zip(student.blocks, teacher.blocks, strict=True)):
        # While a block learns its groups stay; the teacher merges as it does, or the goal is the mean of its tokens.
        assert isinstance(block, Block) and isinstance(other, Block)
        merged = () if block.merge is None else (matched(block.merge, through(block.attend_unmerged, ours)),)
        theirs = through(other, theirs, *(merged if other.merge is not None else ()))
        history = compose(history, *merged) if merged and other.merge is None else history
        goal = pooled(theirs[..., : block.width], history)
        optimizer = torch.optim.Adam(groups(block), lr=lr, betas=(0.9, 0.99))
        drawn, started = _drawn(len(ours), batch, steps, generator), time.monotonic()
        # A block that an earlier run has done takes its draws, and only delivers what the next one reads.
        for step, picked in enumerate(drawn if index >= state.step else []):
            done = max(step / steps, (time.monotonic() - started) * len(student.blocks) / seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"] * lr_factor(max(done, 1 / steps), WARMUP, 0.0)
            with mixed():
                made = block(ours[picked].float(), *(part[picked] for part in merged))[..., : block.width]
            loss = compare[index](made, goal[picked].float())
            if not torch.isfinite(loss):
                raise VitedgeError(
                    f"The loss of block {index} is no longer a number at step {step + 1}.",
                    "The training has diverged.",
                    "Lower qat.block_lr in the configuration (--config FILE).",
                    exit_code=1,
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ours = through(block, ours, *merged)
        if state_file is not None and index >= state.step:
            state = State(index + 1, earlier + time.monotonic() - began, weights=student.state_dict())
            states.save(state_file, state, {}, identity)
        advance(1)
    return earlier


def _restore(student: Architecture, state_file: Path | None, identity: Mapping[str, object]) -> State:
    """The state in the file, its weights taken over; `step` is the number of blocks that are done."""
    found = None if state_file is None else states.load(state_file, identity)
    if found is None:
        return State()
    student.load_state_dict(found[0].weights)
    return found[0]


@torch.no_grad()
def _embedded(
    student: Architecture,
    teacher: Architecture,
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
