"""The section about the comparison: which method's neurons matter to the answers, against as many random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import polars as pl

from mmneuron_lens.artifacts.comparison import OFF, NeuronComparison
from mmneuron_lens.artifacts.digits import between, interval, number
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.evaluation.beyond_random import fraction_of
from mmneuron_lens.evaluation.comparison_claims import matters
from mmneuron_lens.evaluation.comparison_table import overlaps_of
from mmneuron_lens.evaluation.dose_response import doses
from mmneuron_lens.evaluation.faithfulness import OWN, areas, curves
from mmneuron_lens.evaluation.findings import Finding
from mmneuron_lens.evaluation.planted import PlantedCheck
from mmneuron_lens.evaluation.specificity import cross_matrix_of, specificities
from mmneuron_lens.paper.model_run import ModelRun, sources_of, stacked
from mmneuron_lens.report.comparison_figures import curve_figure, dose_figure, matrix_figure
from mmneuron_lens.report.figures import says_something
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name, domain_names, listed
from mmneuron_lens.report.terminal import MATTERS

TITLE = "Neurons switched off, against as many random ones"


def compared(runs: Sequence[ModelRun]) -> Section:
    """Which method’s neurons matter to their domain’s answers: a sentence, a figure and rows of a table a model."""
    asked = [Judged(run.model, run.comparison) for run in runs if run.comparison is not None]
    if not asked:
        return Section(TITLE, missing="no method’s neurons were compared with random ones.", name="Comparison")
    text = (*(one.sentence for one in asked), *planted_lines(runs), *(one.unseen for one in asked if one.unseen))
    shares = listed(dict.fromkeys(f"{100 * one.fraction:g} %" for one in asked))
    caption = (
        f"By how much more than as many random neurons those of a domain change its answers, at {shares} of each "
        "module: log-probability of the right answer in nats, with 95 % intervals over questions. Below zero the "
        f"answers are less likely. {MATTERS} they matter more: the whole interval lies below zero, and so does that of "
        "the change itself."
    )
    curve = stacked(one.curves for one in asked)
    grids = [Grid("comparison", caption, stacked(one.table for one in asked), long=curve)]
    said = stacked(one.accuracy for one in asked)
    folded = (
        ("comparison_accuracy", "Accuracy of the generated answers: changes in percentage points", said, None),
        (
            "comparison_numbers",
            "Changes beside those of random neurons, and specificity",
            *_all(asked),
        ),
        ("comparison_areas", "Areas between the curves, on the own questions and on those of others", *_areas(asked)),
        ("comparison_matrix", "Every pair of domains, less random neurons, with sign-flip tests", *_matrices(asked)),
        ("comparison_overlaps", "How many neurons methods share, and two halves of the data", _overlaps(asked), None),
        ("comparison_doses", "Neurons turned down and up", *_doses(asked)),
        ("planted", "The planted check, set by set", *_planted(runs)),
    )
    grids += [Grid(name, said, shown, folded=True, long=long) for name, said, shown, long in folded if len(shown)]
    sources = sources_of(runs, "comparison", "planted")
    pictures = tuple(picture for one in asked for picture in _pictures(one))
    return Section(TITLE, text, tuple(grids), pictures, sources=sources, name="Comparison", how=_how(asked))


@dataclass(frozen=True)
class Judged:
    """What a model's comparison comes to, each computed once."""

    model: str
    comparison: NeuronComparison

    @cached_property
    def fraction(self) -> float:
        return fraction_of(self.comparison)

    @cached_property
    def curves(self) -> pl.DataFrame:
        return curves(self.comparison)

    @cached_property
    def areas(self) -> pl.DataFrame:
        return areas(self.comparison)

    @cached_property
    def matrix(self) -> pl.DataFrame:
        return cross_matrix_of(self.comparison, self.fraction)

    @cached_property
    def doses(self) -> pl.DataFrame:
        return doses(self.comparison)

    @cached_property
    def asked(self) -> list[str]:
        """The domains with questions."""
        return [domain for domain in self.comparison.domains if self.comparison.asked(domain)]

    @cached_property
    def findings(self) -> dict[tuple[str, str], Finding]:
        """By method and domain, whether its neurons matter."""
        return {
            (method, domain): matters(self.comparison, method, domain, self.fraction)
            for method in self.comparison.methods
            for domain in self.asked
        }

    @cached_property
    def holds(self) -> set[tuple[str, str, float]]:
        """Method, domain and fraction wherever the neurons matter more than random ones."""
        return {
            (method, domain, fraction)
            for method in self.comparison.methods
            for domain in self.asked
            for fraction in self.comparison.fractions
            if self._there(method, domain, fraction)
            and matters(self.comparison, method, domain, fraction).verdict == "holds"
        }

    def _there(self, method: str, domain: str, fraction: float) -> bool:
        wanted = (method, domain, fraction, OFF, 0)
        conditions = self.comparison.conditions
        return any((one.method, one.domain, one.fraction, one.strength, one.draw) == wanted for one in conditions)

    @property
    def sentence(self) -> str:
        """Whose neurons matter more than as many random ones, in which domains, and where most."""
        begun = f"{self.model}: with {100 * self.fraction:g} % of the neurons off, those of "
        found = {method: self._where(method) for method in self.comparison.methods}
        none = [method for method, where in found.items() if not where]
        told = [f"{method}{{}} to the answers of {self._of(method, where)}" for method, where in found.items() if where]
        told += [f"{listed(none)}{{}} to those of no domain"] if none else []
        first, *rest = told
        more = [first.format(" matter more than as many random ones"), *(one.format("") for one in rest)]
        return f"{begun}{'; those of '.join(more)}."

    def _where(self, method: str) -> list[str]:
        """The domains in which its neurons matter, those that fall the most first."""
        own = [domain for domain in self.asked if self.findings[method, domain].verdict == "holds"]
        return sorted(own, key=lambda domain: self.findings[method, domain].value or 0)

    def _of(self, method: str, where: Sequence[str]) -> str:
        most = self.findings[method, where[0]]
        first = f"{domain_name(where[0])} ({interval(most.value, most.low, most.high)} nats beyond random)"
        return listed([first, *map(domain_name, where[1:])])

    @property
    def unseen(self) -> str:
        """What is said in place of a figure in which every number would be zero."""
        return "" if self._visible else f"{self.model}: no neurons that were switched off change any answer at all."

    @property
    def _visible(self) -> bool:
        return says_something(self.curves, "change", "random")

    @property
    def pictured(self) -> pl.DataFrame | None:
        """The curves, where a figure of them says something."""
        return self.curves if self._visible else None

    @property
    def table(self) -> pl.DataFrame:
        """Methods by domains, more of them down than across: differences to random neurons, marked where it holds."""
        methods = self.comparison.methods
        names = domain_names(self.asked)
        if len(methods) > len(names):
            return pl.DataFrame(
                {"model": self.model, "method": method}
                | {f"{name}, nats": self._cell(method, domain) for domain, name in names.items()}
                for method in methods
            )
        return pl.DataFrame(
            {"model": self.model, "domain": name}
            | {f"{method}, nats": self._cell(method, domain) for method in methods}
            for domain, name in names.items()
        )

    def _cell(self, method: str, domain: str) -> str:
        finding = self.findings[method, domain]
        mark = f" {MATTERS}" if finding.verdict == "holds" else ""
        return interval(finding.value, finding.low, finding.high) + mark

    @property
    def numbers(self) -> pl.DataFrame:
        """A row a method and domain, numbers as text with their intervals."""
        own = specificities(self.comparison, self.fraction)
        specific = own.rows_by_key(["method", "domain"], named=True, unique=True)
        area = self.areas.filter(pl.col("on") == OWN).rows_by_key(["method", "domain"], named=True, unique=True)
        at = self.curves.filter((pl.col("fraction") == self.fraction) & (pl.col("on") == OWN))
        return pl.DataFrame(
            {
                "model": self.model,
                "method": row["method"],
                "domain": domain_name(row["domain"]),
                "neurons": row["neurons"],
                f"change at {100 * self.fraction:g} %, nats": between(row, "change"),
                "as many random, nats": between(row, "random"),
                "difference, nats": between(row, "difference"),
                "area, nats × decades": between(area.get((row["method"], row["domain"]), {}), "area"),
                "specificity, nats": between(specific.get((row["method"], row["domain"]), {}), "specificity"),
                "matter more": self.findings[row["method"], row["domain"]].verdict,
            }
            for row in at.sort("method", maintain_order=True).iter_rows(named=True)
        )

    @property
    def accuracy(self) -> pl.DataFrame:
        """A row a method, domain and fraction at which answers were generated."""
        said = self.curves.filter((pl.col("on") == OWN) & pl.col("accuracy").is_not_null())
        right = self.comparison.right_before.double().numpy()
        rows = []
        for row in said.iter_rows(named=True):
            before = right[self.comparison.asked(row["domain"])].mean()
            told = {"model": self.model, "method": row["method"], "domain": domain_name(row["domain"])}
            told |= {"neurons off": f"{100 * row['fraction']:g} %", "accuracy before, %": number(100 * before)}
            told |= {"change": between(row, "accuracy"), "as many random": between(row, "accuracy_random")}
            rows.append(told | {"change less random": between(row, "accuracy_difference")})
        return pl.DataFrame(rows)


def _how(asked: Sequence[Judged]) -> tuple[str, ...]:
    questions = max(len(one.comparison.asked(domain)) for one in asked for domain in one.asked)
    draws = max((len(condition.draws) for one in asked for condition in one.comparison.conditions), default=0)
    return (
        f"At most {questions:,} questions a domain, on images that identified no neuron, with the answer read behind "
        f"the prompt. Random neurons: {draws} draws of as many in each module, none of which a method chose. An "
        "interval that crosses zero is compatible with no effect. Each number is judged by itself: of a hundred "
        "without an effect, two or three would be marked by chance.",
        "Area: between the curves of these and of random neurons over all shares, in nats times decades. Specificity: "
        "how much more the own domain’s answers fall than those of the others.",
    )


def planted_lines(runs: Sequence[ModelRun]) -> tuple[str, ...]:
    """A line for each model whose weights were planted: whether the comparison found what was planted."""
    lines = []
    for run in runs:
        if run.planted is None:
            continue
        check = PlantedCheck(run.planted)
        sets = len(check.comparison.methods) // 2
        lines.append(
            f"Planted check, in a copy of {run.model}: of {sets} sets of neurons that were made to raise the answers "
            f"the comparison found {round(check.recall * sets)}; of {sets} as active that write nothing it said of "
            f"{round(check.false_alarms * sets)} that they matter."
        )
    return tuple(lines)


Both = tuple[pl.DataFrame, pl.DataFrame]
"""What the page shows, with its intervals as text, and what the file holds."""


def _all(asked: Sequence[Judged]) -> Both:
    shown = stacked(one.numbers for one in asked)
    return shown, shown


def _areas(asked: Sequence[Judged]) -> Both:
    frame = stacked(one.areas for one in asked)
    text = {"area, nats × decades": [between(row, "area") for row in frame.iter_rows(named=True)]}
    return _said(frame, ("model", "method", "domain", "on"), text, ("questions",)), frame


def _matrices(asked: Sequence[Judged]) -> Both:
    frame = stacked(one.matrix for one in asked)
    text = {"change, nats": [between(row, "change") for row in frame.iter_rows(named=True)]}
    text["Holm’s p"] = [number(one, 2) for one in frame["p_holm"]]
    return _said(frame, ("model", "method", "neurons_of", "domain"), text, ("questions",)), frame


def _doses(asked: Sequence[Judged]) -> Both:
    frame = stacked(one.doses for one in asked)
    rows = frame.rows(named=True)
    text = {"multiplied by": [f"{1 + row['strength']:g}" for row in rows]}
    text |= {f"{name}, nats": [between(row, name) for row in rows] for name in ("change", "random", "difference")}
    return _said(frame, ("model", "method", "domain"), text, ("questions",)), frame


def _planted(runs: Sequence[ModelRun]) -> Both:
    frame = stacked([pl.DataFrame(), *(PlantedCheck(run.planted).to_frame() for run in runs if run.planted)])
    if not len(frame):
        return frame, frame
    rows = frame.rows(named=True)
    text = {"change, nats": [number(row["change"]) for row in rows]}
    text["less random, nats"] = [interval(row["difference"], row["low"], row["high"]) for row in rows]
    return _said(frame, ("model", "set", "neurons"), text, ("verdict",)), frame


def _said(
    frame: pl.DataFrame, names: Sequence[str], text: Mapping[str, Sequence[str]], then: Sequence[str]
) -> pl.DataFrame:
    """Columns of a frame, with these columns of text between them; domains by their names."""
    kept = frame.with_columns(
        pl.col(name).replace({one: domain_name(one) for one in frame[name].unique()})
        for name in ("domain", "neurons_of")
        if name in frame
    )
    between_them = [pl.Series(name, values, pl.String) for name, values in text.items()]
    return kept.select(*names, *between_them, *then)


def _overlaps(asked: Sequence[Judged]) -> pl.DataFrame:
    frame = stacked(overlaps_of(one.comparison).insert_column(0, pl.lit(one.model).alias("model")) for one in asked)
    return frame.with_columns(pl.col("domain").replace({one: domain_name(one) for one in frame["domain"].unique()}))


def _pictures(one: Judged) -> list[Picture]:
    name, pictures = file_name(one.model), list[Picture]()
    if one.pictured is not None:
        caption = (
            f"{one.model}: each domain’s answers with more and more of its neurons off, with 95 % intervals over "
            "questions. Filled: they matter more than as many random ones (grey). Each panel has its own scale."
        )
        draw = partial(curve_figure, one.pictured, one.holds)
        pictures.append(Picture(f"comparison_curves_{name}", caption, draw))
    if len(one.matrix) > len(one.comparison.methods) * len(one.asked) and says_something(one.matrix, "change"):
        caption = (
            f"{one.model}: every domain’s neurons off, every domain’s questions asked, at {100 * one.fraction:g} %, in "
            "nats less random ones"
        )
        pictures.append(Picture(f"comparison_matrix_{name}", caption, partial(matrix_figure, one.matrix), folded=True))
    if says_something(one.doses, "change", "random"):
        caption = f"{one.model}: each domain’s answers as its neurons are turned down and up"
        pictures.append(Picture(f"comparison_doses_{name}", caption, partial(dose_figure, one.doses), folded=True))
    return pictures
