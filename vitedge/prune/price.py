"""What a model and its parts cost, in the unit that a share is counted in: MACs, parameters, or predicted time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vitedge.cost import store
from vitedge.cost.model import LatencyModel
from vitedge.cost.terms import attention_terms, merge_terms, mlp_terms, model_terms
from vitedge.errors import VitedgeError
from vitedge.prune.options import PruneOptions
from vitedge.vit.block import BlockConfig, BlockTokens
from vitedge.vit.config import ViTConfig
from vitedge.vit.macs import attention_macs, block_params, merging_macs, mlp_macs, model_macs, model_params


class Price(Protocol):
    """A unit of cost, in whole numbers."""

    tokens: bool  # whether fewer tokens cost less

    def whole(self, config: ViTConfig) -> int:
        """Of the model, one image as exported."""
        ...

    def part(self, width: int, block: BlockConfig, at: BlockTokens) -> int:
        """Of what `block` of a stream `width` wide has, attention or MLP or both, over so many tokens."""
        ...

    def merge(self, config: ViTConfig, tokens: int, left: int, *, matched: bool) -> int:
        """Of merging `tokens` into `left`."""
        ...


class Macs(Price):
    """Multiply-accumulates."""

    tokens = True

    def whole(self, config: ViTConfig) -> int:
        return model_macs(config)

    def part(self, width: int, block: BlockConfig, at: BlockTokens) -> int:
        return attention_macs(width, block, at) + mlp_macs(width, block, at)

    def merge(self, config: ViTConfig, tokens: int, left: int, *, matched: bool) -> int:
        return merging_macs(config, tokens, left, matched=matched)


class Params(Price):
    """Parameters."""

    tokens = False

    def whole(self, config: ViTConfig) -> int:
        return model_params(config)

    def part(self, width: int, block: BlockConfig, at: BlockTokens) -> int:
        return block_params(width, block)

    def merge(self, config: ViTConfig, tokens: int, left: int, *, matched: bool) -> int:
        return 0


@dataclass(frozen=True)
class Time(Price):
    """Predicted nanoseconds."""

    latency: LatencyModel
    tokens = True

    def whole(self, config: ViTConfig) -> int:
        return self.latency.nanoseconds(model_terms(config))

    def part(self, width: int, block: BlockConfig, at: BlockTokens) -> int:
        terms = attention_terms("", width, block, at) if block.heads else []
        return self.latency.nanoseconds(terms + (mlp_terms("", width, block, at.mlp) if block.hidden else []))

    def merge(self, config: ViTConfig, tokens: int, left: int, *, matched: bool) -> int:
        return self.latency.nanoseconds(merge_terms("", config, tokens, left, matched=matched))


def price_of(config: ViTConfig, options: PruneOptions) -> Price:
    """The unit that `options` count in. Raises VitedgeError where nothing is known of the target's time."""
    if options.prune_unit == "macs":
        return Macs()
    return Params() if options.prune_unit == "params" else Time(latency_model(config, options))


def latency_model(config: ViTConfig, options: PruneOptions) -> LatencyModel:
    """What is known of the time that `prune_target` takes: see `vitedge profile`. Raises VitedgeError."""
    target, _, precision = (options.prune_target or "").partition(":")
    if not target:
        raise VitedgeError(
            "--prune-unit time needs --prune-target.", "Time is that of a target.", "Add such as --prune-target rknn."
        )
    from vitedge import targets

    precision = precision or targets.get(target).precisions[0]
    found = store.find(target, precision, None, config.width)
    if found is None:
        raise VitedgeError(
            f"Nothing is known of the time that '{target}' takes in {precision} for a width of {config.width}.",
            "",
            f"Measure it: vitedge profile MODEL --target {target} --precision {precision}",
        )
    return found
