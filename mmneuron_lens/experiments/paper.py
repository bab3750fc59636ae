"""The whole paper: every stage on every model, each done once, and the folder of artifacts that its page is made from.

A stage is done when `stages/<name>.json` says that it was made from these very inputs and the files it names still
have the bytes it wrote. So the same command goes on where it was stopped, and a change of one stage repeats what
depends on it and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts import content_hash, provenance, write_artifact
from mmneuron_lens.corpora.folder import Problems, by_domain, read_folder, some_of
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.experiments.ablate import PAPER_GENERATION, Off, mean_activations, modules_of, questions_digest
from mmneuron_lens.experiments.answers import ALL
from mmneuron_lens.experiments.asking import Progress, file_name, model_facts, model_name, quietly
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.read import read_entropy, trace_sample
from mmneuron_lens.experiments.stages import (
    RunError,
    ablate_stage,
    answers_file,
    count_stage,
    counted,
    open_lens,
    selection_file,
)
from mmneuron_lens.lens import Lens
from mmneuron_lens.models.loading import EMBEDDED, embedded_folder
from mmneuron_lens.neurons.selection import Selection

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Plan:
    """How much is asked; the defaults take both embedded models through in under a quarter of an hour on two cores.

    Images and questions are per domain and per image. Deviation, entropy, embeddings and traces take the first of what
    identification and evaluation take. `random_draws` are of deviations, `ablation_draws` of answers with neurons off
    in all modules at once, which is also where the neurons of other domains are tried.
    """

    identification_images: int | None = 300
    identification_questions: int | None = 2
    evaluation_images: int | None = 75
    evaluation_questions: int | None = 2
    deviation_questions: int | None = 64
    entropy_images: int | None = 100
    embedding_images: int | None = 100
    traces: int = 1
    random_draws: int = 5
    ablation_draws: int = 3
    permutations: int = 20
    fraction: float = 0.01
    percentile: float = 0.95
    seed: int = 0
    cross: bool = True
    off: str = "zero"
    factor: float = 0.0
    batch_size: int = 32
    budget: int = 20_000_000
    questions: int = 500
    judge: str | None = None
    generation: dict[str, Any] = field(default_factory=lambda: dict(PAPER_GENERATION))

    def __post_init__(self) -> None:
        # Raises for an unknown way before anything runs.
        Off(self.off, self.factor, means={})  # type: ignore[arg-type]


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
    from mmneuron_lens.corpora.published import read_corpora
    from mmneuron_lens.experiments.published import NAMES, draw_samples, listed_samples, token_count

    purposes = {"identification": "train", "evaluation": "evaluation"}
    files = [
        Path(out) / "samples" / purpose / f"{domain}.json"
        for purpose, split in purposes.items()
        for domain in read_corpora(folder, split)
    ]
    inputs = {"budget": plan.budget, "questions": plan.questions, "seed": plan.seed}
    lenses = [_weightless(model) for model in models]
    lens = next((one for one in lenses if one.anatomy.facts["images_in_text"]), lenses[0])
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


class Stages:
    """Which stages of a run's folder are done, by the inputs they were made from."""

    def __init__(self, out: str | Path, say: Say = lambda text: None) -> None:
        self.out = Path(out)
        self.say = say

    def run(self, name: str, what: str, inputs: dict[str, Any], make: Callable[[], Any], files: Sequence[Path]) -> bool:
        """Makes the files unless they are there as they were made from equal inputs; True where it had to."""
        stamp = self.out / "stages" / f"{name}.json"
        known = json.loads(json.dumps({**inputs, "versions": provenance()["versions"]}, sort_keys=True))
        if self._is_done(stamp, known, files):
            self.say(f"already done: {what}")
            return False
        self.say(what)
        make()
        made = {str(file.relative_to(self.out)): content_hash(file) for file in files}
        stamp.parent.mkdir(parents=True, exist_ok=True)
        partial = stamp.with_name(f".{stamp.name}.partial")
        partial.write_text(json.dumps({"inputs": known, "files": made}, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(partial, stamp)
        return True

    def _is_done(self, stamp: Path, inputs: dict[str, Any], files: Sequence[Path]) -> bool:
        if not stamp.is_file():
            return False
        known = json.loads(stamp.read_text(encoding="utf-8"))
        names = {str(file.relative_to(self.out)) for file in files}
        if known["inputs"] != inputs or known["files"].keys() != names:
            return False
        return all(file.is_file() and content_hash(file) == known["files"][self._name(file)] for file in files)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.out))


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

    questions: the drawn corpus if left out. settings: of `open_lens`. Raises as the stages do.
    """
    from mmneuron_lens.experiments.sheet import publish_paper

    plan, out = plan or Plan(), Path(out)
    questions = drawn_questions(out, plan, say) if questions is None else questions
    (out / "stages").mkdir(parents=True, exist_ok=True)
    described = {"corpus": questions.name, "drawn": questions.drawn, "plan": asdict(plan)}
    described["models"] = [run_model(out, model, questions, plan, settings or {}, progress, say) for model in models]
    (out / "paper.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    say("Drawing figures and writing the page")
    return publish_paper(out, progress=progress)


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
    """What `mmneuron paper` does. Raises `RunError` when it is not said which models or which questions."""
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


def _weightless(model: str) -> Lens:
    """A lens without weights, which is enough to count tokens."""
    embedded = model.startswith("embedded/")
    return Lens.weightless(embedded_folder(model.removeprefix("embedded/")) if embedded else model)


def some_domains(folder: str | Path) -> tuple[str, ...]:
    """The domains of a folder's good rows, those of the paper first."""
    return tuple(by_domain(read_folder(folder)[0]))


def run_model(
    out: Path, model: str, questions: Questions, plan: Plan, settings: Mapping[str, Any], progress: Progress, say: Say
) -> str:
    """All stages of one model; returns the name it has in artifacts."""
    lens = open_lens(model, **settings)
    name = file_name(model_name(lens))
    stages, facts = Stages(out, say), model_facts(lens)
    identification, evaluation = _fitted(lens, questions, plan)
    shared: dict[str, Any] = {"batch_size": plan.batch_size, "problems": questions.problems, "progress": progress}
    sizes = {"batch size": plan.batch_size, "model": facts}

    def each(kind: str, what: str, asked: Mapping[str, Sequence[Sample]], make: Any, **inputs: Any) -> list[Path]:
        files = []
        for domain, samples in asked.items():
            file = out / kind / name / f"{file_name(domain)}.safetensors"
            digest = questions_digest({domain: samples})
            stages.run(
                f"{kind}-{name}-{file_name(domain)}",
                f"{lens.name}: {what} {domain}",
                {**sizes, "questions": digest, **inputs},
                lambda domain=domain, samples=samples, file=file: make(domain, samples, file),
                [file],
            )
            files.append(file)
        return files

    counts = each(
        "counts",
        "counting active neurons,",
        identification,
        lambda domain, samples, file: count_stage(lens, {domain: samples}, out, corpus=questions.name, **shared),
    )
    _select(out, lens, plan, counts, stages, progress)
    selection = Selection.load(selection_file(out, model_name(lens)))
    cited = {"selection": content_hash(selection_file(out, model_name(lens)))}
    asked = {domain: some for domain, some in evaluation.items() if domain in selection.domains}
    off = _off(out, lens, plan, asked, stages, **shared)
    how = {**cited, "off": off.described, "seed": plan.seed}
    controls = {"ablation draws": plan.ablation_draws, "cross": plan.cross}
    answers = answers_file(out, model_name(lens))
    stages.run(
        f"answers-{name}",
        f"{lens.name}: answering with neurons off",
        {**sizes, **how, **controls, "questions": questions_digest(asked), "generation": plan.generation},
        lambda: ablate_stage(
            lens,
            asked,
            out,
            modules=(*modules_of(selection), ALL),
            random_draws=plan.ablation_draws,
            controls=(ALL,),
            seed=plan.seed,
            cross=plan.cross,
            off=off,
            **shared,
            **plan.generation,
        ),
        [answers],
    )
    _mark(out, lens, questions, plan, asked, stages)
    few = {domain: some[: plan.deviation_questions] for domain, some in asked.items()}
    drawn = {"random_draws": plan.random_draws, "seed": plan.seed, "off": off, "selection_id": cited["selection"]}
    each(
        "deviations",
        "deviation of the last hidden state,",
        few,
        lambda domain, samples, file: deviate(lens, selection, samples, **drawn, **shared).save(file),
        **how,
        draws=plan.random_draws,
    )
    read = {domain: some_of(some, plan.entropy_images) for domain, some in identification.items()}
    each(
        "entropies",
        "entropy of the next token by layer,",
        read,
        lambda domain, samples, file: read_entropy(lens, samples, **shared).save(file),
    )
    seen = {domain: some_of(some, plan.embedding_images, 1) for domain, some in identification.items()}
    embedded = out / "embeddings" / f"{name}.safetensors"
    stages.run(
        f"embeddings-{name}",
        f"{lens.name}: embedding images",
        {**sizes, "questions": questions_digest(seen)},
        lambda: embed_images(lens, seen, **shared).save(embedded),
        [embedded],
    )
    for number in range(plan.traces):
        one = {domain: some[number : number + 1] for domain, some in evaluation.items() if len(some) > number}
        each(
            f"traces/{number + 1}",
            "reading the layers,",
            one,
            lambda domain, samples, file: trace_sample(lens, samples[0]).save(file),
        )
    return model_name(lens)


def _fitted(lens: Lens, questions: Questions, plan: Plan) -> tuple[Any, Any]:
    """The questions as this model can be asked them: of several frames, those that fit."""
    parts = questions.identification, questions.evaluation
    if all(len(sample.images) == 1 for part in parts for some in part.values() for sample in some):
        return parts
    from mmneuron_lens.experiments.published import with_frames_that_fit

    new = int(plan.generation.get("max_new_tokens", 512))
    first = with_frames_that_fit(lens, questions.identification, "identification", new)
    return first, with_frames_that_fit(lens, questions.evaluation, "evaluation", new)


def _mark(
    out: Path, lens: Lens, questions: Questions, plan: Plan, asked: Mapping[str, Sequence[Sample]], stages: Stages
) -> None:
    """Official scores, where a corpus has one."""
    from mmneuron_lens.experiments.answers import load_answers
    from mmneuron_lens.experiments.marking import mark_answers, marks_file

    file, answers = marks_file(out, model_name(lens)), answers_file(out, model_name(lens))
    if not questions.corpora:
        file.unlink(missing_ok=True)
        return

    def make() -> None:
        from mmneuron_lens.metrics import LingoJudge

        judge = None if plan.judge is None else LingoJudge.load(plan.judge)
        mark_answers(load_answers(answers), asked, questions.corpora, judge).save(file)

    inputs = {"answers": content_hash(answers), "corpora": dict(questions.corpora), "judge": plan.judge}
    stages.run(f"marks-{file_name(model_name(lens))}", f"{lens.name}: scoring answers", inputs, make, [file])


def _select(out: Path, lens: Lens, plan: Plan, counts: list[Path], stages: Stages, progress: Progress) -> None:
    from mmneuron_lens.experiments.identify import find

    name = file_name(model_name(lens))
    file = selection_file(out, model_name(lens))

    def make() -> None:
        (mine,) = [some for some in counted(out) if some[0].model == model_name(lens)]
        found = find(
            mine,
            fraction=plan.fraction,
            percentile=plan.percentile,
            permutations=plan.permutations,
            seed=plan.seed,
            progress=progress,
        )
        found.selection.save(file)
        found.wider.save(out / "selection_wider" / f"{name}.safetensors")
        controls = out / "controls" / name
        if found.discovery is not None and found.overlap is not None:
            found.discovery.save(controls / "false_discovery.safetensors")
            found.overlap.save(controls / "halves_overlap.safetensors")

    cited = {str(one.relative_to(out)): content_hash(one) for one in counts}
    rule = {"fraction": plan.fraction, "percentile": plan.percentile}
    inputs = {"counts": cited, **rule, "permutations": plan.permutations, "seed": plan.seed}
    wider = out / "selection_wider" / f"{name}.safetensors"
    stages.run(f"selection-{name}", f"{lens.name}: selecting neurons", inputs, make, [file, wider])


def _off(
    out: Path, lens: Lens, plan: Plan, asked: Mapping[str, Sequence[Sample]], stages: Stages, **shared: Any
) -> Off:
    if plan.off != "mean":
        return Off(plan.off, plan.factor)  # type: ignore[arg-type]
    from mmneuron_lens.artifacts import read_artifact

    file = out / "means" / f"{file_name(model_name(lens))}.safetensors"

    def make() -> None:
        means = mean_activations(lens, asked, **shared)
        write_artifact(file, "means", means, {"model": model_name(lens), "provenance": provenance(**model_facts(lens))})

    inputs = {"model": model_facts(lens), "questions": questions_digest(asked), "batch size": plan.batch_size}
    stages.run(f"means-{file_name(model_name(lens))}", f"{lens.name}: averaging activations", inputs, make, [file])
    return Off("mean", means=read_artifact(file, "means")[0])
