"""The board's own profile of layers, read as `eval_perf` prints it, and the estimate from a published one."""

# ruff: noqa: E501
from __future__ import annotations

import pytest

from vitedge import targets
from vitedge.errors import VitedgeError
from vitedge.targets.rknn import latency
from vitedge.vit.block import Merge
from vitedge.vit.config import uniform

# Rows of airockchip/rknn_model_zoo#366, with the header that rknn-toolkit2 2.3 prints.
PERF = """
 Network Layer Information Table
ID   OpType             DataType Target InputShape                               OutputShape            Cycles(DDR/NPU/Total)    Time(us)     MacUsage(%)          WorkLoad(0/1/2)      RW(KB)       FullName
30   Conv               FLOAT16  NPU    (4,384,1,257),(384,384,1,1),(384)        (4,384,1,257)          79288/313344/313344      410          72.21/0.00/0.00      100.0%/0.0%/0.0%     1060         Conv:layer.1/value/MatMul#2
33   Reshape            FLOAT16  NPU    (4,384,1,257),(4)                        (24,64,1,257)          0/0/0                    0                                 0.0%/0.0%/0.0%       771          Reshape:Transpose_output_0_rs
130  exSDPAttention     FLOAT16  NPU    (24,64,1,257),(24,64,1,257),...          (24,64,1,257)          0/0/0                    5971                              100.0%/0.0%/0.0%     2313         exSDPAttention:MatMul_1#1_2sdpa
132  ConvAdd            FLOAT16  NPU    (4,384,1,257),(384,384,1,1),(384),...    (4,384,1,257)          112665/313344/313344     412          71.86/0.00/0.00      100.0%/0.0%/0.0%     1831         Conv:dense/MatMul#2_ConvAdd
133  exNorm             FLOAT16  NPU    (4,384,1,257),(1,384,1,1),...            (4,384,1,257)          0/0/0                    768                               100.0%/0.0%/0.0%     774          exNorm:norm2
134  ConvExGelu         FLOAT16  NPU    (4,384,1,257),(1536,384,1,1),(1536)      (4,1536,1,257)         217017/1253376/1253376   2091         56.64/0.00/0.00      100.0%/0.0%/0.0%     1929         Conv:fc1
"""


def test_the_profile_of_a_board() -> None:
    found = latency.coefficients(latency.parse_perf(PERF))
    # 34 GMAC/s for attention, 369 for products, 1.95 and 0.28 ns an element of LayerNorm and GELU.
    assert 1 / found["attention"] == pytest.approx(34, rel=0.01)
    assert 1 / found["linear"] == pytest.approx(369, rel=0.01)
    assert found["norm"] == pytest.approx(1.945, rel=0.01)
    assert found["activation"] == pytest.approx(0.285, rel=0.02)
    model = targets.get("rknn").latency_model("fp16", "rk3588", PERF)
    assert model is not None and not model.estimated and model.coefficients["attention"] == found["attention"]


def test_the_estimate_says_what_it_is() -> None:
    dense = uniform(image_size=224, patch_size=16, width=192, depth=12, heads=3, hidden=768, classes=1000)
    model = targets.get("rknn").latency_model("int8", "rk3588")
    assert model is not None and model.estimated and "rknn_model_zoo#366" in model.label
    whole, merged = model.predict(dense), model.predict(dense.with_block(4, merge=Merge(99)))
    assert whole.by_kind["attention"] > 3 * whole.by_kind["linear"]
    assert merged.ms < 0.7 * whole.ms


def test_a_text_without_times_is_refused() -> None:
    with pytest.raises(VitedgeError, match="no times"):
        latency.parse_perf("E RKNN: nothing here")
    without = "\n".join(line for line in PERF.splitlines() if "exNorm" not in line)
    with pytest.raises(VitedgeError, match="no row of norm"):
        latency.from_board(without, "fp16", None, "a test")
