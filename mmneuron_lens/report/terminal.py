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

MOST = 40
"""Rows of a table that a terminal shows."""


def terminal_tables(page: str | Path) -> Iterator[Table]:
    """The tables of a page, read from the CSV files beside it; of a model each, a domain a column where it can be.

    - page: the path of the page, as `page.write` returns it.
    """
    for model, own in frames_of(page).items():
        for name, title in TITLES.items():
            if name in own and len(own[name]):
                frame = with_intervals(own[name])
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
            yield _compared(own["comparison"], tables_folder(Path(page)) / "comparison.csv")
        if "ablation" in own and "ablation_against_random" in own:
            yield from _accuracies(model, own["ablation"], own["ablation_against_random"])


def frames_of(page: str | Path) -> dict[str, dict[str, pl.DataFrame]]:
    """By model, what the tables beside a page say of it, by the name of the table. page: as of `terminal_tables`."""
    names = (*TITLES, "selection", "comparison", *ABLATIONS)
    files = [tables_folder(Path(page)) / f"{name}.csv" for name in names]
    frames = {file.stem: _table(file) for file in files if file.is_file()}
    models = frames["neurons_per_domain"]["model"].unique(maintain_order=True) if "neurons_per_domain" in frames else ()
    return {
        model: {name: frame.filter(pl.col("model") == model) for name, frame in frames.items() if "model" in frame}
        for model in models
    }


def findings(page: str | Path) -> list[str]:
    """What was found, a line each: how many neurons, and whether they matter. page: as of `terminal_tables`."""
    lines = []
    for model, tables in frames_of(page).items():
        own = {name: frame for name, frame in tables.items() if len(frame)}
        lines.append(f"{model}: {_selected(own)}")
        lines += _matter(own["comparison"]) if "comparison" in own else []
        lines += _accuracy_line(own["ablation_against_random"]) if "ablation_against_random" in own else []
    return lines


def _selected(own: Mapping[str, pl.DataFrame]) -> str:
    by_domain = own["neurons_per_domain"].group_by("domain", maintain_order=True).agg(pl.col("neurons").sum())
    domains = ", ".join(f"{domain_name(domain)} {number:,}" for domain, number in by_domain.iter_rows())
    if "selection" not in own:
        return f"neurons by domain: {domains}."
    chosen, whole = own["selection"]["selected"].sum(), own["selection"]["neurons"].sum()
    return f"{chosen:,} of {whole:,} neurons selected as domain-specific: {domains}."


def _matter(frame: pl.DataFrame) -> list[str]:
    """A line a method: what its neurons do to answers, and in which domains more than random ones."""
    at = _nearest(frame)
    lines = []
    for method in at["method"].unique(maintain_order=True):
        rows = at.filter(pl.col("method") == method)
        more = [domain_name(row["domain"]) for row in rows.iter_rows(named=True) if _holds(row)]
        where = f"more than random in {', '.join(more)}" if more else "in no domain clearly more than random"
        lines.append(
            f"  {method}: off, they change the log-probability of the right answer by {_mean(rows, 'change')} nats, as "
            f"many random ones by {_mean(rows, 'random')}; {where} (of {len(rows)} domains)."
        )
    return lines


def _mean(rows: pl.DataFrame, name: str) -> str:
    mean = rows[name].cast(pl.Float64, strict=False).drop_nulls().mean()
    return number(float(mean) if isinstance(mean, int | float) else None)


def _nearest(frame: pl.DataFrame) -> pl.DataFrame:
    """The own questions of each domain, at the fraction nearest 1 %."""
    nearest = min(frame["fraction"].unique().to_list(), key=lambda one: abs(one - 0.01))
    return frame.filter((pl.col("fraction") == nearest) & (pl.col("on") == "own"))


def _accuracy_line(frame: pl.DataFrame) -> list[str]:
    """In which domains answers were right less often than with random neurons off."""
    rows = frame.filter(pl.col("module") == ALL)
    if not len(rows):
        return []
    worse = [domain_name(one) for one in rows.filter(_below_zero("high"))["domain"]]
    where = f"lower in {', '.join(worse)}" if worse else "in no domain clearly lower"
    return [f"  accuracy with its own neurons off, against random ones off: {where} (of {len(rows)} domains)."]


def _below_zero(name: str) -> pl.Expr:
    """Where a number is; a column without any, as of intervals of one question, is read from a file as text."""
    return pl.col(name).cast(pl.Float64, strict=False) < 0


def with_intervals(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with each number and its interval, columns NAME, NAME_low and NAME_high, as one column of text."""
    named = [name for name in frame.columns if {f"{name}_low", f"{name}_high"} <= set(frame.columns)]
    told = [pl.Series(name, [between(row, name) for row in frame.rows(named=True)]) for name in named]
    ends = [f"{name}{end}" for name in named for end in ("_low", "_high")]
    return frame.with_columns(told).drop(ends)


def _compared(frame: pl.DataFrame, file: Path) -> Table:
    """What a model's neurons do to their own domain's answers at the fraction nearest 1 %, beside random ones."""
    own = _nearest(frame)
    nearest = own["fraction"][0] if len(own) else 0.01
    names = {"change": "change", "random": "as many random", "difference": "difference"}
    rows = [
        {"model": row["model"], "method": row["method"], "domain": domain_name(row["domain"])}
        | {title: between(row, name) for name, title in names.items()}
        | {"matter more": MATTERS if _holds(row) else ""}
        for row in own.iter_rows(named=True)
    ]
    title = f"Change of the log-probability of the right answer in nats, {100 * nearest:g} % of the neurons off"
    left_out = f"{len(rows) - MOST:,} more rows: {file}" if len(rows) > MOST else ""
    return terminal_table(pl.DataFrame(rows[:MOST]), title, left_out)


def _holds(row: Mapping[str, Any]) -> bool:
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
