"""timm's convolutional stems (HybridEmbed): ResNetV2 as in BiT, ResNet, and plain sequences of convolutions.

Weight standardisation and batch norms are folded into the convolutions, in float64; GroupNorm stays, since it depends
on the image (arXiv 2010.11929, section 3.1; 1903.10520).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vitedge.errors import VitedgeError
from vitedge.vit.checkpoint.families.tensors import Tensors, refuse
from vitedge.vit.stem import LAST, Stem, StemLayer

# A class's name -> ours of the activation.
_ACTIVATIONS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "Swish": "silu",
    "Hardswish": "hard_swish",
    "HardSwish": "hard_swish",
    "GELU": "gelu",
}
_CONVOLUTIONS = ("Conv2d", "Conv2dSame", "StdConv2d", "StdConv2dSame")
_POOLS = {"MaxPool2d": "max", "MaxPool2dSame": "max", "AvgPool2d": "mean"}
_IDLE = ("Identity", "Dropout", "DropPath", "DropBlock2d", "ClassifierHead")
_BLOCKS = ("Bottleneck", "BasicBlock")
# Containers whose children stand one behind the other.
_SEQUENCES = {"Sequential", "ModuleDict", "FeatureListNet", "ConvStem", "ConvNormAct", "ResNetV2", "ResNetStage"}
_SEQUENCES |= {"DownsampleConv", "DownsampleAvg"}
_PREFIX = "patch_embed.backbone"


def stem(t: Tensors, embed: Any) -> Stem:
    """The stem of timm's HybridEmbed, its tensors taken out of `t`. Raises VitedgeError for what the architecture has
    not."""
    walk = _Walk(t)
    walk.follow(embed.backbone, _PREFIX)
    if isinstance(embed.proj, nn.Conv2d):
        walk.follow(embed.proj, "patch_embed.proj")
    return walk.finish()


class _Walk:
    """Layers in the order in which a network computes them."""

    def __init__(self, t: Tensors) -> None:
        self.t = t
        self.layers: list[StemLayer] = []
        self.weights: dict[str, tuple[Tensor, Tensor]] = {}  # of convolutions, float64
        self.source = ""  # of the next layer, where that is not the one before it
        self.eps: set[float] = set()

    def follow(self, module: Any, path: str) -> None:
        """Takes in a module whose tensors are named `path`."""
        kind = type(module).__name__
        if kind in _BLOCKS:
            self._block(module, path)
        elif kind in _CONVOLUTIONS:
            self._convolution(module, path)
        elif kind in _POOLS:
            self._pool(module, path)
        elif isinstance(module, nn.BatchNorm2d):
            self._batch_norm(module, path)
        elif isinstance(module, nn.GroupNorm) and kind in ("GroupNorm", "GroupNormAct"):
            self._group_norm(module, path)
        elif act := _activation(module):
            self._behind("an activation", act=act)
        elif kind in _SEQUENCES:
            for name, child in module.named_children():
                self.follow(child, f"{path}.{name}")
        elif kind not in _IDLE:
            raise self._refused(kind)

    def _refused(self, what: str) -> VitedgeError:
        return refuse(self.t.library, f"{what} in its convolutional stem")

    def _add(self, path: str, **fields: Any) -> str:
        name = path.removeprefix(f"{_PREFIX}.").replace(".", "_")
        self.layers.append(StemLayer(name, source=self.source, **fields))
        self.source = ""
        return name

    def _behind(self, what: str, **fields: Any) -> None:
        """What stands behind the last layer: a norm, then a sum, then an activation."""
        last = self.layers[-1] if self.layers else None
        if last is None or last.act or (last.plus and "groups" in fields):
            raise self._refused(f"{what} behind no convolution")
        self.layers[-1] = replace(last, **fields)

    def _convolution(self, conv: Any, path: str) -> None:
        kernel, stride = set(conv.kernel_size), set(conv.stride)
        same = type(conv).__name__ == "Conv2dSame" or getattr(conv, "same_pad", False)
        padding: Any = "same" if same else conv.padding if isinstance(conv.padding, str) else set(conv.padding)
        if len(kernel) > 1 or len(stride) > 1 or conv.groups != 1 or set(conv.dilation) != {1}:
            raise self._refused("a grouped, dilated or oblong convolution")
        if padding != "same" and (isinstance(padding, str) or len(padding) > 1 or conv.padding_mode != "zeros"):
            raise self._refused(f"the padding {conv.padding}")
        weight = self.t.take(f"{path}.weight").double()
        bias = self.t.take(f"{path}.bias").double() if conv.bias is not None else weight.new_zeros(len(weight))
        if type(conv).__name__.startswith("Std"):
            rows = weight.flatten(1)
            scale = (rows.var(1, correction=0) + conv.eps).rsqrt()
            weight = ((rows - rows.mean(1, keepdim=True)) * scale[:, None]).view_as(weight)
        padding = "same" if padding == "same" else padding.pop()
        name = self._add(path, channels=len(weight), kernel=kernel.pop(), stride=stride.pop(), padding=padding)
        self.weights[name] = weight, bias

    def _pool(self, pool: Any, path: str) -> None:
        kernel, stride, padding = (
            {*side} if isinstance(side, tuple) else {side} for side in (pool.kernel_size, pool.stride, pool.padding)
        )
        op, oblong = _POOLS[type(pool).__name__], max(map(len, (kernel, stride, padding))) > 1
        uneven = pool.ceil_mode if op == "max" else any(padding)
        if oblong or uneven or getattr(pool, "dilation", 1) not in (1, (1, 1)):
            raise self._refused("a dilated, oblong or unevenly padded pooling")
        same: Any = "same" if type(pool).__name__.endswith("Same") else padding.pop()
        shape = {"kernel": kernel.pop(), "stride": stride.pop(), "padding": same}
        self._add(path, channels=self.layers[-1].channels, op=op, **shape)

    def _batch_norm(self, norm: Any, path: str) -> None:
        last = self.layers[-1] if self.layers else None
        if last is None or last.op != "conv" or last.value != last.unit:
            raise self._refused("a batch norm behind no convolution")
        gamma, beta, mean, variance = (
            self.t.take(f"{path}.{name}").double() for name in ("weight", "bias", "running_mean", "running_var")
        )
        weight, bias = self.weights[last.name]
        scale = gamma * (variance + norm.eps).rsqrt()
        self.weights[last.name] = weight * scale[:, None, None, None], (bias - mean) * scale + beta
        self.follow(getattr(norm, "act", nn.Identity()), path)

    def _group_norm(self, norm: Any, path: str) -> None:
        self._behind("GroupNorm", groups=norm.num_groups)
        self.eps.add(norm.eps)
        self.t.norm(f"stem.layers.{len(self.layers) - 1}.norm", path)
        self.follow(getattr(norm, "act", nn.Identity()), path)

    def _block(self, block: Any, path: str) -> None:
        """A residual block: its layers, the shortcut added to the last of them, and the activation behind the sum."""
        start = self.layers[-1].name
        shortcut = start
        if block.downsample is not None:
            self.follow(block.downsample, f"{path}.downsample")
            shortcut = self.layers[-1].name
        inner = [(name, child) for name, child in block.named_children() if name != "downsample"]
        last = max(i for i, (_, child) in enumerate(inner) if _activation(child))
        self.source = start
        for name, child in inner[:last]:
            self.follow(child, f"{path}.{name}")
        self._behind("a sum", plus=shortcut)
        for name, child in inner[last:]:
            self.follow(child, f"{path}.{name}")

    def finish(self) -> Stem:
        """The stem, and its tensors in the state dict."""
        last = self.layers[-1]
        if last.op != "conv" or last.value != last.unit:
            raise self._refused("no convolution at the end")
        for index, layer in enumerate(self.layers):
            if layer.op == "conv":
                ours = LAST if layer is last else f"stem.layers.{index}.conv"
                weight, bias = self.weights[layer.name]
                self.t.state |= {f"{ours}.weight": weight.float(), f"{ours}.bias": bias.float()}
        self.layers[-1] = replace(last, name=LAST)
        if len(self.eps) > 1:
            raise self._refused("GroupNorms of different epsilons")
        return Stem(tuple(self.layers), *self.eps)


def _activation(module: Any) -> str:
    """Our name of an activation; "" where it is none that a stem may have."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else ""
    return _ACTIVATIONS.get(type(module).__name__, "")
