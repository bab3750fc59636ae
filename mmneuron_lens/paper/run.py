"""The whole paper: every stage on every model, and the folder of artifacts that its page is made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmneuron_lens.architectures.loading import EMBEDDED
from mmneuron_lens.artifacts.files import write_atomically
from mmneuron_lens.batching.batches import Progress, quietly
from mmneuron_lens.runs.done import Say
from mmneuron_lens.runs.pipeline import run_model
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import (
    Questions,
    drawn_questions,
    folder_questions,
    published_questions,
    some_domains,
)
from mmneuron_lens.runs.stages import RunError


def paper(
    out: str | Path,
    *,
    models: Sequence[str] = tuple(f"embedded/{name}" for name in EMBEDDED),
    questions: Questions | None = None,
    plan: Plan | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
    say: Say = lambda text: None,
) -> Path:
    """Runs every stage for every model and writes `out/index.html`; returns its path.

    - models: `embedded/NAME`, folders or hub ids.
    - questions: the drawn corpus if None.
    - plan: how much is asked; the defaults of `Plan` if None.
    - settings: of `open_lens`.
    - progress: shows how far a stage is. say: is given a line before each stage.

    Raises as the stages do.
    """
    from mmneuron_lens.paper.page import PAPER, publish_paper

    plan, out = plan or Plan(), Path(out)
    questions = drawn_questions(out, plan, say) if questions is None else questions
    (out / "stages").mkdir(parents=True, exist_ok=True)
    described = {"corpus": questions.name, "drawn": questions.drawn, "plan": asdict(plan)}
    described["models"] = [run_model(out, model, questions, plan, settings or {}, progress, say) for model in models]
    write_atomically(out / PAPER, json.dumps(described, indent=1, sort_keys=True) + "\n")
    say("Drawing figures and writing the page")
    return publish_paper(out)


def paper_command(
    out: str | Path,
    plan: Plan,
    *,
    embedded: bool = False,
    models: Sequence[str] = (),
    corpora: Path | None = None,
    corpus: Path | None = None,
    questions: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
    say: Say = lambda text: None,
) -> Path:
    """What `mmneuron paper` does.

    - embedded: the embedded models, before `models`.
    - corpora: a folder of corpora as published. corpus: a folder of one's own images; one of them, or neither.
    - questions: so many a domain are answered; the plan's if None.
    - settings, progress, say: as of `paper`.

    Raises `RunError` when it is not said which models or which questions.
    """
    if not embedded and not models:
        raise RunError("say which models: --embedded, or --model with a folder or hub id (repeat it for several).")
    if corpora is not None and corpus is not None:
        raise RunError("--corpora is a folder of published corpora, --corpus one of your own images: give one of them.")
    named = [*(f"embedded/{name}" for name in EMBEDDED if embedded), *models]
    if corpora is None and corpus is None and not all(name.startswith("embedded/") for name in named):
        raise RunError("say which questions: --corpora with published corpora, or --corpus with a questions.jsonl.")
    if questions is not None:
        per_image = plan.evaluation_questions or 1
        plan = replace(plan, questions=questions, evaluation_images=-(-questions // per_image))
    asked = None
    if corpus is not None:
        asked = folder_questions(corpus, plan, some_domains(corpus))
    elif corpora is not None:
        asked = published_questions(corpora, out, named, plan, say)
    run = {"models": named, "questions": asked, "plan": plan, "settings": settings}
    return paper(out, **run, progress=progress, say=say)
