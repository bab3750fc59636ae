"""What a run of the paper asks: of a drawn corpus, of a folder of one's own, of corpora as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmneuron_lens.corpora.folder import Problems, by_domain, read_folder, some_of
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.done import Say, Stages
from mmneuron_lens.runs.plan import Plan


@dataclass(frozen=True)
class Questions:
    """What is asked, by domain: to identify neurons, and to see what happens without them.

    `name`: of the corpus, or of the folder of corpora; `corpora`: by domain, those that have an official score.
    """

    name: str
    identification: Mapping[str, Sequence[Sample]]
    evaluation: Mapping[str, Sequence[Sample]]
    problems: Problems
    drawn: bool = False
    corpora: Mapping[str, str] = field(default_factory=dict)


def drawn_questions(out: str | Path, plan: Plan, say: Say, domains: Sequence[str] = DOMAINS) -> Questions:
    """The questions of a corpus that is drawn into `out/corpus`; no image is in both parts."""
    from mmneuron_lens.embedded.corpus.draw import write_folder

    folder = Path(out) / "corpus"
    images = (plan.identification_images or 0) + (plan.evaluation_images or 0)
    stages = Stages(out, say)
    inputs = {"images": images, "domains": list(domains), "split": "demo", "method": "drawn"}
    stages.run(
        "corpus",
        f"drawing {images} images in each of {len(domains)} domains",
        inputs,
        lambda: write_folder(folder, images_per_domain=images, domains=domains),
        [folder / "questions.jsonl"],
    )
    return folder_questions(folder, plan, domains, name="drawn", drawn=True)


def folder_questions(
    folder: str | Path, plan: Plan, domains: Sequence[str] = DOMAINS, name: str | None = None, drawn: bool = False
) -> Questions:
    """The questions of a folder with a `questions.jsonl`: the first images of each domain identify, those after them
    evaluate.
    """
    samples, problems = read_folder(folder, tuple(dict.fromkeys([*DOMAINS, *domains])))
    samples = [sample for sample in samples if sample.domain in domains]
    skip = plan.identification_images or 0
    identification = some_of(samples, plan.identification_images, plan.identification_questions, seed=plan.seed)
    evaluation = some_of(samples, plan.evaluation_images, plan.evaluation_questions, skip, seed=plan.seed)
    return Questions(
        name or Path(folder).resolve().name, by_domain(identification), by_domain(evaluation), problems, drawn
    )


def published_questions(folder: str | Path, out: str | Path, models: Sequence[str], plan: Plan, say: Say) -> Questions:
    """The questions of a folder of published corpora: one sample list a corpus, drawn once, in LLaVA-NeXT tokens.

    Tokens are counted as the first of `models` with images in its text counts them, or the first. What is skipped is
    named in `out/problems.txt`.
    """
    from mmneuron_lens.batching.frames import NAMES, draw_samples, listed_samples, token_count
    from mmneuron_lens.corpora.published import read_corpora

    purposes = {"identification": "train", "evaluation": "evaluation"}
    files = [
        Path(out) / "samples" / purpose / f"{domain}.json"
        for purpose, split in purposes.items()
        for domain in read_corpora(folder, split)
    ]
    inputs = {"budget": plan.budget, "questions": plan.questions, "seed": plan.seed}
    lenses = [_weightless(model) for model in models]
    lens = next((one for one in lenses if one.architecture.facts["images_in_text"]), lenses[0])
    inputs |= {"count": token_count(lens).parameters(), "folder": Path(folder).resolve().name}

    def make() -> None:
        found = [
            some for some in draw_samples(folder, out, lens, plan.budget, plan.questions, plan.seed)[1] if len(some)
        ]
        if found:
            (Path(out) / "problems.txt").write_text("\n".join(map(str, found)) + "\n", encoding="utf-8")
            say(f"{sum(map(len, found))} records are skipped and named in {Path(out) / 'problems.txt'}")

    Stages(out, say).run(
        "samples",
        f"drawing sample lists from {folder}",
        inputs,
        make,
        files,
    )
    identification, evaluation = listed_samples(folder, out)
    name = Path(folder).resolve().name
    return Questions(name, identification, evaluation, Problems(Path(folder)), corpora=NAMES)


def some_domains(folder: str | Path) -> tuple[str, ...]:
    """The domains of a folder's good rows, those of the paper first."""
    return tuple(by_domain(read_folder(folder)[0]))


def _weightless(model: str) -> Lens:
    """A lens without weights, which is enough to count tokens."""
    return Lens.weightless(model)
