"""Fitting a table into a terminal: no number is cut or broken; columns that do not fit follow in a table below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Column, Table
from rich.text import Text

from mmneuron_lens.echo import plain

NUMBERS = "0123456789−–-"
"""What a cell that must not be broken begins with."""

WORDS = 12
"""Characters that a column of words gets at least, unless its cells are shorter."""


def fitted(table: Table, width: int) -> Iterator[Table]:
    """The table as one that fits into so many characters, or as several with the same first columns.

    Its leading columns of words name the rows: they stand in each. Only where these alone do not fit are words broken.
    """
    columns = table.columns
    needs = [_need(column) for column in columns]
    parts = _in_parts(needs, _keys(columns), width)
    for number, places in enumerate(parts):
        whole = [_longest(columns[place]) for place in places]
        widths = _shared([needs[place] for place in places], whole, width)
        yield _part(table, places, widths, first=number == 0, last=number + 1 == len(parts))


def _in_parts(needs: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """The places of the columns of each table."""
    parts = [[*range(keys)]]
    for place in range(keys, len(needs)):
        if len(parts[-1]) > keys and _wide([needs[one] for one in (*parts[-1], place)]) > width:
            parts.append([*range(keys)])
        parts[-1].append(place)
    return parts


def _wide(widths: Sequence[int]) -> int:
    """Of a table with such columns: each has a space on both sides and a line before it, and one line closes it."""
    return sum(width + 3 for width in widths) + 1


def _shared(needs: Sequence[int], whole: Sequence[int], width: int) -> list[int]:
    """The width of each column: what it needs, and of what is left as much as it can use, from the first one on."""
    widths = [*needs]
    for place, most in enumerate(whole):
        widths[place] += max(0, min(most - widths[place], width - _wide(widths)))
    if _wide(widths) > width:
        # Columns of words alone that do not fit: they are broken.
        widest = max(range(len(widths)), key=widths.__getitem__)
        widths[widest] = max(1, widths[widest] - (_wide(widths) - width))
    return widths


def _part(table: Table, places: Sequence[int], widths: Sequence[int], *, first: bool, last: bool) -> Table:
    title = table.title if first else Text.assemble(_text(table.title), ", continued")
    part = Table(title=title, title_justify="left", caption=table.caption if last else None, caption_justify="left")
    for place, width in zip(places, widths, strict=True):
        given = table.columns[place]
        part.add_column(given.header, justify=given.justify, overflow="fold", width=width)
    for row in zip(*(list(table.columns[place].cells) for place in places), strict=True):
        part.add_row(*row)
    return part


def _keys(columns: Sequence[Column]) -> int:
    """How many leading columns name a row: those of words, and the first one in any case."""
    for place, column in enumerate(columns):
        if _is_numbers(column):
            return max(place, 1)
    return len(columns)


def _is_numbers(column: Column) -> bool:
    cells = [_text(cell).plain for cell in column.cells]
    return bool(cells) and all(cell[:1] in NUMBERS for cell in cells)


def _need(column: Column) -> int:
    """The least width: of numbers the longest, of words the longest word; of a heading its longest word."""
    cells = [_text(cell) for cell in column.cells]
    longest = max((cell.cell_len for cell in cells), default=0)
    header = max((len(word) for word in _text(column.header).plain.split()), default=0)
    if _is_numbers(column):
        return max(longest, header)
    words = max((len(word) for cell in cells for word in cell.plain.split()), default=0)
    words = min(words, WORDS) if column.overflow == "fold" else words
    return max(min(longest, max(words, WORDS)), header)


def _longest(column: Column) -> int:
    return max(_text(cell).cell_len for cell in (column.header, *column.cells))


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else plain(str(cell or ""))
