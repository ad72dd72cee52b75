"""Figures as tables for people and as one JSON line for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Table:
    """Rows of named figures.

    Attributes:
        title: What was measured, with sizes.
        rows: ``{column: value}``, each column in the order of its first appearance; ``None`` and what a row lacks
            stay empty.
        notes: What a reader must know to read it.
    """

    title: str
    rows: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def text(table: Table) -> str:
    """The table for a terminal."""
    heads, cells = _cells(table)
    widths = [max(map(len, column)) for column in zip(heads, *cells)]
    numeric = [_is_numeric(table, head) for head in heads]

    def line(row: Sequence[str]) -> str:
        aligned = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric))
        return '  '.join(aligned).rstrip()

    shown = [line([head.replace('_', ' ') for head in heads]), '  '.join('-' * width for width in widths)]
    return '\n'.join([f'\n{table.title}', '', *shown, *map(line, cells), *(f'  {note}' for note in table.notes)])


def markdown(table: Table) -> str:
    """The table for a document."""
    heads, cells = _cells(table)
    rule = ['---:' if _is_numeric(table, head) else '---' for head in heads]
    rows = [[head.replace('_', ' ') for head in heads], rule, *cells]
    lines = [f'**{table.title}**', '', *(f'| {" | ".join(row)} |' for row in rows)]
    return '\n'.join(lines + ['', *(f'{note}' for note in table.notes)]).rstrip()


def json_line(machine: Mapping[str, object], results: Mapping[str, Iterable[Table]]) -> str:
    """Everything in one line: ``{"machine": {..}, "results": {benchmark: [{"title", "rows", "notes"}]}}``."""
    content = {name: [asdict(table) for table in tables] for name, tables in results.items()}
    return json.dumps({'machine': dict(machine), 'results': content})


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    heads = list(dict.fromkeys(head for row in table.rows for head in row))
    return heads, [[_shown(row.get(head)) for head in heads] for row in table.rows]


def _is_numeric(table: Table, head: str) -> bool:
    return all(isinstance(row.get(head), (int, float, type(None))) for row in table.rows)


def _shown(value: object) -> str:
    if value is None:
        return ''
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:.1e}'
