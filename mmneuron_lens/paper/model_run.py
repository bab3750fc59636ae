"""What the sheet's items are made from: the artifacts of each model in a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.answers import Answer, exact_match, load_answers
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.evaluation.accuracy import Marking
from mmneuron_lens.evaluation.claims import Evidence
from mmneuron_lens.evaluation.official_scores import Marks, marks_file
from mmneuron_lens.report.paper_page import Source
from mmneuron_lens.runs.stages import answers_file, selection_file


@dataclass(frozen=True)
class ModelRun:
    """One model's artifacts in a run, read when asked for; a stage that was not run has none."""

    out: Path
    model: str

    def files(self, kind: str) -> list[Path]:
        found = sorted((self.out / kind / file_name(self.model)).glob("*.safetensors"))
        # In the selection's order of domains.
        order = [file_name(domain) for domain in self.selection.domains]
        return sorted(found, key=lambda file: order.index(file.stem) if file.stem in order else len(order))

    @cached_property
    def selection(self) -> Selection:
        return Selection.load(selection_file(self.out, self.model))

    @cached_property
    def counts(self) -> list[Counts]:
        return [Counts.load(file) for file in self.files("counts")]

    @cached_property
    def deviations(self) -> list[Deviations]:
        return [one for one in map(Deviations.load, self.files("deviations")) if self._fits(one.parameters)]

    @cached_property
    def entropies(self) -> list[Entropies]:
        return [Entropies.load(file) for file in self.files("entropies")]

    @cached_property
    def answers(self) -> list[Answer]:
        path = answers_file(self.out, self.model)
        digest = content_hash(selection_file(self.out, self.model))
        return [one for one in load_answers(path) if one.selection == digest] if path.is_file() else []

    @cached_property
    def marks(self) -> Marks | None:
        file = marks_file(self.out, self.model)
        return Marks.load(file) if file.is_file() else None

    @property
    def marking(self) -> Marking:
        return exact_match if self.marks is None else self.marks.values

    @property
    def evidence(self) -> Evidence:
        return Evidence(
            self.selection, self.counts, self.entropies, self.answers, self.marking, deviations=self.deviations
        )

    def traces(self, number: int) -> list[LensTrace]:
        return [LensTrace.load(file) for file in self.files(f"traces/{number}")]

    def _fits(self, parameters: dict[str, Any]) -> bool:
        return parameters.get("selection") == content_hash(selection_file(self.out, self.model))

    def source(self, file: Path, parameters: dict[str, Any]) -> Source:
        flat = tuple((key, json.dumps(value, ensure_ascii=False)) for key, value in parameters.items())
        return Source(str(file.relative_to(self.out)), content_hash(file), flat)

    def sources(self, kind: str) -> tuple[Source, ...]:
        """The artifacts of a kind, each with its parameters."""
        loaded = {"counts": self.counts, "deviations": self.deviations, "entropies": self.entropies}.get(kind, [])
        facts = [{**getattr(one, "parameters", {}), **without_domains(one.provenance)} for one in loaded]
        files = self.files(kind)
        return tuple(self.source(file, fact) for file, fact in zip(files, facts, strict=False))


def sources_of(runs: Sequence[ModelRun], *kinds: str) -> tuple[Source, ...]:
    found: list[Source] = []
    for run in runs:
        for kind in kinds:
            if kind == "selection":
                selection = run.selection
                facts = {**selection.parameters, **without_domains(selection.provenance)}
                found.append(run.source(selection_file(run.out, run.model), facts))
            elif kind == "answers" and run.answers:
                file = answers_file(run.out, run.model)
                kept = file.with_suffix(".json")
                found.append(run.source(file, json.loads(kept.read_text()) if kept.is_file() else {}))
                if run.marks is not None:
                    found.append(run.source(marks_file(run.out, run.model), {"metrics": run.marks.metrics}))
            else:
                found += run.sources(kind)
    return tuple(found)


def without_domains(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "domains"}


def domains_of(runs: Sequence[ModelRun]) -> list[str]:
    return list(dict.fromkeys(domain for run in runs for domain in run.selection.domains))


def stacked(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(list(frames), how="diagonal_relaxed")
