"""A quantised model's arithmetic as runtimes have it.

Products as integer kernels compute them: integers are multiplied, their exact sum is scaled once, the bias added.

In float, products of dequantised values are rounded at every addition, in an order that every library chooses for
itself. With everything in INT8 the last bit of a sum decides, now and then, which way a value is rounded; one step
there moves others, and a dozen blocks later the noise of two such models is as good as independent. Sums of integers
have no order. What stays float (LayerNorm, softmax, GELU) is written out in the runtime's steps, so that it differs in
the last bit at most. `benchmarks/simulation.py` measures what that is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitedge.data.preprocess import Preprocess
from vitedge.quant.scheme import Activation, Weight
from vitedge.vit.convolution import convolve
from vitedge.vit.layers import MatMul

_SQRT2, _SQRT_2_PI = float(np.float32(np.sqrt(2))), float(np.float32(np.sqrt(2 / np.pi)))


@dataclass(frozen=True)
class Product:
    """One product of a layer, as it stands in the graph.

    Attributes:
        rows, columns: its place in the layer's weight [out, in].
        source: how its input is rounded, None where that is float.
        weight: integers [in, out] with a scale a column, or floats [in, out].
        bias: [out], float32, None where the graph adds none here.
    """

    rows: slice
    columns: slice
    source: Activation | None
    weight: Weight | Tensor
    bias: Tensor | None


class IntegerLinear(nn.Module):
    """A Linear of one or several products: those of different rows are joined, those of different columns added."""

    def __init__(self, products: Sequence[Product]) -> None:
        super().__init__()
        self.products = tuple(products)
        for number, product in enumerate(products):
            scale = None
            if not isinstance(product.weight, Weight):
                weight = product.weight
            elif product.source is None:
                weight = torch.from_numpy(product.weight.dequantize())
            else:
                weight = torch.from_numpy(product.weight.values.astype("float32"))
                scale = torch.tensor(product.source.scale) * torch.from_numpy(product.weight.scale)
            self.register_buffer(f"weight{number}", weight.T.contiguous())
            self.register_buffer(f"scale{number}", scale)
            self.register_buffer(f"bias{number}", product.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        outputs = [self._product(number, x[..., product.columns]) for number, product in enumerate(self.products)]
        if len({(product.rows.start, product.rows.stop) for product in self.products}) > 1:
            return torch.cat(outputs, -1)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total

    def _product(self, number: int, x: Tensor) -> Tensor:
        weight, bias, scale = (getattr(self, f"{kind}{number}") for kind in ("weight", "bias", "scale"))
        source = self.products[number].source
        if scale is None or source is None:
            return F.linear(x, weight, bias)
        y = F.linear(codes(x, source), weight) * scale
        return y if bias is None else y + bias


class IntegerConv(nn.Module):
    """A convolution of rounded values; or, with `source` the preprocessing, of the pixels themselves, found again from
    normalised images [B, channels, H, W]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weight: Weight,
        bias: Tensor,
        source: Activation | Preprocess,
        stride: tuple[int, ...],
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.stride, self.pads, self.groups = source, stride, pads, groups
        scale = torch.from_numpy(weight.scale)[:, None, None]
        self.register_buffer("weight", torch.from_numpy(weight.values.astype("float32")))
        self.register_buffer("bias", bias[:, None, None])
        mean = std = None
        if isinstance(source, Activation):
            scale = torch.tensor(source.scale) * scale
        else:
            mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
        self.register_buffer("scale", scale)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out, rows, columns]."""
        if isinstance(self.source, Activation):
            integers = codes(x, self.source)
        else:
            integers = ((x * self.std + self.mean) * 255).round()
        return convolve(integers, self.weight, None, self.stride, self.pads, self.groups) * self.scale + self.bias


class ByGroups(nn.Module):
    """Depthwise convolutions side by side, each of its own channels `rows` (first, one past the last)."""

    def __init__(self, parts: Sequence[nn.Module], rows: Sequence[tuple[int, int] | None]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.rows = [slice(*span) if span else slice(None) for span in rows]

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, channels, H, W]."""
        return torch.cat([part(x[:, rows]) for part, rows in zip(self.parts, self.rows, strict=True)], 1)


class IntegerMatMul(MatMul):
    """The product of two rounded activations."""

    scale: Tensor

    def __init__(self, a: Activation, b: Activation) -> None:
        super().__init__()
        self.a, self.b = a, b
        self.register_buffer("scale", torch.tensor(a.scale) * torch.tensor(b.scale))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return codes(a, self.a) @ codes(b, self.b) * self.scale


class KernelNorm(nn.LayerNorm):
    """LayerNorm [..., width] added up in the order of ONNX Runtime's AVX2 kernel (1.31, `MlasLayerNormF32`).

    Its sums are of floats, so that their order tells: this one is the kernel's, bit for bit. The mean is taken in
    float64; squares are summed in 8 lanes by fused multiply-adds, the lanes by halves.
    """

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> KernelNorm:
        """With the weights of `norm`."""
        made = cls(norm.normalized_shape, eps=norm.eps)  # type: ignore[arg-type]
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        away = x - x.double().mean(-1, keepdim=True).float()
        if width % 8 or x.device.type != "cpu":
            variance = away.double().square().mean(-1, keepdim=True).float()
        else:
            # A product of two floats is exact in double: rounding after the addition is what fusing means.
            lanes = x.new_zeros(*x.shape[:-1], 8)
            for part in away.double().square_().split(8, -1):
                lanes = (part + lanes).float()
            while lanes.shape[-1] > 1:
                lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
            variance = lanes / width
        # torch's own float32 root is not always the nearest one; by way of float64 it is.
        y = away * (1 / (variance + self.eps).double().sqrt().float())
        return (y.double() * self.weight + self.bias).float()


class KernelSoftmax(nn.Softmax):
    """Softmax over the last axis as runtimes write it, times the inverse of the sum; each step to the nearest float."""

    def forward(self, x: Tensor) -> Tensor:
        e = (x - x.amax(-1, keepdim=True)).double().exp().float()
        return e * (1 / e.double().sum(-1, keepdim=True).float())


class KernelGelu(nn.Module):
    """GELU in the steps of the exported graph, each to the nearest float."""

    def forward(self, x: Tensor) -> Tensor:
        return x * ((x / _SQRT2).double().erf().float() + 1) * 0.5


class KernelTanhGelu(nn.Module):
    """The same of GELU by tanh."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x * x * x * 0.044715 + x) * _SQRT_2_PI
        return (x * 0.5) * (y.double().tanh().float() + 1)


class KernelSigmoid(nn.Module):
    """The same of x * sigmoid(factor * x): SiLU, and CLIP's GELU."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * (x * self.factor).double().sigmoid().float()


# Activation of an MLP -> its form in the runtime's steps.
KERNELS: dict[str, Callable[[], nn.Module]] = {
    "gelu": KernelGelu,
    "gelu_tanh": KernelTanhGelu,
    "quick_gelu": partial(KernelSigmoid, 1.702),
    "swiglu": KernelSigmoid,
}


def codes(x: Tensor, to: Activation) -> Tensor:
    """The integers less their zero point, as floats, of values that were rounded so."""
    return (x / to.scale).round()
