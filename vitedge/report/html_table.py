"""Tables and matrices as HTML; nothing in a cell is taken for markup."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import Any

from vitedge.documents import printable
from vitedge.tables import Table, is_number


def table_html(table: Table, *, level: int = 3, bold: Collection[int] = (), sortable: bool | None = None) -> str:
    """A table with its title and note; bars stand beside the columns that ask for them. `bold` numbers rows."""
    numeric = table.numeric()
    largest = {name: max((abs(v) for v in table.column(name) if is_number(v)), default=0) for name in table.bars}
    head = []
    for name, word, right in zip(table.columns, table.headings(), numeric, strict=True):
        kind = ' class="num"' if right else ""
        head.append(f'<th scope="col"{kind}><button type="button">{escape(word)}</button></th>')
        head += ['<th class="bar"></th>'] if name in table.bars else []
    body = []
    for number, (row, texts) in enumerate(zip(table.rows, table.texts(), strict=True)):
        cells = []
        for name, value, text, right in zip(table.columns, row, texts, numeric, strict=True):
            kind = ' class="num"' if right or _starts_number(value) else ""
            cells.append(f'<td data-v="{escape(sort_key(value))}"{kind}>{escape(text)}</td>')
            if name in table.bars:
                share = 100 * abs(value) / largest[name] if is_number(value) and largest[name] else 0
                cells.append(f'<td class="bar"><i style="width:{share:.1f}%"></i></td>')
        front = ' class="front"' if number in bold else ""
        body.append(f"<tr{front}>{''.join(cells)}</tr>")
    kind = ' class="sortable"' if (not table.bars if sortable is None else sortable) else ""
    title = f"<h{level}>{escape(printable(table.title))}</h{level}>" if table.title else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    command = f"<pre>{escape(table.command)}</pre>" if table.command else ""
    return (
        f'{title}{note}<div class="scroll"><table{kind}><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{command}"
    )


def matrix_html(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: rows are the true classes, columns what was said; the darker, the larger the row's share."""
    head = "".join(f'<th scope="col"><span>{escape(printable(name))}</span></th>' for name in names)
    body = []
    for at, (name, row) in enumerate(zip(names, matrix, strict=True)):
        total = sum(row) or 1
        cells = "".join(
            f'<td class="{"right" if at == to else "wrong"}" style="--share:{count / total:.3f}">{count or ""}</td>'
            for to, count in enumerate(row)
        )
        body.append(f'<tr><th scope="row">{escape(printable(name))}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th>is \\ said</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def sort_key(value: Any) -> str:
    """What the script sorts a cell by: its leading number, or its text."""
    if value is None:
        return ""
    text = printable(value).replace(",", "")
    first = text.split()[0].split("..")[0] if text.split() else ""
    try:
        return repr(float(first))
    except ValueError:
        return text


def _starts_number(cell: Any) -> bool:
    return cell is None or is_number(cell) or (isinstance(cell, str) and cell[:1] in "+-0123456789")
