"""What a run asks: of a folder of one's own, or of corpora as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from interventions.files import write_atomically
from mmneuron_lens.batching.frames import token_count
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.division import divide
from mmneuron_lens.corpora.folder import Problems, some_of
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.published import read_corpora
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.corpora.rows import CorpusError
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.sample_lists import NAMES, draw_samples, listed_samples
from mmneuron_lens.runs.store import Say


@dataclass(frozen=True)
class Questions:
    """What is asked, by domain: to identify neurons, and to see what happens without them.

    - name: of the corpus, or of the folder of corpora.
    - drawn: whether a program drew the images.
    - corpora: by domain, those that have an official score.
    - notes: how the questions were chosen otherwise than the plan says, a line each.
    - shared: so many of those that are answered are about images that identify neurons too.
    """

    name: str
    identification: Mapping[str, Sequence[Sample]]
    evaluation: Mapping[str, Sequence[Sample]]
    problems: Problems
    drawn: bool = False
    corpora: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared: int = 0


def corpus_questions(corpus: Corpus, plan: Plan, name: str | None = None, drawn: bool = False) -> Questions:
    """The questions of a corpus: the first images of each domain identify, those after them evaluate.

    Where a domain has fewer images than both want, they share what there is, which a note says. No image is in both,
    in whatever domain and under whatever name. Raises `CorpusError` for fewer than two domains, or a domain whose
    images cannot be shared.
    """
    domains = corpus.by_domain()
    if len(domains) < 2:
        raise CorpusError(
            f"{corpus.name} has one domain, {', '.join(domains)}; neurons are specific to one of two or more: add "
            "questions of another domain."
        )
    try:
        shared = divide(domains, plan.identification_images, plan.evaluation_images)
    except CorpusError as error:
        raise CorpusError(f"{corpus.name}, {error}") from error
    first, then = (
        {domain: some_of(samples, None, questions, seed=plan.seed) for domain, samples in part.items()}
        for part, questions in (
            (shared.first, plan.identification_questions),
            (shared.then, plan.evaluation_questions),
        )
    )
    notes = (*corpus.problems.notes, *shared.notes)
    return Questions(name or corpus.name, first, then, corpus.problems, drawn, corpus.official, notes)


def folder_questions(folder: str | Path, plan: Plan, name: str | None = None, drawn: bool = False) -> Questions:
    """The questions of a folder with a `questions.jsonl`, of all its domains."""
    return corpus_questions(load_corpus(Path(folder)), plan, name, drawn)


def published_questions(folder: str | Path, out: str | Path, models: Sequence[str], plan: Plan, say: Say) -> Questions:
    """The questions of a folder of published corpora: one sample list a corpus, drawn once, in LLaVA-NeXT tokens.

    Tokens are counted as the first of `models` with images in its text counts them, or the first. What is skipped is
    named in `out/problems.txt`.
    """
    lenses = [Lens.weightless(model) for model in models]
    lens = next((one for one in lenses if one.architecture.facts["images_in_text"]), lenses[0])
    files = [
        Path(out) / "samples" / purpose / f"{domain}.json"
        for purpose, split in (("identification", "train"), ("evaluation", "evaluation"))
        for domain in read_corpora(folder, split)
    ]
    if all(file.is_file() for file in files):
        say(f"already done: drawing sample lists from {folder}")
    else:
        say(f"drawing sample lists from {folder}")
        found = [some for some in draw_samples(folder, out, lens, plan)[1] if len(some)]
        if found:
            write_atomically(Path(out) / "problems.txt", "\n".join(map(str, found)) + "\n")
            say(f"{sum(map(len, found))} records are skipped and named in {Path(out) / 'problems.txt'}")
            for part in (part for some in found for part in some.unread):
                say(part)
    identification, evaluation, notes = listed_samples(folder, out, token_count(lens, plan.frames), plan)
    name = Path(folder).resolve().name
    used = {image for samples in identification.values() for sample in samples for image in sample.images}
    shared = sum(not used.isdisjoint(sample.images) for samples in evaluation.values() for sample in samples)
    problems = RecordProblems(Path(folder))
    return Questions(name, identification, evaluation, problems, corpora=NAMES, notes=tuple(notes), shared=shared)
