"""The whole paper: every stage on every model, and the folder of artifacts that its page is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.lens import Lens
from mmneuron_lens.paper.demo import SMALL_MODELS
from mmneuron_lens.paper.drawn import drawn_corpus
from mmneuron_lens.paper.page import PAPER, publish_paper, write_described
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.pipeline import run_model
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.problems import say_problems
from mmneuron_lens.runs.questions import Questions, corpus_questions, folder_questions, published_questions
from mmneuron_lens.runs.store import Store


def paper(
    store: Store,
    *,
    models: Sequence[str] = SMALL_MODELS,
    questions: Questions | None = None,
    plan: Plan | None = None,
    settings: Mapping[str, Any] | None = None,
    again: Sequence[str] = (),
    progress: Progress = quietly,
) -> Path:
    """Runs every stage for every model and writes the page; returns its path.

    - store: the run's folder.
    - models: `embedded/NAME`, folders or hub ids.
    - questions: of a corpus that is drawn into the folder if None.
    - plan: how much is asked; the defaults of `Plan` if None.
    - settings: of `Lens`.
    - again: the command line that runs this, for `mmneuron jobs resume`.
    - progress: shows how far a stage is.

    Raises as the stages do.
    """
    assert store.folder is not None
    plan = plan or Plan()
    if questions is None:
        images = (plan.identification_images or 0) + (plan.evaluation_images or 0)
        questions = corpus_questions(drawn_corpus(store, images), plan, drawn=True)
    for note in questions.notes:
        store.say(note)
    named = []
    try:
        for model in models:
            lens = Lens(model, **(settings or {}))
            run_model(lens, questions, plan, store, again=again, progress=progress)
            named.append(lens.name)
    finally:
        # Published corpora have named what they skipped in `problems.txt` when their lists were drawn.
        name = "problems_when_asked.txt" if questions.corpora else "problems.txt"
        say_problems(questions.problems, store.folder, store.say, name)
    described = {"corpus": questions.name, "drawn": questions.drawn, "plan": asdict(plan), "models": named}
    described |= {"notes": list(questions.notes), "shared": questions.shared}
    store.refuse_lost()
    write_described(store.folder / PAPER, described)
    store.say("drawing figures and writing the page")
    return publish_paper(store.folder)


def paper_command(
    store: Store,
    plan: Plan,
    *,
    embedded: bool = False,
    models: Sequence[str] = (),
    corpora: Path | None = None,
    corpus: Path | None = None,
    questions: int | None = None,
    settings: Mapping[str, Any] | None = None,
    again: Sequence[str] = (),
    progress: Progress = quietly,
) -> Path:
    """What `mmneuron paper` does.

    - embedded: the embedded models, before `models`.
    - corpora: a folder of corpora as published. corpus: a folder of one's own images; one of them, or neither.
    - questions: so many a domain are answered; the plan's if None.
    - store, settings, again, progress: as of `paper`.

    Raises `RunError` when it is not said which models or which questions.
    """
    assert store.folder is not None
    if not embedded and not models:
        raise RunError("say which models: --embedded, or --model with a folder or hub id (repeat it for several).")
    if corpora is not None and corpus is not None:
        raise RunError("--corpora is a folder of published corpora, --corpus one of your own images: give one of them.")
    named = [*(SMALL_MODELS if embedded else ()), *models]
    if corpora is None and corpus is None and not all(name.startswith("embedded/") for name in named):
        raise RunError("say which questions: --corpora with published corpora, or --corpus with a questions.jsonl.")
    if questions is not None:
        per_image = plan.evaluation_questions or 1
        plan = replace(plan, questions=questions, evaluation_images=-(-questions // per_image))
    asked = None
    if corpus is not None:
        asked = folder_questions(corpus, plan)
    elif corpora is not None:
        asked = published_questions(corpora, store.folder, named, plan, store.say)
    run: dict[str, Any] = {"models": named, "questions": asked, "plan": plan, "settings": settings, "again": again}
    return paper(store, **run, progress=progress)
