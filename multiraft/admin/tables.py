"""Tables for people and for pipes: one description, drawn by rich on a terminal, as aligned text elsewhere.

Aligned text has one line per row, a header line, columns two spaces apart and a mark in every empty cell, so
that `awk` and `cut` can count on it. Colour is decoration only (and NO_COLOR takes it away): what it says also stands
in words.

Rules of this file: cells are text, never markup: a key named "[red]" stays that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from multiraft.admin.formats import UNKNOWN, printable

Cell: TypeAlias = "str | tuple[str, str]"
"""Text, or (text, style)."""
GOOD: Final = "green"
BAD: Final = "bold red"
UNSURE: Final = "yellow"
FAINT: Final = "dim"
_SPACE: Final = 2
"""Between two columns."""
_FLEXIBLE_LEAST: Final = 24
"""What a flexible column gets however narrow the terminal is."""


@dataclass(frozen=True, slots=True)
class Column:
    """right: numbers. flexible: on a terminal, cut to the space that the other columns leave."""

    title: str
    right: bool = False
    flexible: bool = False


@dataclass(slots=True)
class Table:
    columns: Sequence[Column]
    rows: list[Sequence[Cell]] = field(default_factory=list)


@dataclass(slots=True)
class Page:
    """What one command shows: lines and tables, top to bottom."""

    parts: list[Cell | Table] = field(default_factory=list)

    def line(self, text: str, style: str = "") -> None:
        self.parts.append((printable(text), style))

    def gap(self) -> None:
        self.parts.append("")

    def facts(self, pairs: Iterable[tuple[str, Cell]]) -> None:
        """Add `name  value` lines, aligned."""
        rows = list(pairs)
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.parts.append((f"{name:<{width}}  {_words(value)}", _style(value)))

    def table(self, columns: Sequence[Column]) -> Table:
        table = Table(columns)
        self.parts.append(table)
        return table


def render_plain(page: Page) -> str:
    """Return the page as aligned text."""
    lines: list[str] = []
    for part in page.parts:
        if isinstance(part, Table):
            lines.extend(_plain_table(part))
        else:
            lines.append(_words(part).rstrip())
    return "".join(line + "\n" for line in lines)


def render_rich(page: Page, width: int) -> RenderableType:
    """Return the page as something that a rich console `width` cells wide prints."""
    return Group(*[_rich_table(part, width) if isinstance(part, Table) else _rich_text(part) for part in page.parts])


def show(page: Page, console: Console) -> None:
    """Print the page: drawn when `console` is a terminal, as plain aligned text otherwise."""
    if console.is_terminal:
        drawn = render_rich(page, console.width)
        # rich would shorten every column of a table that is too wide; a terminal's own line breaks lose nothing.
        console.width = max(console.width, *map(_fixed_width, page.parts))
        console.print(drawn, soft_wrap=False)
    else:
        console.file.write(render_plain(page))
        console.file.flush()


def _words(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _style(cell: Cell) -> str:
    return "" if isinstance(cell, str) else cell[1]


def _rich_text(cell: Cell) -> Text:
    return Text(_words(cell), style=_style(cell))


def _fixed_width(part: Cell | Table) -> int:
    return sum(_widths(part)) + _SPACE * len(part.columns) if isinstance(part, Table) else 0


def _widths(table: Table) -> list[int]:
    """The cells that each column needs; of a flexible one, at most _FLEXIBLE_LEAST."""
    found = []
    for at, column in enumerate(table.columns):
        needed = max(cell_len(text) for text in [column.title, *(_words(row[at]) for row in table.rows)])
        found.append(min(needed, _FLEXIBLE_LEAST) if column.flexible else needed)
    return found


def _rich_table(table: Table, width: int) -> RichTable:
    widths = _widths(table)
    spare = max(0, width - sum(widths) - _SPACE * len(widths))
    drawn = RichTable(box=None, pad_edge=False, padding=(0, _SPACE, 0, 0), header_style="bold")
    for column, needed in zip(table.columns, widths, strict=True):
        drawn.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=needed,
            max_width=needed + spare if column.flexible else None,
        )
    for row in table.rows:
        drawn.add_row(*[_rich_text(cell) for cell in row])
    return drawn


def _plain_table(table: Table) -> list[str]:
    titles: list[Sequence[Cell]] = [[column.title for column in table.columns]]
    rows = [[_words(cell) or UNKNOWN for cell in row] for row in [*titles, *table.rows]]
    widths = [max(cell_len(row[at]) for row in rows) for at in range(len(table.columns))]
    lines = []
    for row in rows:
        cells = []
        for text, width, column in zip(row, widths, table.columns, strict=True):
            padding = " " * (width - cell_len(text))
            cells.append(padding + text if column.right else text + padding)
        lines.append("  ".join(cells).rstrip())
    return lines
