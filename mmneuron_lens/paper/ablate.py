"""`mmneuron ablate`: a run's selection, switched off while a corpus of one's own is answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.files import write_atomically
from mmneuron_lens.artifacts.answers import Answers
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.selection import PUBLISHED
from mmneuron_lens.neurons.selectors.registry import selector_named
from mmneuron_lens.runs.answer import answer_stage, off_stage, score_stage
from mmneuron_lens.runs.folder import RunError, file_of, selection_file
from mmneuron_lens.runs.store import Store


def folder_of_method(run: Path, model: str, method: str) -> Path:
    """Where a method's neurons are switched off: the run itself for the published one, else `ablations/METHOD` in it.

    The method's selection of the model is copied there, so that the folder is a run with a page of its own.

    Raises `RunError` where the run has no selection of the model by this method.
    """
    if method == PUBLISHED:
        return run
    selector_named(method)
    file = selection_file(run, model, method)
    if not file.is_file():
        raise RunError(
            f"{run} has no selection of {model} by {method}; write one: mmneuron select {run} --method {method}"
        )
    folder = run / "ablations" / method
    copy = file_of(folder, "selection", model)
    write_atomically(copy, file.read_bytes())
    return folder


def ablate_run(
    store: Store,
    lens: Lens,
    corpus: Corpus,
    *,
    off: str = "zero",
    factor: float = 0.0,
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    generation: Mapping[str, Any] | None = None,
    progress: Progress = quietly,
    **settings: Any,
) -> Answers:
    """The answers to a corpus with the neurons off that a run selected for this model; scored where it is published.

    - store: the run's folder.
    - off, factor: how neurons are switched; for "mean", the means are those over the corpus.
    - frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - generation: settings of `generate`.
    - settings: modules, random_draws, seed, match, cross of `experiments.ablate`.

    Raises `RunError` when the run has no selection of the model, or none of the corpus' domains is in it.
    """
    assert store.folder is not None
    file = file_of(store.folder, "selection", lens.name)
    if not file.is_file():
        raise RunError(f"{store.folder} has no selection of {lens.name}; write one with `mmneuron select`.")
    selection = Selection.load(file)
    asked = {domain: some for domain, some in corpus.by_domain().items() if domain in selection.domains}
    if not asked:
        there, selected = ", ".join(corpus.by_domain()), ", ".join(selection.domains)
        raise RunError(f"{corpus.name} has questions of {there}, and the selection is of {selected}; ask of those.")
    if left := [domain for domain in corpus.by_domain() if domain not in asked]:
        store.say(
            f"{', '.join(left)}: not among the selection's domains ({', '.join(selection.domains)}), so not asked"
        )
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": corpus.problems, "progress": progress}
    shared |= {"frames": frames, "prompt_form": prompt_form}
    switched = off_stage(lens, off, factor, asked, store, **shared)
    answers = answer_stage(
        lens, selection, asked, store, selection_id=content_hash(file), off=switched, **shared, **settings,
        **(generation or {}),
    )  # fmt: skip
    if corpus.official:
        answers_id = content_hash(file_of(store.folder, "answers", lens.name, suffix=".jsonl"))
        score_stage(answers, asked, corpus.official, store, model=lens.name, answers_id=answers_id)
    return answers
