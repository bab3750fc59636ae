"""All stages of the paper on one model, each done once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.answers import ALL
from mmneuron_lens.artifacts.files import file_name
from mmneuron_lens.artifacts.format import content_hash, provenance, write_artifact
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.batches import Progress, model_facts, model_name
from mmneuron_lens.corpora.folder import some_of
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.ablate import Off, mean_activations, modules_of, questions_digest
from mmneuron_lens.experiments.deviate import deviate
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.experiments.read import read_entropy, trace_sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.done import Say, Stages
from mmneuron_lens.runs.plan import Plan
from mmneuron_lens.runs.questions import Questions
from mmneuron_lens.runs.stages import ablate_stage, answers_file, count_stage, counted, open_lens, selection_file


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
    from mmneuron_lens.batching.frames import with_frames_that_fit

    new = int(plan.generation.get("max_new_tokens", 512))
    first = with_frames_that_fit(lens, questions.identification, "identification", new)
    return first, with_frames_that_fit(lens, questions.evaluation, "evaluation", new)


def _mark(
    out: Path, lens: Lens, questions: Questions, plan: Plan, asked: Mapping[str, Sequence[Sample]], stages: Stages
) -> None:
    """Official scores, where a corpus has one."""
    from mmneuron_lens.artifacts.answers import load_answers
    from mmneuron_lens.evaluation.official_scores import mark_answers, marks_file

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
    from mmneuron_lens.artifacts.format import read_artifact

    file = out / "means" / f"{file_name(model_name(lens))}.safetensors"

    def make() -> None:
        means = mean_activations(lens, asked, **shared)
        write_artifact(file, "means", means, {"model": model_name(lens), "provenance": provenance(**model_facts(lens))})

    inputs = {"model": model_facts(lens), "questions": questions_digest(asked), "batch size": plan.batch_size}
    stages.run(f"means-{file_name(model_name(lens))}", f"{lens.name}: averaging activations", inputs, make, [file])
    return Off("mean", means=read_artifact(file, "means")[0])
