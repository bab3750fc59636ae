"""The demo: a drawn corpus, and from there the path of a user's own, for both embedded models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmneuron_lens.batching.batches import Progress, quietly
from mmneuron_lens.corpora.folder import by_domain, read_folder, some_of
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.checkpoints import EMBEDDED
from mmneuron_lens.paper.summary import publish
from mmneuron_lens.runs.stages import ablate_stage, count_stage, open_lens, results_of, select_stage

GENERATION = {"max_new_tokens": 2, "do_sample": False, "num_beams": 1}
"""Answers are one token and the end."""

NOT_RUN = (
    "The corpus is drawn by a program and the models are small ones trained on such drawings; nothing here says "
    "anything about the published checkpoints.",
    "Neurons were switched off in all modules at once, not in one module at a time.",
)


def demo(
    out: str | Path,
    *,
    models: Sequence[str] = EMBEDDED,
    domains: Sequence[str] = DOMAINS,
    identification_images: int = 300,
    identification_questions: int = 2,
    evaluation_images: int = 100,
    evaluation_questions: int = 2,
    random_draws: int = 3,
    permutations: int = 20,
    fraction: float = 0.01,
    batch_size: int = 32,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
    say: Callable[[str], Any] = lambda text: None,
) -> Path:
    """Draws `out/corpus`, counts, selects, switches off, writes tables, figures and the page, and returns its path.

    Images and questions are per domain and per image. Neurons are identified on the first images of each domain and
    switched off on the ones after them, so no image is in both. `settings` are of `open_lens`.
    `say` is given a line before each step.
    """
    from mmneuron_lens.embedded.corpus.draw import write_folder

    out = Path(out)
    images = identification_images + evaluation_images
    say(f"Drawing {images} images in each of {len(domains)} domains into {out / 'corpus'}")
    corpus = write_folder(out / "corpus", images_per_domain=images, domains=domains)
    samples, problems = read_folder(corpus)
    identified = by_domain(some_of(samples, identification_images, identification_questions))
    evaluated = by_domain(some_of(samples, evaluation_images, evaluation_questions, skip_images=identification_images))
    with _one_thread():
        lenses = [open_lens(f"embedded/{name}", **(settings or {})) for name in models]
        shared: dict[str, Any] = {"batch_size": batch_size, "problems": problems, "progress": progress}
        for lens in lenses:
            say(f"Counting active neurons of {lens.name}")
            count_stage(lens, identified, out, corpus="drawn", **shared)
        say("Selecting domain-specific neurons, and shuffling domains to see what chance would select")
        found = select_stage(out, fraction=fraction, permutations=permutations, progress=progress)
        for lens in lenses:
            say(f"Switching neurons of {lens.name} off and asking questions")
            ablate_stage(lens, evaluated, out, random_draws=random_draws, **shared, **GENERATION)
    say("Drawing figures and writing the page")
    return publish([results_of(out, one) for one in found], out, NOT_RUN)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much to it where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
