"""Which widths a target's hardware turns into speed: it computes in tiles, and a part of a tile costs a whole one."""

from __future__ import annotations

import math

from vitedge.errors import VitedgeError
from vitedge.prune.options import PruneOptions

# Target -> (MLP units, dims of a head) that are computed together. INT8 products on an RKNN NPU take channels by 32;
# tensor cores take 32 INT8 or 16 FP16 values at once, and TensorRT's fused attention begins at heads of 16; an AVX512
# register holds 16 float32 values.
TILES = {"rknn": (32, 32), "tensorrt": (32, 16), "onnxruntime": (16, 16), "openvino": (16, 16)}


def aligned_for_target(options: PruneOptions) -> PruneOptions:
    """The options with alignments that `options.prune_target` rewards; unchanged without a target.

    A head alignment of 0 stays 0. Raises VitedgeError for a target that isn't known.
    """
    if options.prune_target is None:
        return options
    if options.prune_target not in TILES:
        raise VitedgeError(
            f"Nothing is known of the widths that '{options.prune_target}' rewards.",
            "",
            f"Choose one of {', '.join(TILES)}, or set --align and --head-align yourself.",
        )
    units, dims = TILES[options.prune_target]
    return options.model_copy(
        update={"align": math.lcm(options.align, units), "head_align": math.lcm(options.head_align, dims)}
    )
