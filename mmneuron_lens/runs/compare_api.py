"""Comparing in a call: on a lens and a corpus, kept in a run's folder where one is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.evaluation.comparison_table import ComparisonTable
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.compared import FRACTIONS
from mmneuron_lens.runs.compare import compare_stage, counts_in, observed_of
from mmneuron_lens.runs.store import Store


def compare(
    lens: Lens,
    corpus: Corpus,
    *,
    methods: Sequence[str] = ("dape", "random"),
    counts: Sequence[Counts] | None = None,
    identification: Corpus | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    random_draws: int = 5,
    seed: int = 0,
    others: Sequence[float] | None = None,
    accuracy: Sequence[float] = (),
    amplify: Sequence[float] = (),
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    out: str | Path | None = None,
    replace: bool = False,
    progress: Progress = quietly,
    draws: int | None = None,
    **generation: Any,
) -> ComparisonTable:
    """Says which method's neurons matter to their domain's answers, against as many random ones.

    - corpus: questions with answers, on images that no neuron was chosen by.
    - methods: of `select(method=...)`; "random" stands for the draws, which are there in any case.
    - counts: of `identify(...).counts`; those of the run `out` unless given.
    - identification: what they were counted on, for methods that need moments or attributions, where `out` has none.
    - parameters: by method, over its published ones.
    - fractions: of each module's neurons. random_draws, seed: of random neurons, as many in each module.
    - others: fractions at which the questions of other domains are asked too; all unless given.
    - accuracy, amplify: fractions at which answers are generated, and at which neurons are turned up.
    - frames, prompt_form, out, replace: as of `ablate`.
    - draws: an older name of random_draws.
    - generation: settings of `generate`, over greedy decoding of at most 16 new tokens.

    Raises `UnknownName` for an unknown method, `InvalidValue` for a fraction outside (0, 1], or without counts.
    """
    store = Store(out, replace=replace)
    if counts is None and out is None:
        raise InvalidValue("nothing says how active the neurons are; give counts=found.counts, or out= a run's folder.")
    known = list(counts) if counts is not None else counts_in(out or "", lens.name)
    asked = {domain: some for domain, some in corpus.by_domain().items() if domain in {one.domain for one in known}}
    if not asked:
        there = ", ".join(one.domain for one in known)
        raise InvalidValue(f"{corpus.name} has questions of {', '.join(corpus.by_domain())}, counted was {there}.")
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": corpus.problems, "progress": progress}
    first = None if identification is None else identification.by_domain()
    named = {**shared, "corpus": "" if identification is None else identification.name}
    seen = observed_of(lens, known, methods, store, first, **named)
    return ComparisonTable(
        compare_stage(
            lens, seen, asked, store, methods=methods, parameters=parameters, fractions=fractions,
            draws=random_draws if draws is None else draws, seed=seed, others=others, accuracy=accuracy,
            amplify=amplify, frames=frames, prompt_form=prompt_form, **shared, **generation,
        )
    )  # fmt: skip
