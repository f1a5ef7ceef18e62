"""What a device can do: its precision, and what to say when its memory is full."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from vitedge.errors import VitedgeError
from vitedge.prune.store import fast_bfloat16


def has_accelerator() -> bool:
    """Whether there is anything but the CPU (`torch.accelerator` is younger than the oldest torch that we take)."""
    return torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware (Ampere and later; AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and fast_bfloat16()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which a forward pass runs: matrix products in bf16 or fp16, or as they are."""
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and has_fast_bf16(device))
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is the allocator's refusal, of CUDA or of the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def out_of_memory(batch: int, accumulate: int, fits: Callable[[int], bool], section: str | None = None) -> VitedgeError:
    """The error for a full memory, with the largest halved batch for which `fits(batch)` was true.

    section: of the configuration, where the options stand; None where they are flags of `vitedge train`.
    """
    smaller, factor = batch // 2, 2
    while smaller >= 1 and not fits(smaller):
        smaller, factor = smaller // 2, factor * 2
    if smaller:
        why = f"A batch of {smaller} fits (tried just now)."
        more = accumulate * factor
        todo = f"Run with --batch {smaller} --accumulate {more}: the steps stay as large."
        if section is not None:
            where = f"{section}.batch = {smaller} and {section}.accumulate = {more}"
            todo = f"Set {where} in the configuration (--config FILE): the steps stay as large."
    else:
        why, todo = "Not even one image fits.", "Use a smaller model or image size, or a larger device."
    return VitedgeError(f"Out of memory at batch {batch}.", why, todo, exit_code=1)
