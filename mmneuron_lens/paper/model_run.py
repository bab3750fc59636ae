"""One model's artifacts in a run, which the sections of a page are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.answers import Answer, Answers
from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.flow import KnockOutFlow
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.layer_probes import LayerProbes
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.neighbours import Neighbours
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.evaluation.accuracy import Scoring, is_right, scored_by
from mmneuron_lens.evaluation.findings import Evidence
from mmneuron_lens.report.sections import Source
from mmneuron_lens.report.unreachable import notes_of
from mmneuron_lens.runs.folder import RunError, refuse_misplaced

KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "selection": ("selection/{}.safetensors", Selection.load),
    "wider": ("selection_wider/{}.safetensors", Selection.load),
    "false discovery": ("controls/{}/false_discovery.safetensors", FalseDiscovery.load),
    "halves overlap": ("controls/{}/halves_overlap.safetensors", HalvesOverlap.load),
    "effect sizes": ("controls/{}/effect_sizes.safetensors", EffectSizes.load),
    "embeddings": ("embeddings/{}.safetensors", Embeddings.load),
    "answers": ("answers/{}.jsonl", Answers.load),
    "official scores": ("official_scores/{}.jsonl", OfficialScores.load),
    "counts": ("counts/{}/*.safetensors", Counts.load),
    "deviations": ("deviations/{}/*.safetensors", Deviations.load),
    "entropies": ("entropies/{}/*.safetensors", Entropies.load),
    "traces": ("traces/1/{}/*.safetensors", LensTrace.load),
    "examples": ("examples/{}.safetensors", NeuronExamples.load),
    "comparison": ("comparison/{}.safetensors", NeuronComparison.load),
    "planted": ("planted/{}.safetensors", NeuronComparison.load),
    "flow": ("flow/{}/*.safetensors", KnockOutFlow.load),
    "probes": ("probes/{}.safetensors", LayerProbes.load),
    "jacobian entropies": ("entropies_jacobian/{}/*.safetensors", Entropies.load),
    "jacobian traces": ("traces_jacobian/{}/*.safetensors", LensTrace.load),
    "neighbours": ("neighbours/{}/*.safetensors", Neighbours.load),
}
"""Where a run keeps the artifacts of a model, by kind, and how they are read; a `*` stands for a domain."""


@dataclass(frozen=True)
class ModelRun:
    """One model's artifacts, read when asked for; a stage that was not run has none.

    - out: the run's folder.
    - model: its name in the artifacts.
    - counts_in: the folder that holds the counts, if not `out`.
    - uncontrolled: why there are no controls; "" where that is not known.
    """

    out: Path
    model: str
    counts_in: Path | None = None
    uncontrolled: str = ""
    _read: dict[str, dict[Path, Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def selection(self) -> Selection:
        """Raises as `Selection.load` where there is none."""
        return self._one("selection") or Selection.load(self._selection_file)

    @property
    def wider(self) -> Selection | None:
        """The selection at a larger fraction (Table 6)."""
        return self._one("wider")

    @property
    def discovery(self) -> FalseDiscovery | None:
        return self._one("false discovery")

    @property
    def overlap(self) -> HalvesOverlap | None:
        return self._one("halves overlap")

    @property
    def effects(self) -> EffectSizes | None:
        return self._one("effect sizes")

    @property
    def embeddings(self) -> Embeddings | None:
        return self._one("embeddings")

    @property
    def official(self) -> OfficialScores | None:
        return self._one("official scores")

    @property
    def scoring(self) -> Scoring:
        return is_right if self.official is None else self.official.values

    @property
    def metrics(self) -> dict[str, str]:
        """The name of the answers' score by domain."""
        return scored_by(self.answers) if self.official is None else self.official.metrics

    @property
    def answers(self) -> list[Answer]:
        """Those that were given with this very selection."""
        return list(self._one("answers") or ())

    @property
    def counts(self) -> list[Counts]:
        return self._all("counts")

    @property
    def deviations(self) -> list[Deviations]:
        """Those that were read with this very selection."""
        return self._all("deviations")

    @property
    def entropies(self) -> list[Entropies]:
        return self._all("entropies")

    @property
    def traces(self) -> list[LensTrace]:
        """One question a domain."""
        return self._all("traces")

    @property
    def comparison(self) -> NeuronComparison | None:
        """The one of these very counts."""
        return self._one("comparison")

    @property
    def planted(self) -> NeuronComparison | None:
        """The comparison of neurons whose weights were written."""
        return self._one("planted")

    @property
    def flow(self) -> list[KnockOutFlow]:
        return self._all("flow")

    @property
    def probes(self) -> LayerProbes | None:
        return self._one("probes")

    @property
    def jacobian_entropies(self) -> list[Entropies]:
        return self._all("jacobian entropies")

    @property
    def jacobian_traces(self) -> list[LensTrace]:
        """The questions of `traces`, by the Jacobian lens."""
        return self._all("jacobian traces")

    @property
    def neighbours(self) -> list[Neighbours]:
        """The questions of `traces`, by the nearest words in context."""
        return self._all("neighbours")

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.selection, self.counts, self.entropies, self.answers, self.scoring, self.deviations)

    def sources(self, *kinds: str, domain: str | None = None) -> tuple[Source, ...]:
        """The artifacts of these kinds, each with what it was made with; only those of a domain, if one is given."""
        return tuple(
            self._source(file, kind)
            for kind in kinds
            for file, one in self._artifacts(kind).items()
            if domain is None or one.domain == domain
        )

    def files(self, kind: str) -> list[Path]:
        """The files of a kind that there are."""
        found = self._folder(kind).glob(KINDS[kind][0].format(file_name(self.model)))
        return sorted(file for file in found if not file.name.startswith("."))

    def _folder(self, kind: str) -> Path:
        return self.counts_in if kind == "counts" and self.counts_in else self.out

    @property
    def _selection_file(self) -> Path:
        return self.out / KINDS["selection"][0].format(file_name(self.model))

    @cached_property
    def _selection_hash(self) -> str:
        return content_hash(self._selection_file)

    def _artifacts(self, kind: str) -> dict[Path, Any]:
        """What the files hold, in the selection's order of domains, without what was made with another selection."""
        if kind not in self._read:
            loaded: dict[Path, Any] = {file: KINDS[kind][1](file) for file in self.files(kind)}
            for file, one in loaded.items():
                self._refuse_foreign(file, kind, one)
            if kind == "answers":
                own = {file: some.given_with(self._selection_hash) for file, some in loaded.items()}
                loaded = {file: some for file, some in own.items() if len(some)}
            if kind == "deviations":
                loaded = {file: one for file, one in loaded.items() if self._fits(one.parameters.get("selection"))}
            if kind == "comparison":
                own = {counts.domain: content_hash(file) for file, counts in self._artifacts("counts").items()}
                loaded = {file: one for file, one in loaded.items() if one.parameters.get("counts", own) == own}
            if loaded and "*" in KINDS[kind][0]:
                order = self.selection.domains
                loaded = dict(sorted(loaded.items(), key=lambda item: _place(item[1].domain, order)))
            self._read[kind] = loaded
        return self._read[kind]

    def _refuse_foreign(self, file: Path, kind: str, one: Any) -> None:
        """Raises `RunError` for a file of another model, another domain, or another selection."""
        models = {row.model for row in one} if kind == "answers" else {getattr(one, "model", self.model)}
        folder = KINDS[kind][0].partition("/{}")[0]
        if models - {self.model}:
            raise RunError(f"{file}: holds {folder} of {', '.join(models)}; move it out of the folder, or delete it.")
        if "*" in KINDS[kind][0]:
            refuse_misplaced(self._folder(kind), file, folder, one.model, one.domain)
        if kind == "false discovery":
            own = {site: self.selection.selected(site) for site in self.selection.masks}
            if own != one.selected:
                raise RunError(
                    f"{file}: is of another selection than {self._selection_file}; delete both, select again."
                )

    def _fits(self, selection: str | None) -> bool:
        return selection == self._selection_hash

    def _all(self, kind: str) -> list[Any]:
        return list(self._artifacts(kind).values())

    def _one(self, kind: str) -> Any:
        return next(iter(self._artifacts(kind).values()), None)

    def _source(self, file: Path, kind: str) -> Source:
        facts = tuple((key, json.dumps(value, ensure_ascii=False)) for key, value in self._facts(file, kind).items())
        return Source(file.relative_to(self._folder(kind)).as_posix(), content_hash(file), facts)

    def _facts(self, file: Path, kind: str) -> Mapping[str, Any]:
        one = self._artifacts(kind)[file]
        named = {name: getattr(one, name) for name in ("id", "question", "metrics") if hasattr(one, name)}
        facts = {
            **named,
            **getattr(one, "settings", {}),
            **getattr(one, "parameters", {}),
            **getattr(one, "provenance", {}),
        }
        return {name: value for name, value in facts.items() if name != "domains"}


def _place(domain: str, order: Sequence[str]) -> int:
    return order.index(domain) if domain in order else len(order)


def sources_of(runs: Sequence[ModelRun], *kinds: str, domain: str | None = None) -> tuple[Source, ...]:
    """The artifacts of these kinds of every model."""
    return tuple(source for run in runs for source in run.sources(*kinds, domain=domain))


def known_of(runs: Sequence[ModelRun]) -> dict[str, Reachability]:
    """By model, which layers can reach the logits."""
    return {run.model: run.selection.reachability for run in runs}


def notes_on(runs: Sequence[ModelRun], said: Callable[[Selection], str]) -> tuple[str, ...]:
    """Notes below a table: what is said of the selection of each model."""
    return notes_of({run.model: said(run.selection) for run in runs})


def domains_of(runs: Sequence[ModelRun]) -> list[str]:
    """All domains of the models' selections, each once."""
    return list(dict.fromkeys(domain for run in runs for domain in run.selection.domains))


def stacked(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The frames one under the other; a column that one lacks is null there."""
    return pl.concat(list(frames), how="diagonal_relaxed")
