"""The compiler's own cost table, out of its log.

With `verbose=True` it prints a "Network Layer Information Table": for each layer its type, data type, target (NPU or
CPU), shapes, cycles as DDR/NPU/Total, and kilobytes read and written. Convolutions and matrix products carry cycles;
fused attention, LayerNorm, additions, conversions and reshapes print 0, so a total is a lower bound.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from vitedge import documents
from vitedge.targets.base import CostRow, CostTable

_TITLE = "Network Layer Information Table"
# "D RKNN: [22:42:40.346] 12   ConvExGelu  INT8  NPU  (1,192,1,197),...  (1,768,1,197)  1/2/2  186  Conv:name"
_ROW = re.compile(
    r"^.*?\]\s+\d+\s+(?P<op>\S+)\s+(?P<dtype>\S+)\s+(?P<device>NPU|CPU|GPU)\s+\S.*?\s"
    r"(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+)\s+(?P<kib>\d+)\s+(?P<name>\S+)\s*$"
)
_MEMORY = {
    "weight_kib": re.compile(r"Total Weight Memory Size:\s*([\d.]+)KB"),
    "internal_kib": re.compile(r"Total Internal Memory Size:\s*([\d.]+)KB"),
}
# The operators whose rows carry cycles.
_MODELLED = ("Conv", "MatMul", "exMatMul", "FC", "Gemm")


def parse_layers(log: str) -> CostTable | None:
    """The last table in the log, or None where there is none."""
    start = log.rfind(_TITLE)
    if start < 0:
        return None
    rows: list[CostRow] = []
    for line in log[start:].splitlines()[1:]:
        if match := _ROW.match(line):
            cycles = int(match["total"])
            modelled = cycles > 0 or match["op"].startswith(_MODELLED)
            rows.append(
                CostRow(
                    match["name"],
                    match["op"],
                    match["dtype"].lower(),
                    match["device"].lower(),
                    cycles if modelled else None,
                    float(match["kib"]),
                )
            )
        elif rows and ("<<<<" in line or ">>>>" in line):
            break
    return make_table(rows)


def make_table(rows: list[CostRow]) -> CostTable:
    """The table of these rows, with its total and what the vendor leaves out of it."""
    total = sum(row.cycles for row in rows if row.cycles)
    if not total:
        # The compiler of version 2.5.0 has no cycles for the RK3576.
        return CostTable([replace(row, cycles=None) for row in rows], None, "No cycles are given for this platform.")
    left_out = sorted({row.op for row in rows if row.cycles is None and not row.op.endswith("putOperator")})
    words = f"No cycles are given for {', '.join(left_out)}: the total is a lower bound." if left_out else ""
    return CostTable(rows, total, words)


def parse_memory(log: str) -> dict[str, float]:
    """KiB of weights and of internal tensors, as the compiler reports them last; what it does not say is left out."""
    found = {}
    for name, pattern in _MEMORY.items():
        if matches := pattern.findall(log):
            found[name] = float(matches[-1])
    return found


def cpu_fallbacks(table: CostTable) -> list[str]:
    """The layers that run on the CPU, but for the input's and output's hand-over."""
    return [f"{r.op} {r.name}" for r in table.rows if r.device == "cpu" and not r.op.endswith("putOperator")]


def to_json(table: CostTable) -> dict[str, object]:
    """As metadata holds it."""
    return asdict(table)


def from_json(data: object) -> CostTable:
    """The inverse of `to_json`. Raises VitedgeError where it is no such table."""
    return documents.validate(data, CostTable, "the compiler's cost table")
