"""What a page is made of: sections, and in them tables, pictures, and the artifacts they were made from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure
from torch import Tensor

from mmneuron_lens.report.figures import Theme


@dataclass(frozen=True)
class Picture:
    """A figure with its caption.

    - name: of its PNG, without the ending.
    - draw: makes it for a theme, "light" or "dark"; the page holds both.
    - folded: whether it stands behind its caption until that is opened.
    """

    name: str
    caption: str
    draw: Callable[[Theme], Figure]
    folded: bool = False


@dataclass(frozen=True)
class Grid:
    """A table with its caption.

    - name: of its CSV and LaTeX files, without the ending.
    - frame: what the page shows, a row a row.
    - folded: whether it stands behind its caption until that is opened.
    - most: whether the largest number of each row is bold.
    - decimals: of every fraction; if None those of its column, see `tables.shown`.
    - long: what the CSV holds, if not `frame`.
    - examples: a picture a row, uint8 [height, width, 3] or None, which the page alone shows, behind the first column.
    - notes: what stands below it, on the page and in LaTeX.
    """

    name: str
    caption: str
    frame: pl.DataFrame
    folded: bool = False
    most: bool = False
    decimals: int | None = None
    long: pl.DataFrame | None = None
    examples: tuple[Tensor | None, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> pl.DataFrame:
        """What the CSV holds."""
        return self.frame if self.long is None else self.long

    @property
    def visible(self) -> pl.DataFrame:
        """What the page shows: the frame without the model, which the page's title names, where all rows share it."""
        shared = "model" in self.frame.columns and self.frame["model"].n_unique() == 1
        return self.frame.drop("model") if shared else self.frame


@dataclass(frozen=True)
class Source:
    """An artifact that numbers came from.

    - file: its path inside the run.
    - sha256: of its bytes, hexadecimal.
    - parameters: what it was made with, name and value.
    """

    file: str
    sha256: str
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def anchor(self) -> str:
        return f"artifact-{self.sha256[:12]}"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    - name: of the table or figure in a paper, such as "Table 3"; "" where it has none.
    - text: paragraphs of plain text, before everything else.
    - how: paragraphs on how to read it and how it was measured, which the page folds.
    - after: HTML that stands behind tables and pictures.
    - missing: why there is nothing to show; "" where there is.
    """

    title: str
    text: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()
    after: tuple[Markup, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: str = ""
    name: str = ""
    how: tuple[str, ...] = ()

    def new_notes(self, grid: Grid) -> tuple[str, ...]:
        """The notes of a table that no table before it on the page has; folded tables come last there."""
        shown = takewhile(lambda one: one is not grid, sorted(self.grids, key=lambda one: one.folded))
        before = {note for one in shown for note in one.notes}
        return tuple(note for note in grid.notes if note not in before)

    @property
    def label(self) -> str:
        """What a list of contents calls it."""
        return self.name or self.title

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")
