"""The page of the whole paper: its tables and figures by name and in its order, claims, and what was not run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmneuron_lens.report import figures, latex, tables
from mmneuron_lens.report.page import Grid, Picture, page_globals

Verdict = Literal["holds", "does not hold", "not decided", "not run"]


@dataclass(frozen=True)
class Source:
    """An artifact that numbers came from: its path in the run, the sha256 of its bytes, and its parameters."""

    file: str
    sha256: str
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def anchor(self) -> str:
        return f"artifact-{self.sha256[:12]}"


@dataclass(frozen=True)
class Finding:
    """A claim on one model: what was measured, the number with its interval, and whether the claim holds."""

    model: str
    statistic: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and what was found on each model."""

    number: str
    statement: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Item:
    """A table or figure of the paper: its name there ("Table 3"), what it shows here, and from which artifacts.

    `missing` says why it is not there; `after` is HTML that stands behind the tables and pictures.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()
    after: tuple[Markup, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Paper:
    """Everything on the page."""

    title: str
    lead: str
    run: tuple[str, ...]
    items: tuple[Item, ...]
    claims: tuple[Claim, ...]
    not_run: tuple[str, ...]
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every artifact once, in order of first use."""
        return tuple({source.sha256: source for item in self.items for source in item.sources}.values())


def claims_frame(claims: Sequence[Claim]) -> pl.DataFrame:
    """The claims sheet: claim, statement, model, statistic, value, low, high, unit, verdict, note."""
    names = ("model", "statistic", "value", "low", "high", "unit", "verdict", "note")
    rows = [
        {"claim": claim.number, "statement": claim.statement} | {name: getattr(finding, name) for name in names}
        for claim in claims
        for finding in claim.findings
    ]
    schema = {name: pl.Float64 if name in ("value", "low", "high") else pl.String for name in rows[0]} if rows else {}
    return pl.DataFrame(rows, schema=schema)


def render(paper: Paper) -> str:
    """The page as HTML with every image and script inside it; the same paper gives the same text."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= page_globals()
    script = Markup((folder / "hover.js").read_text(encoding="utf-8"))
    return environment.get_template("paper.html.jinja").render(paper=paper, script=script, measured=measured)


def measured(finding: Finding) -> str:
    """The number with its interval, as people read it."""
    if finding.value is None:
        return "–"
    text = _number(finding.value)
    if finding.low is not None and finding.high is not None:
        text += f" [{_number(finding.low)} to {_number(finding.high)}]"
    return f"{text} {finding.unit}".strip()


def _number(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < 1e9
    return tables.shown(int(value) if whole else value, decimals=2)


def write(paper: Paper, folder: str | Path) -> Path:
    """Writes index.html, tables/*.csv and *.tex, figures/*.png; returns the page's path."""
    folder = Path(folder)
    for item in paper.items:
        for grid in item.grids:
            tables.save_csv(grid.file, folder / "tables" / f"{grid.name}.csv")
            caption = f"{item.name}. {grid.caption}"
            latex.save_latex(grid.frame, caption, folder / "tables" / f"{grid.name}.tex", grid.decimals)
        for picture in item.pictures:
            figures.save_png(picture.draw("light"), folder / "figures" / f"{picture.name}.png")
    frame = claims_frame(paper.claims)
    if len(frame):
        tables.save_csv(frame, folder / "tables" / "claims.csv")
        latex.save_latex(frame, "The paper’s claims.", folder / "tables" / "claims.tex")
    page = folder / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(paper), encoding="utf-8")
    return page
