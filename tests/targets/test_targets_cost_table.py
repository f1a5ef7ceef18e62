from vitedge.targets.base import CostRow, CostTable
from vitedge.targets.cost_table import summarize


def test_layers_of_a_kind_are_one_row_and_the_total_stands_below():
    rows = [
        CostRow("a", "Conv", "int8", "npu", 100, 5.0),
        CostRow("b", "Reshape", "int8", "cpu", None, 1.0),
        CostRow("c", "Conv", "int8", "npu", 50, 2.0),
        CostRow("d", "Conv", "float16", "npu", 400, None),
    ]
    table = summarize(CostTable(rows, 550, "Reshape is not modelled."), "rknn-int8", 900)
    assert table.rows == (
        ("Conv", "float16", "npu", 1, 400, None),
        ("Conv", "int8", "npu", 2, 150, 7.0),
        ("Reshape", "int8", "cpu", 1, None, 1.0),
        ("total", None, None, 4, 550, 8.0),
        ("as exported, without the target's rewrites", None, None, None, 900, None),
    )
    assert "not measured" in table.note and "Reshape is not modelled." in table.note
