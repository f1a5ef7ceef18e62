"""Ranges of activations, channel by channel, streamed over calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitedge.errors import VitedgeError
from vitedge.vit.architecture import Architecture
from vitedge.vit.products import NORMALIZED
from vitedge.vit.stem import PREFIX

Batches = Callable[[], Iterator[Tensor]]


@dataclass
class ChannelStats:
    """Statistics of one site over all tokens, per channel [C]; float64 sums, so memory is fixed."""

    minimum: Tensor
    maximum: Tensor
    total: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def empty(cls, channels: int) -> ChannelStats:
        inf = torch.full((channels,), float("inf"))
        zero = torch.zeros(channels, dtype=torch.float64)
        return cls(inf, -inf, zero, zero.clone())

    def update(self, x: Tensor) -> None:
        """`x` [..., C]."""
        flat = x.detach().flatten(0, -2)
        self.minimum = torch.minimum(self.minimum, flat.amin(0))
        self.maximum = torch.maximum(self.maximum, flat.amax(0))
        # float32 within a batch, float64 over batches: exact enough, and much faster.
        self.total += flat.sum(0).double()
        self.squares += flat.square().sum(0).double()
        self.count += len(flat)

    @property
    def absmax(self) -> Tensor:
        """[C]"""
        return torch.maximum(self.maximum, -self.minimum)

    @property
    def mean(self) -> Tensor:
        """[C], float64."""
        return self.total / self.count

    @property
    def energy(self) -> Tensor:
        """Mean square [C], float64."""
        return self.squares / self.count

    def shifted(self, by: Tensor) -> ChannelStats:
        """The statistics of x - by, `by` [C]."""
        total = self.total - self.count * by
        squares = self.squares - 2 * by * self.total + self.count * by.square()
        low, high = self.minimum - by.float(), self.maximum - by.float()
        return ChannelStats(low, high, total, squares.clamp_min(0), self.count)

    @property
    def crest(self) -> float:
        """Largest magnitude over the standard deviation, of the tensor as a whole: what a per-tensor scale
        pays."""
        mean = self.total.sum() / (self.count * len(self.total))
        std = (self.squares.sum() / (self.count * len(self.total)) - mean**2).clamp_min(1e-30).sqrt()
        return float(self.absmax.max() / std)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it is open, `see(name, output)` is called for each output of `modules`."""

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: see(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure(
    model: Architecture, batches: Iterable[Tensor], names: Iterable[str] | None = None
) -> dict[str, ChannelStats]:
    """Site name -> statistics over `batches` (normalised images [B, 3, H, W]) at `names` (all sites by
    default).

    Raises VitedgeError where an activation is NaN or infinite, with the site and the image.
    """
    sites = model.sites()
    wanted = {name: sites[name] for name in (sites if names is None else names)}
    stats: dict[str, ChannelStats] = {}
    seen = 0

    def see(name: str, x: Tensor) -> None:
        if not torch.isfinite(x).all():
            raise non_finite(name, x, seen)
        if name not in stats:
            stats[name] = ChannelStats.empty(x.shape[-1])
        stats[name].update(x)

    with hooked(wanted, see):
        for batch in batches:
            model(batch)
            seen += len(batch)
    if not seen:
        raise VitedgeError(
            "There are no calibration images.", "", "Give a folder of a few hundred images with --calib."
        )
    return stats


def non_finite(name: str, x: Tensor, seen: int) -> VitedgeError:
    """The error for NaN or infinity at site `name`; `seen` images came before the batch `x`."""
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    image = seen + int(bad.nonzero()[0, 0])
    return VitedgeError(
        f"The activation '{name}' is NaN or infinite for calibration image {image} (counted from 0).",
        "Either the weights of the layers up to it are damaged, or the image's pixels are.",
        "Check the checkpoint; without that image the calibration may pass.",
    )


def kind_of(site: str) -> str:
    """The kind of activation a site holds: "residual", "norm", "attention", "probs", "gelu", "stem", "head"..."""
    if site == NORMALIZED or site.startswith(f"{PREFIX}."):
        return "stem"
    last = site.split(".")[-1] if "mlp.gelu" not in site else "gelu"
    if last in ("embed", "residual1", "residual2"):
        return "residual"
    if last in ("norm1", "norm2", "norm"):
        return "norm"
    return last


def crest_by_kind(stats: dict[str, ChannelStats]) -> dict[str, float]:
    """Kind -> the largest absmax over std among the sites of that kind."""
    worst: dict[str, float] = {}
    for name, stat in stats.items():
        kind = kind_of(name)
        worst[kind] = max(worst.get(kind, 0.0), stat.crest)
    return worst
