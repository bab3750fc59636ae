"""The page: findings first, then sections of figures and tables, how it was run, and its provenance, folded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from interventions.files import storage_errors, write_atomically
from mmneuron_lens.artifacts.open_folder import OpenFolder
from mmneuron_lens.evaluation.findings import Claim
from mmneuron_lens.report import figures, latex, tables
from mmneuron_lens.report.claims_table import claims_table, measured
from mmneuron_lens.report.csv_files import csv
from mmneuron_lens.report.hover import data_uri
from mmneuron_lens.report.html_text import joined, visible
from mmneuron_lens.report.sections import Grid, Picture, Section, Source

INDEX = "index"
"""The name of a folder's first page."""


@dataclass(frozen=True)
class Page:
    """Everything on the page; what is empty, and a section without content, has no place on it.

    - lead: one sentence below the title. run: paragraphs that say what was run.
    - findings: what was found, each in a few words, and then with its numbers and what they allow to conclude.
    - not_run: what was not run, a line each. versions: name and version of what wrote it.
    - beside: pages beside this one, text and address.
    - facts: what it was made of and with, name and value, beside the artifacts.
    """

    title: str
    lead: str
    run: tuple[str, ...]
    sections: tuple[Section, ...]
    claims: tuple[Claim, ...] = ()
    not_run: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    findings: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every artifact once, in order of first use."""
        return tuple({source.sha256: source for section in self.sections for source in section.sources}.values())

    @property
    def grids(self) -> tuple[tuple[Section, Grid], ...]:
        return tuple((section, grid) for section in self.sections for grid in section.grids)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that are drawn."""
        return tuple(one for section in self.sections for one in section.pictures if not one.instead)

    @property
    def said(self) -> tuple[Section, ...]:
        """The sections that have content."""
        return tuple(section for section in self.sections if not section.missing)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was not run, with the reasons of sections that have no content."""
        return (*self.not_run, *(f"{one.label}: {one.missing}" for one in self.sections if one.missing))


class Drawn(NamedTuple):
    """A picture as PNG in both themes."""

    light: bytes
    dark: bytes


def drawn(page: Page) -> dict[str, Drawn]:
    """Every picture of the page, by name."""
    return {one.name: Drawn(figures.png(one.draw("light")), figures.png(one.draw("dark"))) for one in page.pictures}


def render(page: Page, pictures: Mapping[str, Drawn] | None = None) -> str:
    """The page as HTML with every image and script inside it; the same page gives the same text.

    - pictures: what `drawn` gave; drawn now if None. One that is not among them is left out.
    """
    images = drawn(page) if pictures is None else pictures
    alive = any(section.after for section in page.sections)
    script = Markup("\n").join(own_file(name) for name in (("hover.js",) if alive else ()) + ("page.js",))
    return template("page.html.jinja").render(page=page, images=images, script=script)


def write(page: Page, folder: str | Path, name: str = INDEX) -> Path:
    """Writes the page, its tables (CSV, LaTeX) and its figures (PNG) into a folder; returns the page's path.

    - name: of the page, without its ending. The tables and figures of the first page, "index", lie in `tables/` and
      `figures/`, those of another in folders of its name below these.

    Raises `StorageFailed` naming a file that cannot be written, or a folder that was taken away meanwhile.
    """
    index = Path(folder) / f"{name}.html"
    with storage_errors(index):
        kept = OpenFolder(folder)
    pictures = drawn(page)
    kept.refuse_gone()
    for section, grid in page.grids:
        caption = f"{section.name}. {grid.caption}" if section.name else grid.caption
        file = tables_folder(index) / grid.name
        write_atomically(file.with_name(f"{grid.name}.csv"), csv(grid.file))
        write_atomically(
            file.with_name(f"{grid.name}.tex"), latex.latex(grid.frame, caption, grid.decimals, grid.notes)
        )
    for one in (picture for section in page.sections for picture in section.pictures if picture.instead):
        # An earlier page may have drawn it.
        (figures_folder(index) / f"{one.name}.png").unlink(missing_ok=True)
    for one, images in pictures.items():
        write_atomically(figures_folder(index) / f"{one}.png", images.light)
    if page.claims:
        frame = claims_table(page.claims)
        write_atomically(tables_folder(index) / "claims.csv", csv(frame))
        write_atomically(tables_folder(index) / "claims.tex", latex.latex(frame, "The paper’s claims."))
    write_atomically(index, render(page, pictures))
    kept.refuse_gone()
    return index


def tables_folder(page: Path) -> Path:
    """Where the tables of a page lie."""
    return _beside(page, "tables")


def figures_folder(page: Path) -> Path:
    """Where the figures of a page lie."""
    return _beside(page, "figures")


def _beside(page: Path, kind: str) -> Path:
    folder = page.parent / kind
    return folder if page.stem == INDEX else folder / page.stem


def template(name: str) -> Template:
    """A template of this folder, with the style and the filters that all of them share."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "shown": tables.shown,
        "heading": tables.heading,
        "largest": _largest,
        "breakable": _breakable,
        "data_uri": data_uri,
        "measured": measured,
        "uri": _uri,
        "digest": _digest,
        "style": own_file("style.css"),
    }
    return environment


def own_file(name: str) -> Markup:
    """A style or script that lies beside the template."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    """What the policy of a page calls the style or script that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _breakable(text: str) -> Markup:
    """The text, which may go on in the next line after a slash: names of models are long."""
    return joined(text.split("/"), "/<wbr>")


def _uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _largest(row: Mapping[str, Any]) -> set[str]:
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {name for name, value in numbers.items() if value == max(numbers.values()) and value > 0}
