"""One page for one model: what was run, tables, figures, controls, and what was not run. It needs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.report import figures, tables


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; `draw` makes it for a theme ("light" or "dark"), both are on the page."""

    name: str
    caption: str
    draw: Callable[[figures.Theme], Figure]


@dataclass(frozen=True)
class Grid:
    """A table with its caption, perhaps folded behind it, perhaps with the `most` of each row bold."""

    name: str
    caption: str
    frame: pl.DataFrame
    folded: bool = False
    most: bool = False
    decimals: int | None = None
    long: pl.DataFrame | None = None

    @property
    def file(self) -> pl.DataFrame:
        """What the CSV holds: the long form of the table, or the table itself."""
        return self.frame if self.long is None else self.long


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, paragraphs of plain text, then tables and pictures."""

    title: str
    text: tuple[str, ...] = ()
    grids: tuple[Grid, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Report:
    """What the page is made from; what is None or empty is said, on the page, not to have been run.

    `wider` is the selection at a larger fraction (5 % in Table 6), `ablation` a frame of `tables.ablation`, `sections`
    what other experiments add, `not_run` further statements of what was not done.

    Raises `ValueError` for one control without the other, and for results of another model.
    """

    title: str
    selection: Selection
    counts: tuple[Counts, ...] = ()
    wider: Selection | None = None
    discovery: FalseDiscovery | None = None
    overlap: HalvesOverlap | None = None
    ablation: pl.DataFrame | None = None
    sections: tuple[Section, ...] = ()
    not_run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.discovery is None) != (self.overlap is None):
            raise InvalidValue("the report has one control of two; give both discovery and overlap, or neither.")
        parts = (self.wider, self.discovery, self.overlap, *self.counts)
        others = {part.model for part in parts if part is not None} - {self.selection.model}
        if others:
            raise InvalidValue(
                f"the report is of {self.selection.model}, but holds results of {', '.join(sorted(others))}."
            )

    def everything(self) -> tuple[Section, ...]:
        """All sections but the last, in the order of the page."""
        parts = (_neurons(self), _layers(self), _controls(self), _silent(self), _ablation(self))
        return (*(part for part in parts if part), *self.sections)

    def missing(self) -> tuple[str, ...]:
        """What was not run, in plain words."""
        absent = {
            "No control says how much of the selection is more than chance.": self.discovery is None,
            "Silent neurons were not counted.": not self.counts,
            "The selection was not repeated at a larger fraction.": self.wider is None,
            "No neurons were switched off, so accuracy after ablation is not reported.": self.ablation is None,
        }
        return (*(text for text, is_absent in absent.items() if is_absent), *self.not_run)


def render(report: Report) -> str:
    """The page as HTML, with every image inside it; the same report gives the same text."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= page_globals()
    selection = report.selection
    names = ", ".join(tables.domain_name(domain) for domain in selection.domains)
    fraction = f"{100 * selection.parameters['fraction']:g} %"
    samples = sum(own["samples"] for own in selection.provenance.get("domains", {}).values())
    facts = list(_flat({"parameters": selection.parameters, "provenance": selection.provenance}))
    return environment.get_template("page.html.jinja").render(
        report=report,
        selection=selection,
        lead=f"Domain-specific neurons of {selection.model} in {len(selection.domains)} visual domains: {names}.",
        run=f"{samples:,} image-question pairs went through {selection.model}, and every neuron’s activations above "
        f"zero were counted, domain by domain. In each module the {fraction} of neurons most specific to few domains "
        "were then selected.",
        domains=_domains(report),
        facts=facts,
        sections=report.everything(),
        missing=report.missing(),
    )


def page_globals() -> dict[str, Any]:
    """What the templates call: how a picture, a cell, a heading and a table are written."""
    names = {"image": _image, "shown": tables.shown, "largest": _largest, "heading": _heading}
    return {**names, "visible": _visible}


def write(report: Report, folder: str | Path) -> Path:
    """Writes index.html, a CSV per table under tables/ and a PNG per figure under figures/; returns the page's path."""
    folder = Path(folder)
    for section in report.everything():
        for grid in section.grids:
            tables.save_csv(grid.file, folder / "tables" / f"{grid.name}.csv")
        for picture in section.pictures:
            figures.save_png(picture.draw("light"), folder / "figures" / f"{picture.name}.png")
    page = folder / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(report), encoding="utf-8")
    return page


def _neurons(report: Report) -> Section:
    selection = report.selection
    fraction = f"{100 * selection.parameters['fraction']:g} %"
    grids = [_per_domain(selection, "neurons_per_domain", fraction)]
    if report.wider:
        wider = f"{100 * report.wider.parameters['fraction']:g} %"
        grids.append(_per_domain(report.wider, "neurons_per_domain_wider", wider))
    summary = tables.selection_summary(selection)
    short = f"What the rule came to at each site: of the {fraction} requested, how many neurons had a domain above the "
    grids.append(Grid("selection", short + "threshold and were selected.", summary))
    text = (
        "A neuron’s activation probability in a domain is the share of tokens on which its activation is above zero. "
        "Domain-specific neurons are those whose probabilities differ most between domains: the "
        f"{fraction} with the lowest entropy, among neurons with at least one domain above the threshold, which is the "
        f"{100 * selection.parameters['percentile']:g}th percentile of all probabilities of the site.",
        "A neuron belongs to every domain in which its probability is above the threshold, so the numbers in a row may "
        "add up to more than the number of selected neurons.",
    )
    return Section("Domain-specific neurons", text, tuple(grids))


def _per_domain(selection: Selection, name: str, fraction: str) -> Grid:
    long = tables.neurons_per_domain(selection)
    branches = tables.neurons_per_domain(selection, by="site")
    rows = []
    for module in long["module"].unique(maintain_order=True):
        own = branches.filter(pl.col("module") == module)
        rows.append(long.filter(pl.col("module") == module))
        if own["site"].n_unique() > 1:
            rows.append(own.drop("module").rename({"site": "module"}))
    frame = tables.wide(pl.concat(rows), "neurons", selection.domains)
    caption = f"Number of neurons in each domain, lowest {fraction} of the entropy. The most in each module is bold."
    return Grid(name, caption, frame, most=True, long=long)


def _layers(report: Report) -> Section:
    frame = tables.layer_distribution(report.selection)
    caption = (
        "Domain-specific neurons of each domain over the layers of each module, layer 0 being nearest to the input. "
        "Each panel has its own vertical scale."
    )
    picture = Picture("layer_distribution", caption, lambda theme: figures.layer_figure(frame, theme))
    numbers = Grid(
        "layer_distribution",
        "The numbers behind the figure",
        tables.wide(frame, "neurons", report.selection.domains),
        folded=True,
        long=frame,
    )
    return Section("Where they lie", (), (numbers,), (picture,))


def _controls(report: Report) -> Section | None:
    if report.discovery is None or report.overlap is None:
        return None
    frame = tables.control(report.discovery, report.overlap)
    permutations = len(next(iter(report.discovery.null.values())))
    splits = len(next(iter(report.overlap.shared.values())))
    fraction = report.selection.parameters["fraction"]
    rate, found, chance = report.discovery.rate(), report.discovery.count(), report.discovery.null_mean()
    text = (
        "The rule selects its share of neurons whatever the data, so their number proves nothing by itself. "
        "Two controls say how much of it is more than chance.",
        f"False discovery rate (fdr): the images’ domain labels were shuffled {permutations} times and the procedure "
        f"repeated. Of {found:,} selected neurons, chance puts {tables.shown(chance, 'null_mean')} under the same "
        f"entropy: a rate of {tables.shown(rate)}. Near 0, domains explain the selection; near 1, chance does.",
        f"Overlap: the data were split into two halves {splits} times, neurons selected in each, and the shared ones "
        "divided by those in either (Jaccard). 1 is full agreement; two random selections of this size would reach "
        f"{fraction / (2 - fraction):.3f}.",
    )
    caption = "Controls by module: neurons selected, how many chance would give, and agreement between halves."
    return Section("Is it more than chance?", text, (Grid("control", caption, frame),))


def _silent(report: Report) -> Section | None:
    if not report.counts:
        return None
    frame = tables.silent(list(report.counts))
    caption = "Share of neurons in each layer that were active on no token of any domain (silent), and of the others."
    picture = Picture("silent", caption, lambda theme: figures.silent_figure(frame, theme))
    total, all_of_them = int(frame["silent"].sum()), int(frame["neurons"].sum())
    text = f"{total:,} of {all_of_them:,} neurons were active on no token at all."
    return Section(
        "Silent neurons", (text,), (Grid("silent", "The numbers behind the figure", frame, True),), (picture,)
    )


def _ablation(report: Report) -> Section | None:
    if report.ablation is None:
        return None
    frame = report.ablation
    main = frame.filter(pl.col("condition").is_in(["none", "domain"])).drop("condition")
    table = tables.wide(main, "accuracy", report.selection.domains).rename({"module": "neurons off in"})
    text = (
        "Each domain’s questions were answered again with that domain’s neurons switched off, and with as many random "
        "neurons of the same module switched off instead. If the domain’s neurons matter, their point lies to the left "
        "of the random ones; an interval that crosses zero is compatible with no effect.",
    )
    caption = (
        "Change of accuracy, in percentage points, with its interval. Filled: the domain’s neurons off. "
        "Hollow: random draws of as many neurons."
    )
    grids = (
        Grid("ablation_accuracy", "Accuracy in per cent on each domain with its neurons off.", table, decimals=1),
        Grid("ablation", "Every condition, with its interval and the number of questions", frame, folded=True),
    )
    picture = Picture("ablation", caption, lambda theme: figures.ablation_figure(frame, theme))
    return Section("What happens without them", text, grids, (picture,))


def _domains(report: Report) -> pl.DataFrame:
    selection = report.selection
    rows = []
    for number, domain in enumerate(selection.domains):
        own = selection.provenance.get("domains", {}).get(domain, {})
        corpus = own.get("corpus")
        name = corpus.get("name", json.dumps(corpus)) if isinstance(corpus, dict) else corpus
        modules = [module_of(site) for site in selection.tokens]
        places = [
            module if modules.count(module) == 1 else site
            for site, module in zip(selection.tokens, modules, strict=True)
        ]
        sizes = [int(values[number]) for values in selection.tokens.values()]
        tokens = {f"{place} tokens": size for place, size in zip(places, sizes, strict=True)}
        rows.append({"domain": tables.domain_name(domain), "corpus": name, "samples": own.get("samples"), **tokens})
    return pl.DataFrame(rows)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, f"{name}, {key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _visible(frame: pl.DataFrame) -> pl.DataFrame:
    """Without the model, which the page names at its top, where all rows share it."""
    return frame.drop("model") if "model" in frame.columns and frame["model"].n_unique() == 1 else frame


def _largest(row: dict[str, Any]) -> set[str]:
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    return {name for name, value in numbers.items() if value == max(numbers.values()) and value > 0}


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _image(picture: Picture) -> Markup:
    def data(theme: figures.Theme) -> str:
        return "data:image/png;base64," + base64.b64encode(figures.png(picture.draw(theme))).decode()

    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}"><img src="{}" alt="{}"></picture>'
    ).format(data("dark"), data("light"), _heading(picture.name))
