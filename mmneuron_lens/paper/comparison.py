"""The section about the comparison: which method's neurons matter to the answers, against as many random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.evaluation.beyond_random import beyond_random, drawn, fraction_of, measured, with_interval
from mmneuron_lens.evaluation.comparison_claims import matters
from mmneuron_lens.evaluation.comparison_table import overlaps_of
from mmneuron_lens.evaluation.dose_response import doses
from mmneuron_lens.evaluation.faithfulness import OWN, areas, curves
from mmneuron_lens.evaluation.findings import Finding
from mmneuron_lens.evaluation.planted import PlantedCheck
from mmneuron_lens.evaluation.specificity import cross_matrix_of, specificities
from mmneuron_lens.paper.model_run import ModelRun, sources_of, stacked
from mmneuron_lens.report.comparison_figures import curve_figure, dose_figure, matrix_figure, matter_figure
from mmneuron_lens.report.digits import between
from mmneuron_lens.report.sections import Grid, Picture, Section
from mmneuron_lens.report.tables import domain_name, listed

TITLE = "Neurons switched off, against as many random ones"

UNIT = "change of the log-probability of the right answer, nats"


def compared(runs: Sequence[ModelRun]) -> Section:
    """Which method's neurons matter to their domain's answers: a sentence a model and method, figures and tables."""
    asked = [Judged(run.model, run.comparison) for run in runs if run.comparison is not None]
    if not asked:
        return Section(TITLE, missing="no method’s neurons were compared with random ones.", name="Comparison")
    text = (*(sentence for one in asked for sentence in one.sentences), _how(asked), *planted_lines(runs))
    curve = stacked(one.curves for one in asked)
    area = stacked(one.areas for one in asked)
    grids = [
        Grid(
            "comparison",
            "Neurons off, mean over the domain’s own questions with 95 % intervals over questions, in nats. Below zero "
            "the answers are less likely. Area: between the curves of these and of random neurons over all shares, in "
            "nats times decades. Specificity: how much more the own domain’s answers fall than those of the others.",
            stacked(one.table for one in asked),
            long=curve,
        )
    ]
    said = stacked(one.accuracy for one in asked)
    if len(said):
        caption = "Accuracy of the generated answers: change in percentage points with 95 % intervals over questions."
        grids.append(Grid("comparison_accuracy", caption, said))
    grids += [
        Grid(name, caption, frame, folded=True, decimals=4)
        for name, caption, frame in (
            ("comparison_areas", "Areas between the curves, on the own questions and on those of others", area),
            ("comparison_matrix", "Every pair of domains, less random neurons, with sign-flip tests", _matrices(asked)),
            ("comparison_overlaps", "How many neurons methods share, and two halves of the data", _overlaps(asked)),
            ("comparison_doses", "Neurons turned down and up", stacked(one.doses for one in asked)),
            ("planted", "The planted check, set by set", _planted(runs)),
        )
        if len(frame)
    ]
    sources = sources_of(runs, "comparison", "planted")
    return Section(TITLE, text, tuple(grids), _pictures(asked, area, curve), sources=sources, name="Comparison")


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

    @property
    def sentences(self) -> list[str]:
        """A sentence for each method: what its neurons do, what random ones do, and in how many domains they differ."""
        return [self._sentence(method) for method in self.comparison.methods]

    def _sentence(self, method: str) -> str:
        places = {domain: self.comparison.place(method, domain, self.fraction) for domain in self.asked}

        def over(function: Any) -> str:
            groups = [function(self.comparison, place, domain) for domain, place in places.items()]
            return between(with_interval("mean", *groups), "mean")

        holds = [domain for domain in self.asked if self.findings[method, domain].verdict == "holds"]
        verdict = "in no domain do they" if not holds else f"in {listed(map(domain_name, holds))} they"
        return (
            f"{self.model}: at {100 * self.fraction:g} %, switching off the neurons that {method} calls specific to a "
            f"domain changes the log-probability of the right answer to its questions by {over(measured)} nats, as "
            f"many random ones by {over(drawn)}, a difference of {over(beyond_random)}; {verdict} matter more than "
            f"random ones with the whole interval (of {len(self.asked)} domains)."
        )

    @property
    def table(self) -> pl.DataFrame:
        """A row a method and domain, numbers as text with their intervals."""
        own = specificities(self.comparison, self.fraction)
        specific = own.rows_by_key(["method", "domain"], named=True, unique=True)
        area = self.areas.filter(pl.col("on") == OWN).rows_by_key(["method", "domain"], named=True, unique=True)
        at = self.curves.filter((pl.col("fraction") == self.fraction) & (pl.col("on") == OWN))
        share = f"{100 * self.fraction:g} %"
        return pl.DataFrame(
            {
                "model": self.model,
                "method": row["method"],
                "domain": domain_name(row["domain"]),
                "neurons": row["neurons"],
                f"change at {share}": between(row, "change"),
                "as many random": between(row, "random"),
                "difference": between(row, "difference"),
                "area": between(area.get((row["method"], row["domain"]), {}), "area"),
                "specificity": between(specific.get((row["method"], row["domain"]), {}), "specificity"),
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
            told |= {"neurons off": f"{100 * row['fraction']:g} %", "accuracy before": f"{100 * before:.1f}"}
            told |= {"change": points(row, "accuracy"), "as many random": points(row, "accuracy_random")}
            rows.append(told | {"change less random": points(row, "accuracy_difference")})
        return pl.DataFrame(rows)


def points(row: Mapping[str, Any], name: str) -> str:
    """A number of percentage points with its interval."""
    # Adding 0 takes the sign of what rounds to 0 away.
    return between(row, name, lambda value: f"{round(value, 1) + 0.0:.1f}".replace("-", "−"))


def _how(asked: Sequence[Judged]) -> str:
    questions = max(len(one.comparison.asked(domain)) for one in asked for domain in one.asked)
    draws = max((len(condition.draws) for one in asked for condition in one.comparison.conditions), default=0)
    return (
        f"At most {questions} questions a domain, on images that identified no neuron, with the answer read behind the "
        f"prompt. Random neurons: {draws} draws of as many in each module, none of which a method chose. An interval "
        "that crosses zero is compatible with no effect."
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


def _planted(runs: Sequence[ModelRun]) -> pl.DataFrame:
    return stacked([pl.DataFrame(), *(PlantedCheck(run.planted).to_frame() for run in runs if run.planted)])


def _matrices(asked: Sequence[Judged]) -> pl.DataFrame:
    return stacked(one.matrix for one in asked)


def _overlaps(asked: Sequence[Judged]) -> pl.DataFrame:
    return stacked(overlaps_of(one.comparison).insert_column(0, pl.lit(one.model).alias("model")) for one in asked)


def _pictures(asked: Sequence[Judged], area: pl.DataFrame, curve: pl.DataFrame) -> tuple[Picture, ...]:
    own = area.filter(pl.col("on") == OWN)
    whole = "area between the curves, nats × decades"
    first = partial(matter_figure, own, "area", whole)
    if not len(own):
        at = stacked(one.curves.filter(pl.col("fraction") == one.fraction) for one in asked)
        first = partial(matter_figure, at.filter(pl.col("on") == OWN), "difference", UNIT)
    caption = (
        "Which method’s neurons matter: by how much more than as many random ones they change the log-probability of "
        "the right answer, over all sizes. Left of zero they matter more; filled where the whole interval is there."
    )
    pictures = [Picture("comparison", caption, first)]
    for one in asked:
        name = file_name(one.model)
        caption = (
            f"{one.model}: each domain’s answers with more and more of its neurons off. Grey: as many random ones."
        )
        pictures.append(Picture(f"comparison_curves_{name}", caption, partial(curve_figure, one.curves)))
        if len(one.matrix) > len(one.comparison.methods) * len(one.asked):
            caption = (
                f"{one.model}: at {100 * one.fraction:g} %, the change of each domain’s answers (columns) with the "
                "neurons of each domain (rows) off, less that of random ones, in nats. A star: Holm’s p below 0.05."
            )
            pictures.append(Picture(f"comparison_matrix_{name}", caption, partial(matrix_figure, one.matrix)))
        if len(one.doses):
            caption = f"{one.model}: each domain’s answers as its neurons are turned down and up."
            pictures.append(Picture(f"comparison_doses_{name}", caption, partial(dose_figure, one.doses)))
    return tuple(pictures)
