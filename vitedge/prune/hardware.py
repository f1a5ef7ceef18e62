"""Which widths a target's hardware turns into speed: it computes in tiles, and a part of a tile costs a whole one."""

from __future__ import annotations

import math

from vitedge import targets
from vitedge.errors import VitedgeError
from vitedge.prune.options import PruneOptions


def aligned_for_target(options: PruneOptions) -> PruneOptions:
    """The options with alignments that `options.prune_target` rewards, and the way to merge tokens that it can.

    Without a target each image's own tokens are matched. A head alignment of 0 stays 0. Raises VitedgeError for a
    target that isn't known, and for one that cannot match.
    """
    if options.prune_target is None:
        return options.model_copy(update={"merge": "matched"}) if options.merge == "auto" else options
    name = options.prune_target.partition(":")[0]
    if name not in targets.names():
        raise VitedgeError(
            f"Nothing is known of the widths that '{options.prune_target}' rewards.",
            "",
            f"Choose one of {', '.join(targets.names())}, or set --align and --head-align yourself.",
        )
    target = targets.get(name)
    units, dims = target.tiles
    changes: dict[str, int | str] = {"align": math.lcm(options.align, units)}
    changes["head_align"] = math.lcm(options.head_align, dims)
    if options.merge == "matched" and not target.sorts:
        raise VitedgeError(
            f"The compiler of '{options.prune_target}' cannot sort, so it cannot match each image's tokens.",
            "",
            "Leave --merge out, or give --merge constant.",
        )
    if options.merge == "auto":
        changes["merge"] = "matched" if target.sorts else "constant"
    return options.model_copy(update=changes)
