"""The demo: a drawn corpus, and from there the path of a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.paper.drawn import drawn_corpus
from mmneuron_lens.paper.summary import publish
from mmneuron_lens.runs.attributions import attributions_stage
from mmneuron_lens.runs.compare import comparable, compare_run, planted_stage
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.identify import select_stage
from mmneuron_lens.runs.moments import moments_stage
from mmneuron_lens.runs.neuron_effects import effects_stage
from mmneuron_lens.runs.store import Store

SMALL_MODELS = ("embedded/llava-next", "embedded/instructblip", "embedded/idefics3")
SMOL = "embedded/smol"
QUICK = "embedded/llava-next"

ALL_AT_ONCE = "Neurons were switched off in all modules at once, not in one module at a time."


@dataclass(frozen=True)
class DemoPlan:
    """How much of the demo is run.

    - images and questions are per domain and per image; those that identify neurons come first, then those answered
      without them, so no image is in both. Without the latter no neuron is switched off, and none is attributed to.
    - methods, compared: whose neurons are switched off, and how many of each module; draws of as many random ones too.
    - planted: questions of the planted check, on the last model; 0 leaves it out.
    - example_images, examples: the pictures that selected neurons are looked at on, of each domain, and how many are
      kept of each neuron.
    - effects, effect_questions: selected neurons of each domain and module that are switched off alone, and on so many
      questions; 0 leaves it out.
    - permutations: of the domains, to see what chance selects.
    - batch_size: questions in one forward pass. max_new_tokens: of an answer.
    - one_thread: models of a few million weights gain nothing from a second thread, and lose much to it where other
      programs run.
    - not_run: what the page says was not run.
    """

    identification_images: int = 300
    identification_questions: int = 2
    evaluation_images: int = 6
    evaluation_questions: int = 2
    methods: tuple[str, ...] = ("dape", "margin")
    compared: tuple[float, ...] = (0.01, 0.05)
    random_draws: int = 5
    planted: int = 16
    example_images: int = 60
    examples: int = 6
    effects: int = 2
    effect_questions: int = 8
    permutations: int = 20
    fraction: float = 0.01
    batch_size: int = 32
    max_new_tokens: int = 2
    one_thread: bool = True
    not_run: tuple[str, ...] = (
        "The corpus is drawn by a program and the models are small ones trained on such drawings; nothing here says "
        "anything about the published checkpoints.",
        ALL_AT_ONCE,
    )


SMOL_PLAN = DemoPlan(
    identification_images=60,
    evaluation_images=4,
    compared=(0.01, 0.05),
    planted=0,
    example_images=30,
    effects=0,
    batch_size=16,
    max_new_tokens=4,
    one_thread=False,
    not_run=(
        "The corpus is drawn by a program; vision encoder and language model are real, published ones, and the "
        "connector between them was trained for minutes. Nothing here says anything about the published checkpoints.",
        ALL_AT_ONCE,
    ),
)
"""Of `embedded/smol`, which is larger: fewer images, and longer answers."""


QUICK_PLAN = DemoPlan(
    identification_images=80,
    evaluation_images=0,
    planted=0,
    example_images=80,
    effects=0,
    not_run=(
        "The corpus is drawn by a program and the model is a small one trained on such drawings; nothing here says "
        "anything about the published checkpoints.",
        "`mmneuron demo` without --quick also switches the neurons off, in three models.",
    ),
)
"""Of `mmneuron demo --quick`: which neurons there are and what they answer to, in one model."""


def demo_plan(models: Sequence[str]) -> DemoPlan:
    """How much is run where nothing else is said."""
    return SMOL_PLAN if SMOL in models else DemoPlan()


def demo(
    store: Store,
    *,
    models: Sequence[str] = SMALL_MODELS,
    domains: Sequence[str] = DOMAINS,
    plan: DemoPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    again: Sequence[str] = (),
    progress: Progress = quietly,
) -> Path:
    """Draws a corpus into the run's folder, counts, selects, switches off, and writes tables, figures and the page.

    - store: the run's folder.
    - models: `embedded/NAME`, folders or hub ids.
    - plan: how much is run; `demo_plan(models)` if None.
    - settings: of `Lens`.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    - progress: shows how far a stage is.

    Returns the page's path.
    """
    assert store.folder is not None
    plan = plan or demo_plan(models)
    corpus = drawn_corpus(store, plan.identification_images + plan.evaluation_images, domains)
    first = corpus.some(plan.identification_images, plan.identification_questions)
    then = None
    if plan.evaluation_images:
        then = corpus.some(plan.evaluation_images, plan.evaluation_questions, skip_images=plan.identification_images)
    answering: dict[str, Any] = {"max_new_tokens": plan.max_new_tokens, "do_sample": False, "num_beams": 1}
    found = []
    with _threads(1 if plan.one_thread else torch.get_num_threads()):
        for name in models:
            lens = Lens(name, **(settings or {}))
            shared: dict[str, Any] = {"batch_size": plan.batch_size, "problems": corpus.problems, "progress": progress}
            asked: dict[str, Any] = {"corpus": corpus.name, "again": again, **shared}
            if then is not None:
                moments_stage(lens, first.by_domain(), store, **asked)
            else:
                count_stage(lens, first.by_domain(), store, top=plan.examples, **asked)
            rule = {"fraction": plan.fraction, "permutations": plan.permutations}
            found += select_stage(store.folder, store, model=lens.name, progress=progress, **rule)
            fractions = sorted({*plan.compared, plan.fraction})
            if then is not None:
                compare_run(
                    store, store.folder, lens, then.by_domain(), methods=comparable(store, lens.name, plan.methods),
                    fractions=fractions, draws=plan.random_draws, others=(plan.fraction,), accuracy=(plan.fraction,),
                    **shared, **answering,
                )  # fmt: skip
            _look(lens, found[-1].selection, first, then, plan, store, asked)
            if name == models[-1] and plan.planted and then is not None:
                planted_stage(lens, _mixed(then)[: plan.planted], store, **shared)
    store.say("drawing figures and writing the page")
    missing = {one.selection.model: one.controls.missing for one in found}
    return publish(store.folder, uncontrolled=missing, not_run=plan.not_run)


def _look(
    lens: Lens,
    selection: Selection,
    first: Corpus,
    then: Corpus | None,
    plan: DemoPlan,
    store: Store,
    asked: Mapping[str, Any],
) -> None:
    """What single neurons answer to, and what they do to right answers: by gradients, and switched off alone."""
    examples_stage(lens, selection, first.some(plan.example_images).by_domain(), store, k=plan.examples, **asked)
    if then is None:
        return
    answered = {name: value for name, value in asked.items() if name not in ("again", "batch_size")}
    attributions_stage(lens, then.by_domain(), store, **answered)
    if plan.effects:
        few = {domain: some[: plan.effect_questions] for domain, some in then.by_domain().items()}
        measured = {name: answered[name] for name in ("problems", "progress")}
        effects_stage(lens, selection, few, store, most=plan.effects, random_neurons=2 * plan.effects, **measured)


def _mixed(corpus: Corpus) -> list[Sample]:
    """The questions of a corpus, those of all domains in turn."""
    by_domain = corpus.by_domain().values()
    return [one for some in zip_longest(*by_domain) for one in some if one is not None]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
