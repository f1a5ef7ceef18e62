"""Which widths a target's hardware turns into speed: it computes in tiles, and a part of a tile costs a whole one."""

from __future__ import annotations

import math

from vitedge import targets
from vitedge.errors import VitedgeError
from vitedge.prune.options import PruneOptions


def aligned_for_target(options: PruneOptions) -> PruneOptions:
    """The options with alignments that `options.prune_target` rewards; unchanged without a target.

    A head alignment of 0 stays 0. Raises VitedgeError for a target that isn't known.
    """
    if options.prune_target is None:
        return options
    if options.prune_target not in targets.names():
        raise VitedgeError(
            f"Nothing is known of the widths that '{options.prune_target}' rewards.",
            "",
            f"Choose one of {', '.join(targets.names())}, or set --align and --head-align yourself.",
        )
    units, dims = targets.get(options.prune_target).tiles
    return options.model_copy(
        update={"align": math.lcm(options.align, units), "head_align": math.lcm(options.head_align, dims)}
    )
