"""The training loop, through `accelerate`: one process or many, CPU or GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitedge.errors import VitedgeError, missing_package
from vitedge.reporter import Reporter
from vitedge.train import state as states
from vitedge.train.average import Average
from vitedge.train.device import autocast, has_accelerator, is_out_of_memory, out_of_memory
from vitedge.train.feed import Order, Samples, feed
from vitedge.train.metrics import MetricsLog
from vitedge.train.options import LoopOptions
from vitedge.train.schedule import ParameterGroups, lr_factor

Row = dict[str, float]


class Task(Protocol):
    """What a kind of training teaches, and what it judges a model by."""

    def loss(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of uint8 images [B, 3, H, W], on the model's device."""
        ...

    def evaluate(self, model: nn.Module) -> Row:
        """Figures of the model as it stands; the best has the highest "score"."""
        ...


@dataclass(frozen=True)
class Fit:
    """How a run went: its best evaluation, why it ended, its steps, images seen, seconds, and all rows."""

    best: Row
    ended: str
    steps: int
    images: int
    seconds: float
    history: list[Row]


def make_accelerator(cpu: bool = False, precision: str = "auto") -> Any:
    """The process's `Accelerator`: what `accelerate launch` or `torchrun` set up, or one device.

    For fp16 it scales the loss, so that small gradients don't become zero. Raises VitedgeError on a CPU.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise missing_package("accelerate", "compress", "Training") from error
    # Without this, processes that were started together on a machine without GPUs would each train alone.
    cpu = cpu or not has_accelerator()
    if precision == "fp16" and cpu:
        raise VitedgeError("fp16 needs a GPU.", "A CPU computes it slower than fp32.", "Use --precision bf16 or auto.")
    return Accelerator(cpu=cpu, mixed_precision="fp16" if precision == "fp16" else None)


def fit(
    model: nn.Module,
    task: Task,
    samples: Samples,
    options: LoopOptions,
    groups: ParameterGroups,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    accelerator: Any = None,
    state_file: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, object] | None = None,
    section: str | None = None,
    log: MetricsLog | None = None,
    progress: Callable[[Row], None] | None = None,
    reporter: Reporter | None = None,
) -> Fit:
    """Trains `model` in place and leaves the best evaluated weights in it.

    Args:
        groups: of `schedule.parameter_groups`, or alike: parameters with a `scale` of the learning rate.
        optimizer: made of these groups; AdamW by default.
        state_file: where the run's state is kept; None keeps none.
        identity: what a resumed run must share beside the options (the architecture, the data).
        section: of the configuration, where the options stand; None where they are flags of `vitedge train`.
        progress: called in the main process with each evaluation's row.
        reporter: told where a resumed run goes on.

    Raises:
        VitedgeError: (exit code 1) the loss is no longer a number, or the memory is full. The model then has
            the best weights so far.
    """
    with torch.random.fork_rng(devices=[]):
        run = _Run(model, task, samples, options, optimizer or groups, accelerator or make_accelerator())
        run.state_file, run.log, run.report = state_file, log, progress
        # A step takes that many times the images: with another number of them it is another training.
        processes = {"number_of_processes": run.accelerator.num_processes}
        run.identity = {**options.identity(), "images": len(samples), **processes, **(identity or {})}
        run.section = section
        if resume and state_file is not None and run.restore(state_file) and reporter is not None:
            reporter.info(f"going on from step {run.state.step}")
        return run.go()


class _Run:
    def __init__(
        self,
        model: nn.Module,
        task: Task,
        samples: Samples,
        options: LoopOptions,
        optimizer: torch.optim.Optimizer | ParameterGroups,
        accelerator: Any,
    ) -> None:
        self.task, self.samples, self.options, self.accelerator = task, samples, options, accelerator
        self.device: torch.device = accelerator.device
        self.model = model.to(self.device)
        if isinstance(optimizer, list):
            fused = self.device.type in ("cpu", "cuda")
            optimizer = torch.optim.AdamW(optimizer, lr=options.lr, fused=fused)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.average = Average(self.model, options.ema) if options.ema else None
        self.state = states.State()
        self.state_file: Path | None = None
        self.log: MetricsLog | None = None
        self.report: Callable[[Row], None] | None = None
        self.identity: Mapping[str, object] = {}
        self.section: str | None = None
        self.step_images = options.batch * options.accumulate * accelerator.num_processes
        self.total = max(1, math.ceil(options.epochs * len(samples) / self.step_images))
        self.losses: list[Tensor] = []
        self.last = self.saved = time.monotonic()
        self.mark = (0, 0.0)  # step and seconds at the last evaluation, for the speed

    # -- time ---------------------------------------------------------------------------------------------

    def clock(self) -> None:
        """Moves `state.seconds` and `state.progress` on; all processes take the first one's time."""
        now = time.monotonic()
        self.state.seconds += now - self.last
        self.last = now
        share = self.state.step / self.total
        if self.options.minutes is not None:
            # Both from one process: they must all end at the same step.
            times = torch.tensor([self.state.seconds, self.state.reserve], device=self.device)
            if self.accelerator.num_processes > 1:
                torch.distributed.broadcast(times, 0)
            seconds, reserve = times.tolist()
            share = max(share, seconds / max(1e-9, self.options.minutes * 60 - reserve))
        self.state.progress = max(self.state.progress, min(1.0, share))

    # -- the loop -----------------------------------------------------------------------------------------

    def go(self) -> Fit:
        self.last = self.saved = time.monotonic()
        o, s = self.options, self.state
        try:
            if not s.history:
                self.evaluate()
            workers = o.workers if o.workers is not None else (0 if self.device.type == "cpu" else 4)
            order = Order(
                len(self.samples),
                o.batch,
                accumulate=o.accumulate,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
                seed=o.seed,
                start=s.step,
                weights=self.samples.weights,
            )
            batches = feed(self.samples, order, workers, pin=self.device.type == "cuda")
            ended = "finished"
            self.clock()
            while s.progress < 1:
                before = math.floor(s.progress * o.evaluations)
                self.step(batches)
                self.clock()
                if math.floor(s.progress * o.evaluations) > before:
                    self.evaluate()
                    if o.patience is not None and s.stale >= o.patience:
                        ended = f"no better score in {s.stale} evaluations"
                        break
                    self.clock()
                self.save()
            if self.losses:
                self.check(self.losses[-1])
            self.save(now=True)
        finally:
            if self.state.weights:
                self.model.load_state_dict(self.state.weights)
            self.accelerator.free_memory()
            self.optimizer.zero_grad(set_to_none=True)
        return Fit(dict(s.best), ended, s.step, s.step * self.step_images, s.seconds, list(s.history))

    def step(self, batches: Any) -> None:
        """One optimiser step: `accumulate` batches forward and backward, clipping, AdamW."""
        o = self.options
        factor = lr_factor(self.state.progress, o.warmup, o.final_lr, o.schedule)
        if o.warmup and self.state.progress < o.warmup:
            # The first step of a run has no progress yet, and should not be lost for it.
            factor = max(factor, min(1.0, 1 / max(1.0, o.warmup * self.total)))
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * group["scale"] * factor
        self.wrapped.train()
        total: Tensor | None = None
        for micro in range(o.accumulate):
            pixels, targets = next(batches)
            pixels = pixels.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            joined = micro == o.accumulate - 1
            try:
                with nullcontext() if joined else self.accelerator.no_sync(self.wrapped):
                    loss = self.forward(pixels, targets) / o.accumulate
                    self.accelerator.backward(loss)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                fits = partial(self.fits, pixels, targets)
                raise out_of_memory(o.batch, o.accumulate, fits, self.section) from error
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), o.clip) if o.clip else total
        # Reading a number waits for a GPU: there the step before is looked at, so that it never runs dry.
        # With fp16 a norm may be infinite: that step is left out, and the loss scaled less.
        self.losses.append(total if self.device.type == "cpu" or o.precision == "fp16" else total + 0 * norm)
        self.check(total + norm if self.device.type == "cpu" else self.losses[-2:][0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        if self.average is not None:
            self.average.update(self.state.step)

    def forward(self, pixels: Tensor, targets: Tensor) -> Tensor:
        with autocast(self.device, self.options.precision):
            return self.task.loss(self.wrapped, pixels, targets)

    def check(self, value: Tensor) -> None:
        """Raises where `value` is no finite number any more."""
        finite = torch.isfinite(value).float()
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite, "sum") / self.accelerator.num_processes
        if float(finite) == 1:
            return
        s, lr = self.state, max(group["lr"] for group in self.optimizer.param_groups)
        epoch = s.step * self.step_images / len(self.samples)
        todo = "Lower --lr, lengthen --warmup, or set --clip 1."
        kept = f"The weights of step {int(s.best['step'])} are kept." if s.best else ""
        if self.section is not None:
            todo, kept = f"Lower {self.section}.lr in the configuration (--config FILE).", ""
        raise VitedgeError(
            f"The loss is no longer a number at step {s.step + 1} (epoch {epoch:.2f}, learning rate {lr:.2g}).",
            f"The training has diverged. {kept}".strip(),
            todo,
            exit_code=1,
        )

    def fits(self, pixels: Tensor, targets: Tensor, batch: int) -> bool:
        """Whether a forward and backward pass of `batch` images finds memory."""
        try:
            with self.accelerator.no_sync(self.wrapped):
                self.forward(pixels[:batch], targets[:batch]).backward()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    # -- evaluation and state -----------------------------------------------------------------------------

    def evaluate(self) -> None:
        """One row of figures; the best weights so far are kept."""
        s, start = self.state, time.monotonic()
        with self.average.applied() if self.average is not None else nullcontext():
            self.wrapped.eval()
            with torch.no_grad(), autocast(self.device, self.options.precision):
                figures = self.task.evaluate(self.model)
            if self.options.best_by == "loss":
                figures = {**figures, "score": -figures["loss"]}
            if not s.best or figures["score"] > s.best["score"]:
                s.best = {"step": float(s.step), **figures}
                s.weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
                s.stale = 0
            else:
                s.stale += 1
        s.reserve = max(s.reserve, time.monotonic() - start)
        row: Row = {"step": float(s.step), "epoch": s.step * self.step_images / len(self.samples)}
        if self.losses:
            row["train_loss"] = float(torch.stack(self.losses).mean())
            row["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
            spent = s.seconds - self.mark[1]
            row["images_per_second"] = (s.step - self.mark[0]) * self.step_images / max(spent, 1e-9)
            self.losses = []
        row |= figures
        s.history.append(row)
        self.clock()
        self.mark = (s.step, s.seconds)
        if self.accelerator.is_main_process:
            if self.log is not None:
                self.log.write(s.history)
            if self.report is not None:
                self.report(row)

    def save(self, now: bool = False) -> None:
        due = now or time.monotonic() - self.saved >= self.options.save_seconds
        if self.state_file is None or not due or not self.accelerator.is_main_process:
            return
        # On a GPU `step` has not looked at its own loss yet; the next one will, and raise.
        if self.losses and not torch.isfinite(self.losses[-1]):
            return
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        tensors["losses"] = self.losses
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        states.save(self.state_file, self.state, tensors, self.identity)
        self.saved = time.monotonic()

    def restore(self, path: Path) -> bool:
        """Takes over the state in `path`; False where there is none."""
        found = states.load(path, self.identity)
        if found is None:
            return False
        self.state, saved = found
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.losses = [loss.to(self.device) for loss in saved["losses"]]
        self.mark = (self.state.step, self.state.seconds)
        return True
