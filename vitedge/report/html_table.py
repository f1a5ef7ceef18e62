"""Cells and tables as HTML."""

from __future__ import annotations

from typing import Any

from vitedge.tables import Table, is_number


def table_html(table: Table) -> str:
    """A table of another room, with bars beside the columns that ask for them."""
    from markupsafe import escape

    largest = {name: max((abs(v) for v in table.column(name) if is_number(v)), default=0) for name in table.bars}
    head = "".join(
        f'<th scope="col"><button type="button">{escape(word)}</button></th>'
        + ("<th></th>" if name in table.bars else "")
        for name, word in zip(table.columns, table.headings(), strict=True)
    )
    body = []
    for row, texts in zip(table.rows, table.texts(), strict=True):
        cells = []
        for name, value, text in zip(table.columns, row, texts, strict=True):
            number = ' class="num"' if is_number(value) else ""
            cells.append(f'<td data-v="{escape(sort_key(value))}"{number}>{escape(text)}</td>')
            if name in table.bars:
                share = 100 * abs(value) / largest[name] if is_number(value) and largest[name] else 0
                cells.append(f'<td class="bar"><i style="width:{share:.1f}%"></i></td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = "" if table.bars else ' class="sortable"'
    command = f"<pre>{escape(table.command)}</pre>" if table.command else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{escape(table.title)}</h3>{note}<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{command}"
    )


def sort_key(value: Any) -> str:
    """What the script sorts a cell by: its leading number, or its text."""
    if value is None:
        return ""
    text = str(value).replace(",", "")
    first = text.split()[0].split("..")[0] if text.split() else ""
    try:
        return repr(float(first))
    except ValueError:
        return text
