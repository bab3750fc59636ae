"""The demo: a drawn corpus, and from there the path of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmneuron_lens.batching.batches import Progress, quietly
from mmneuron_lens.corpora.folder import by_domain, read_folder, some_of
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.paper.summary import publish
from mmneuron_lens.runs.stages import ablate_stage, count_stage, open_lens, select_stage

SMALL_MODELS = ("embedded/llava-next", "embedded/instructblip")
SMOL = "embedded/smol"

ALL_AT_ONCE = "Neurons were switched off in all modules at once, not in one module at a time."


@dataclass(frozen=True)
class DemoPlan:
    """How much of the demo is run.

    - images and questions are per domain and per image; those that identify neurons come first, then those answered
      without them, so no image is in both.
    - random_draws: of as many neurons, switched off too. permutations: of the domains, to see what chance selects.
    - batch_size: questions in one forward pass. max_new_tokens: of an answer.
    - one_thread: models of a few million weights gain nothing from a second thread, and lose much to it where other
      programs run.
    - not_run: what the page says was not run.
    """

    identification_images: int = 300
    identification_questions: int = 2
    evaluation_images: int = 100
    evaluation_questions: int = 2
    random_draws: int = 3
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
    evaluation_images=10,
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


def demo_plan(models: Sequence[str]) -> DemoPlan:
    """How much is run where nothing else is said."""
    return SMOL_PLAN if SMOL in models else DemoPlan()


def demo(
    out: str | Path,
    *,
    models: Sequence[str] = SMALL_MODELS,
    domains: Sequence[str] = DOMAINS,
    plan: DemoPlan | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
    say: Callable[[str], Any] = lambda text: None,
) -> Path:
    """Draws `out/corpus`, counts, selects, switches off, writes tables, figures and the page, and returns its path.

    - models: `embedded/NAME`, folders or hub ids.
    - plan: how much is run; `demo_plan(models)` if None.
    - settings: of `open_lens`.
    - progress: shows how far a stage is. say: is given a line before each step.
    """
    from mmneuron_lens.embedded.corpus.draw import write_folder

    out, plan = Path(out), plan or demo_plan(models)
    images = plan.identification_images + plan.evaluation_images
    say(f"Drawing {images} images in each of {len(domains)} domains into {out / 'corpus'}")
    corpus = write_folder(out / "corpus", images_per_domain=images, domains=domains)
    samples, problems = read_folder(corpus)
    first = some_of(samples, plan.identification_images, plan.identification_questions)
    then = some_of(samples, plan.evaluation_images, plan.evaluation_questions, skip_images=plan.identification_images)
    with _threads(1 if plan.one_thread else torch.get_num_threads()):
        lenses = [open_lens(name, **(settings or {})) for name in models]
        shared: dict[str, Any] = {"batch_size": plan.batch_size, "problems": problems, "progress": progress}
        for lens in lenses:
            say(f"Counting active neurons of {lens.name}")
            count_stage(lens, by_domain(first), out, corpus="drawn", **shared)
        say("Selecting domain-specific neurons, and shuffling domains to see what chance would select")
        found = select_stage(out, fraction=plan.fraction, permutations=plan.permutations, progress=progress)
        answering = {"max_new_tokens": plan.max_new_tokens, "do_sample": False, "num_beams": 1}
        for lens in lenses:
            say(f"Switching neurons of {lens.name} off and asking questions")
            ablate_stage(lens, by_domain(then), out, random_draws=plan.random_draws, **shared, **answering)
    say("Drawing figures and writing the page")
    return publish(found, out, not_run=plan.not_run)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
