from __future__ import annotations

import json

import pytest

from vitedge.report.tables import load_tables, parse_table


def test_tables_come_in_the_order_of_their_files_and_a_bad_file_is_named(tmp_path):
    def write(name, value):
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))

    write("30-b.json", {"title": "B", "columns": ["layer", "sqnr_db"], "rows": [["fc1", 31.5], ["fc2", None]]})
    write(
        "10-a.json",
        {
            "tables": [
                {"title": "A1", "columns": ["x"], "rows": []},
                {"title": "A2", "columns": [], "rows": []},
            ]
        },
    )
    write("20-broken.json", "{")
    write("40-short.json", {"title": "S", "columns": ["a", "b"], "rows": [[1]]})
    tables, problems = load_tables(tmp_path)
    assert [table.title for table in tables] == ["A1", "A2", "B"]
    assert tables[2].column("sqnr_db") == [31.5, None]
    assert [line.split(":")[0] for line in problems] == ["analysis/20-broken.json", "analysis/40-short.json"]
    assert "row 0 has 1 cells for 2 columns" in problems[1]


def test_no_folder_is_no_table(tmp_path):
    assert load_tables(tmp_path / "missing") == ([], [])


def test_what_is_no_figure_is_none_and_unknown_bars_are_refused():
    assert parse_table({"title": "T", "columns": ["a"], "rows": [[float("nan")]]}).rows == ((None,),)
    with pytest.raises(ValueError, match="bars names no column: b"):
        parse_table({"title": "T", "columns": ["a"], "rows": [], "bars": ["b"]})
    with pytest.raises(ValueError, match="no columns and no rows"):
        parse_table({"title": "T"})
