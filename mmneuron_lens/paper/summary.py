"""Publish: the results of a run's models as tables, figures and one page, and as tables in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import polars as pl
from rich.table import Table

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM, Answer
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.evaluation.accuracy import against_random, scores
from mmneuron_lens.experiments.identify import Identified
from mmneuron_lens.report import figures, page, tables
from mmneuron_lens.report.page import Grid, Report, Section

PRINTED = {
    "neurons_per_domain": "Domain-specific neurons",
    "neurons_per_domain_wider": "Domain-specific neurons, larger fraction",
    "control": "Controls",
}
"""The tables that a terminal shows besides that of ablations; the others are long and lie beside them as CSV."""

ABLATION_TABLES = ("ablation", "ablation_accuracy", "ablation_against_random")


@dataclass(frozen=True)
class Results:
    """One model's results: what was found, and the answers with its neurons off (perhaps none)."""

    found: Identified
    answers: tuple[Answer, ...] = ()


def report_of(results: Results, not_run: Sequence[str] = ()) -> Report:
    """The results of one model as the report room takes them."""
    found = results.found
    model = found.selection.model
    return Report(
        title=f"Domain-specific neurons of {model}",
        selection=found.selection,
        counts=found.counts,
        wider=found.wider,
        discovery=found.discovery,
        overlap=found.overlap,
        ablation=tables.ablation(scores(results.answers)) if results.answers else None,
        sections=_against_random(results.answers),
        not_run=(*([found.uncontrolled] if found.uncontrolled else []), *not_run),
    )


def publish(results: Sequence[Results], out: str | Path, not_run: Sequence[str] = ()) -> Path:
    """Writes `tables/*.csv` (all models in each), `figures/<model>_*.png` and `index.html`; returns the page's path.

    Tables and figures of ablations that no longer belong to the selection are removed.
    """
    out = Path(out)
    reports = [report_of(one, not_run) for one in results]
    for stale in [out / "tables" / f"{name}.csv" for name in ABLATION_TABLES] + [*out.glob("figures/*_ablation.png")]:
        stale.unlink(missing_ok=True)
    frames: dict[str, list[pl.DataFrame]] = {}
    for report in reports:
        for section in report.everything():
            for grid in section.grids:
                frames.setdefault(grid.name, []).append(grid.file)
            for picture in section.pictures:
                name = f"{file_name(report.selection.model)}_{picture.name}.png"
                figures.save_png(picture.draw("light"), out / "figures" / name)
    for name, parts in frames.items():
        tables.save_csv(pl.concat(parts, how="diagonal_relaxed"), out / "tables" / f"{name}.csv")
    index = out / "index.html"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(joined([(report.selection.model, page.render(report)) for report in reports]), encoding="utf-8")
    return index


def joined(pages: Sequence[tuple[str, str]]) -> str:
    """One page of several by model, each an article with anchors of its own; a single page is left as it is."""
    if len(pages) == 1:
        return pages[0][1]
    head, tail = pages[0][1].split("<main>", 1)[0], pages[0][1].rsplit("</main>", 1)[1]
    title = f"Domain-specific neurons of {len(pages)} models"
    head = re.sub("<title>.*?</title>", f"<title>{title}</title>", head)
    links = "".join(f'<a href="#{file_name(model)}">{escape(model)}</a>\n' for model, _ in pages)
    articles = []
    for model, html in pages:
        inner = html.split("<main>", 1)[1].rsplit("</main>", 1)[0]
        name = file_name(model)
        inner = re.sub(r'\b(id="|href="#|aria-labelledby=")', lambda match, name=name: f"{match[1]}{name}-", inner)
        articles.append(f'<article id="{name}" style="padding-top: 2.5rem">{inner}</article>\n')
    return f'{head}<main>\n<nav aria-label="models">\n{links}</nav>\n{"".join(articles)}</main>{tail}'


def printed(out: str | Path) -> Iterator[Table]:
    """The run's tables for a terminal, model by model, a domain a column where it has that form."""
    frames = {file.stem: pl.read_csv(file) for file in sorted(Path(out).glob("tables/*.csv"))}
    models = frames["neurons_per_domain"]["model"].unique(maintain_order=True) if "neurons_per_domain" in frames else ()
    for model in models:
        for name, title in PRINTED.items():
            if name not in frames:
                continue
            frame = frames[name].filter(pl.col("model") == model)
            if frame.is_empty():
                continue
            if name.startswith("neurons_per_domain"):
                frame = tables.wide(frame, "neurons", frame["domain"].unique(maintain_order=True))
            yield tables.terminal_table(frame, title)
        if "ablation" in frames and "ablation_against_random" in frames:
            yield from _accuracies(model, frames["ablation"], frames["ablation_against_random"])


def _accuracies(model: str, ablation: pl.DataFrame, against: pl.DataFrame) -> Iterator[Table]:
    """Per domain: accuracy with nothing off, its neurons off, random ones off, and the difference of the last two."""
    for module in against.filter(pl.col("model") == model)["module"].unique(maintain_order=True):
        where = "all modules" if module == ALL else module
        title = f"Accuracy in per cent with neurons off in {where}, {model}"
        table = Table(title=title, title_justify="left")
        for name in ("domain", "none off", "own off", "random off", "own − random", "95 % interval", "questions"):
            table.add_column(name, justify="left" if name == "domain" else "right")
        for row in against.filter((pl.col("model") == model) & (pl.col("module") == module)).iter_rows(named=True):
            here = ablation.filter((pl.col("model") == model) & (pl.col("domain") == row["domain"]))
            there = here.filter(pl.col("module") == module)
            accuracies = [
                here.filter(pl.col("condition") == NONE)["accuracy"].mean(),
                there.filter(pl.col("condition") == DOMAIN)["accuracy"].mean(),
                there.filter(pl.col("condition").str.starts_with(RANDOM))["accuracy"].mean(),
            ]
            cells = [tables.shown(value, decimals=1) for value in (*accuracies, row["difference"])]
            interval = f"{tables.shown(row['low'], 'low')} to {tables.shown(row['high'], 'high')}"
            table.add_row(tables.domain_name(row["domain"]), *cells, interval, tables.shown(row["questions"]))
        yield table


def _against_random(answers: Sequence[Answer]) -> tuple[Section, ...]:
    rows = against_random(answers)
    if not rows:
        return ()
    text = (
        "How much more accuracy is lost without a domain's own neurons than without as many random ones: below zero, "
        "with its whole interval, where they matter more than chance. Paired by question, against the mean of the "
        "random draws."
    )
    caption = "Difference in percentage points with its 95 % interval."
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return (Section("Domain neurons against random ones", (text,), (Grid("ablation_against_random", caption, frame),)),)
