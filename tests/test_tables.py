from __future__ import annotations

import json

import pytest

from vitedge.tables import Table, heading, load_tables, markdown, read_tables, to_json


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
    assert Table.from_dict({"title": "T", "columns": ["a"], "rows": [[float("nan")]]}).rows == ((None,),)
    with pytest.raises(ValueError, match="bars names no column: b"):
        Table.from_dict({"title": "T", "columns": ["a"], "rows": [], "bars": ["b"]})
    with pytest.raises(ValueError, match="no columns and no rows"):
        Table.from_dict({"title": "T"})


def test_a_table_comes_back_from_json_as_it_was():
    made = Table("T", ["a (ms)", "b"], [[1.25, "x"], [None, "y"]], "note", "step", ["a (ms)"], "cmd", {"a (ms)": 1})
    assert read_tables(json.dumps(to_json(made))) == [made]
    assert to_json(Table("T", ["a"], []), step="prune")["tables"][0]["step"] == "prune"


def test_all_cells_of_a_column_have_the_same_number_of_digits():
    table = Table("T", ["top-1", "KL (nats)", "n", "wide"], [[73.25, 0.0012, 1500, 1e-9], [8.0, 1.5, None, 12.0]])
    assert table.texts() == [["73.25", "0.0012", "1,500", "1e-09"], ["8.00", "1.5000", "–", "12"]]
    assert Table("T", ["x"], [[1.23456], [2.0]], decimals={"x": 1}).texts() == [["1.2"], ["2.0"]]


def test_keys_of_older_tables_are_shown_as_words():
    assert [heading(name) for name in ("removed_share", "sqnr_db", "size_mib", "top-1 (%)", "train_loss")] == [
        "removed share",
        "SQNR (dB)",
        "size (MiB)",
        "top-1 (%)",
        "train loss",
    ]


def test_a_wide_table_is_split_and_each_part_begins_with_the_first_column():
    names = [f"column {k}" for k in range(12)]
    table = Table("T", ["artifact", *names], [["onnxruntime-int8", *(float(k) for k in range(12))]])
    parts = table.fitted(80)
    assert len(parts) > 1 and all(part.columns[0] == "artifact" for part in parts)
    assert [name for part in parts for name in part.columns[1:]] == names
    for part in parts:
        lines = [part.headings(), *part.texts()]
        assert sum(max(len(line[at]) for line in lines) + 2 for at in range(len(part.columns))) - 2 <= 80
    assert table.fitted(1000) == [table]


def test_markdown_shows_a_cell_as_it_is():
    text = markdown(Table("T", ["file", "n"], [["<script>alert(1)</script>", 1], ["a|b[/red]_c_\n# x", 2]]))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert r"a\|b\[/red\]\_c\_\\n# x" in text and len(text.splitlines()) == 4


def test_a_file_name_that_is_no_text_can_be_printed():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    text = markdown(Table("T", ["file"], [[name], ["a\x1b[31mb"]]))
    assert r"caf\\udce9.png" in text and "\x1b" not in text
    text.encode("utf-8")


@pytest.mark.parametrize("value", [[], {"tables": 3}, {"title": "T", "columns": "ab", "rows": [[1, 2]]}, 7])
def test_what_is_no_table_is_named(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    tables, problems = load_tables(tmp_path)
    assert (tables, len(problems)) == ([], 1)


def test_the_terminal_gets_tables_no_wider_than_itself(monkeypatch, capsys):
    from rich.console import Console

    from vitedge.cli import console

    monkeypatch.setattr(console, "out", Console(width=60, highlight=False, soft_wrap=True))
    rows = [["onnxruntime-int8", *(k / 7 for k in range(9))]]
    table = Table("[/red] wide", ["artifact", *(f"figure {k}" for k in range(9))], rows, bars=["figure 3"])
    console.print_table(table)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60 and "[/red] wide" in shown and "figure 8" in shown
    assert "#" not in shown  # a bar has no room there
    monkeypatch.setattr(console, "out", Console(width=200, highlight=False, soft_wrap=True))
    console.print_table(table)
    assert "#" * 30 in capsys.readouterr().out
