"""Tables for a terminal: the short ones of a page, model by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.table import Table

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM
from mmneuron_lens.artifacts.digits import between, interval, number
from mmneuron_lens.echo import plain
from mmneuron_lens.report.csv_files import read_csv
from mmneuron_lens.report.page import tables_folder
from mmneuron_lens.report.tables import domain_name, heading, shown, wide
from mmneuron_lens.report.unreachable import MARK

TITLES = {
    "neurons_per_domain": "Domain-specific neurons",
    "neurons_per_domain_wider": "Domain-specific neurons, larger fraction",
    "control": "Controls",
    "effect": "Effect sizes",
}
"""The tables that a terminal shows, besides accuracies; the others are long and lie beside them as CSV."""

MATTERS = "●"
"""What marks neurons that matter more than as many random ones, here and on the page."""

ABLATIONS = ("ablation", "ablation_against_random")


def terminal_tables(page: str | Path) -> Iterator[Table]:
    """The tables of a page, read from the CSV files beside it; of a model each, a domain a column where it can be.

    - page: the path of the page, as `page.write` returns it.
    """
    files = [tables_folder(Path(page)) / f"{name}.csv" for name in (*TITLES, "comparison", *ABLATIONS)]
    frames = {file.stem: _table(file) for file in files if file.is_file()}
    models = frames["neurons_per_domain"]["model"].unique(maintain_order=True) if "neurons_per_domain" in frames else ()
    for model in models:
        own = {name: frame.filter(pl.col("model") == model) for name, frame in frames.items() if "model" in frame}
        for name, title in TITLES.items():
            if name in own and len(own[name]):
                frame = own[name]
                unreachable = unreachable_modules(frame)
                if "neurons" in frame and "domain" in frame:
                    frame = wide(frame, "neurons", frame["domain"].unique(maintain_order=True))
                frame = frame.with_columns(
                    pl.when(pl.col("module").is_in(list(unreachable)))
                    .then(pl.col("module") + f" {MARK}")
                    .otherwise(pl.col("module"))
                )
                yield terminal_table(frame, title, _footnote(unreachable))
        if "comparison" in own and len(own["comparison"]):
            yield _compared(own["comparison"])
        if "ablation" in own and "ablation_against_random" in own:
            yield from _accuracies(model, own["ablation"], own["ablation_against_random"])


def _compared(frame: pl.DataFrame) -> Table:
    """What a model's neurons do to their own domain's answers at the fraction nearest 1 %, beside random ones."""
    nearest = min(frame["fraction"].unique().to_list(), key=lambda one: abs(one - 0.01))
    own = frame.filter((pl.col("fraction") == nearest) & (pl.col("on") == "own"))
    names = {"change": "change", "random": "as many random", "difference": "difference"}
    rows = [
        {"model": row["model"], "method": row["method"], "domain": domain_name(row["domain"])}
        | {title: between(row, name) for name, title in names.items()}
        | {"matter more": MATTERS if _matter(row) else ""}
        for row in own.iter_rows(named=True)
    ]
    title = f"Change of the log-probability of the right answer in nats, {100 * nearest:g} % of the neurons off"
    return terminal_table(pl.DataFrame(rows), title)


def _matter(row: Mapping[str, Any]) -> bool:
    """As `evaluation.comparison_claims` decides it: the whole intervals of the difference and of the change below 0."""
    ends = (row["difference_high"], row["change_high"])
    return all(one is not None and one < 0 for one in ends)


def _table(file: Path) -> pl.DataFrame:
    try:
        return read_csv(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise InvalidValue(f"{file}: no table ({said}); make it again with the command that wrote it.") from None


def unreachable_modules(frame: pl.DataFrame) -> dict[str, int]:
    """By module (or branch), how many of the neurons in a frame cannot reach the logits, where any cannot.

    - frame: with columns module and reachable, and one that holds the number that these are of.
    """
    number = next((name for name in ("neurons", "selected", "memberships") if name in frame), None)
    if number is None or "reachable" not in frame:
        return {}
    lost = frame.with_columns((pl.col(number) - pl.col("reachable").cast(pl.Int64)).alias("lost"))
    sums = lost.group_by("module", maintain_order=True).agg(pl.col("lost").sum()).filter(pl.col("lost") > 0)
    return dict(sums.iter_rows())


def _footnote(unreachable: Mapping[str, int]) -> str:
    counted = ", ".join(f"{module}: {number:,}" for module, number in unreachable.items())
    return f"{MARK} in layers that cannot reach the logits: {counted}" if counted else ""


def terminal_table(frame: pl.DataFrame, title: str, footnote: str = "") -> Table:
    """The frame for `rich`: numbers to the right, written as `tables.shown`; a model that all rows share goes above.

    - footnote: below it.
    """
    if "model" in frame.columns and frame["model"].n_unique() == 1:
        title = f"{title}, {frame['model'][0]}"
        frame = frame.drop("model")
    table = Table(
        title=plain(title), title_justify="left", caption=plain(footnote) if footnote else None, caption_justify="left"
    )
    for name, kind in frame.schema.items():
        table.add_column(plain(heading(name)), justify="right" if kind.is_numeric() else "left")
    for row in frame.iter_rows(named=True):
        table.add_row(*(plain(shown(value, name)) for name, value in row.items()))
    return table


def _accuracies(model: str, ablation: pl.DataFrame, against: pl.DataFrame) -> Iterator[Table]:
    """Per domain: accuracy with nothing off, its neurons off, random ones off, and the difference of the last two."""
    for module in against["module"].unique(maintain_order=True):
        where = "all modules" if module == ALL else module
        title = f"Accuracy in per cent with neurons off in {where}, {model}"
        table = Table(title=plain(title), title_justify="left")
        for name in ("domain", "none off", "own off", "random off", "own − random, points", "questions"):
            table.add_column(name, justify="left" if name == "domain" else "right")
        for row in against.filter(pl.col("module") == module).iter_rows(named=True):
            here = ablation.filter(pl.col("domain") == row["domain"])
            there = here.filter(pl.col("module") == module)
            accuracies = [
                here.filter(pl.col("condition") == NONE)["accuracy"].mean(),
                there.filter(pl.col("condition") == DOMAIN)["accuracy"].mean(),
                there.filter(pl.col("condition").str.starts_with(RANDOM))["accuracy"].mean(),
            ]
            cells = [shown(value, decimals=1) for value in accuracies]
            apart = interval(row["difference"], row["low"], row["high"])
            table.add_row(plain(domain_name(row["domain"])), *cells, apart, number(row["questions"]))
        yield table
