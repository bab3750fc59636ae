"""The command `mmneuron`: every command in its panel of `--help`, and those that are written here.

Exit codes: 0 done, 1 the input has a problem, 2 wrong usage, 130 stopped, 141 nobody reads the output.
torch and the rest are imported when a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmneuron_lens.commands import CHECK, COMPARE, FIND, LOOK, PAPER, REMOTE, SHARE, Commands
from mmneuron_lens.compare_command import compare
from mmneuron_lens.corpora.command import corpora_app
from mmneuron_lens.counting_commands import count, select
from mmneuron_lens.doctor.command import doctor
from mmneuron_lens.echo import echo, example
from mmneuron_lens.ndif.command import ndif_app
from mmneuron_lens.neurons_command import neurons
from mmneuron_lens.options import (
    BatchSize,
    CorpusFolder,
    Device,
    DeviceMap,
    Discover,
    Domains,
    Dtype,
    EvenLayers,
    Factor,
    Frame,
    FramesShown,
    Images,
    LensAt,
    Method,
    ModelName,
    NumBeams,
    OffHow,
    Out,
    PlanFile,
    Quantize,
    QuestionsPerImage,
    Remote,
    Replace,
    Run,
    Seed,
)
from mmneuron_lens.printing import (
    bar,
    command_line,
    corpus_of,
    model_settings,
    print_problems,
    print_tables,
    quiet_loading,
    refuse_useless,
    say,
    store_of,
)
from mmneuron_lens.proof_commands import describe, prove
from mmneuron_lens.runs.jobs_command import jobs_app
from mmneuron_lens.sharing_commands import pull, push

app = typer.Typer(
    cls=Commands,
    name="mmneuron",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from mmneuron_lens.doctor.packages import version_line

        echo(version_line())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and end.")
    ] = False,
) -> None:
    """Find the domain-specific neurons of a vision-language model, switch them off, and look at them.

    New here: `mmneuron demo --quick`, then `mmneuron doctor`.
    """


# Idle threads of torch sleep instead of spinning: on a busy machine spinning ones cost ten times the time. Read by
# OpenMP when torch is loaded, so it is set here, before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _demo_folder(context: typer.Context, out: Path | None) -> Path:
    return out or Path("runs/look" if context.params["quick"] else "runs/demo")


@app.command(rich_help_panel=FIND, epilog=example("mmneuron demo --quick --out runs/look"))
def demo(
    out: Annotated[
        Path | None,
        typer.Option(callback=_demo_folder, help="The folder to write to: runs/demo, and runs/look with --quick."),
    ] = None,
    model: Annotated[
        Literal["embedded", "smol"], typer.Option(help="The three small models, or one with a real language model.")
    ] = "embedded",
    quick: Annotated[
        bool,
        typer.Option("--quick", is_eager=True, help="One model, its neurons and their pictures: about half a minute."),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions in one forward pass: 32, and 16 of smol.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    remote: Remote = None,
    replace: Replace = False,
) -> None:
    """Find domain-specific neurons on a drawn corpus: in the embedded models, about three minutes and no network.

    `--model smol` is LLaVA-NeXT from DINOv2-small and SmolLM2-135M: its parts, 183 MB, are fetched once and checked;
    after that it needs no network either. It is larger and takes longer.
    """
    from dataclasses import replace as changed

    from mmneuron_lens.paper.demo import QUICK, QUICK_PLAN, SMALL_MODELS, SMOL, demo_plan
    from mmneuron_lens.paper.demo import demo as run

    refuse_useless({"--model smol": model == "smol"}, "--quick" if quick else "")
    models = (QUICK,) if quick else (SMOL,) if model == "smol" else SMALL_MODELS
    plan = QUICK_PLAN if quick else demo_plan(models)
    plan = plan if batch_size is None else changed(plan, batch_size=batch_size)
    quiet_loading()
    settings = model_settings(remote, dtype, device, device_map, quantize)
    assert out is not None
    print_tables(
        run(
            store_of(out, replace),
            models=models,
            plan=plan,
            settings=settings,
            again=command_line(remote),
            progress=bar,
        )
    )


app.command(
    rich_help_panel=FIND,
    epilog=example(
        "mmneuron count --model embedded/llava-next --corpus runs/look/corpus --images 20 --questions-per-image 2 "
        "--out runs/mine"
    ),
)(count)
app.command(rich_help_panel=FIND, epilog=example("mmneuron select runs/mine --fraction 0.01"))(select)


@app.command(
    rich_help_panel=COMPARE,
    epilog=example(
        "mmneuron ablate runs/mine --model embedded/llava-next --corpus runs/look/corpus --skip-images 20 --images 2"
    ),
)
def ablate(
    run: Annotated[Path, typer.Argument(help="The folder in which `mmneuron select` selected the model's neurons.")],
    model: ModelName,
    corpus: CorpusFolder,
    domain: Domains = None,
    images: Images = None,
    skip_images: Annotated[
        int, typer.Option(min=0, help="Leave out the first so many images of each domain, which identified neurons.")
    ] = 0,
    questions_per_image: QuestionsPerImage = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="All (at once), LLM, Vision Encoder, MLP Projector, Q-Former; repeat it for several."),
    ] = None,
    random_draws: Annotated[int, typer.Option(min=0, help="Draws of as many random neurons.")] = 3,
    method: Method = "dape",
    match: Annotated[str, typer.Option(help="What random neurons match in number: module, or layer.")] = "module",
    off: OffHow = "zero",
    factor: Factor = 0.0,
    cross: Annotated[bool, typer.Option(help="Also switch off the neurons of every other domain.")] = False,
    num_beams: NumBeams = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 16,
    batch_size: BatchSize = 32,
    frames: FramesShown = "fit",
    prompt_form: Frame = "auto",
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Answer your own corpus with selected neurons off, and with as many random ones off; write tables and a page.

    With --method the neurons of another method than the published one, on a page of their own: RUN/ablations/METHOD.
    """
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.paper.ablate import ablate_run, folder_of_method
    from mmneuron_lens.paper.summary import publish

    asked = corpus_of(corpus, domain, images, questions_per_image, skip_images)
    quiet_loading()
    lens = Lens(model, **model_settings(remote, dtype, device, device_map, quantize), discover=discover)
    store = store_of(folder_of_method(run, lens.name, method), replace)
    try:
        ablate_run(
            store, lens, asked, off=off, factor=factor, modules=tuple(module or ("All",)), random_draws=random_draws,
            match=match, cross=cross, seed=seed, batch_size=batch_size, frames=frames, prompt_form=prompt_form,
            progress=bar,
            generation={"num_beams": num_beams, "max_new_tokens": max_new_tokens},
        )  # fmt: skip
    finally:
        print_problems(asked.problems, run)
    print_tables(publish(store.folder or run, counts_in=run))


@app.command(rich_help_panel=LOOK, epilog=example("mmneuron show runs/look"))
def show(run: Run) -> None:
    """Print the tables of a run and say where its page is."""
    from mmneuron_lens.runs.folder import RunError

    page = run / "index.html"
    if not page.is_file():
        raise RunError(f"{run} holds no tables yet; write them with `mmneuron select {run}`.")
    print_tables(page)


@app.command(rich_help_panel=PAPER, epilog=example("mmneuron paper --embedded --out runs/paper"))
def paper(
    out: Out = Path("runs/paper"),
    embedded: Annotated[
        bool, typer.Option("--embedded", help="The three embedded models on a drawn corpus: no checkpoint, no network.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="embedded/NAME (llava-next, instructblip, idefics3, smol), folder, or hub id; repeat it."),
    ] = None,
    corpora: Annotated[
        Path | None, typer.Option(help="A folder of corpora as published: vqav2, rsvqa, pmc_vqa, docvqa, lingoqa.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="A folder of your own images with a questions.jsonl.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images a domain that identify neurons (of a drawn or own corpus).")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(min=2, help="Questions a domain that are answered; 150, and 500 of published corpora.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="LLaVA-NeXT tokens a domain that identify neurons (of published corpora).")
    ] = 20_000_000,
    off: OffHow = "zero",
    factor: Factor = 0.0,
    cross: Annotated[bool, typer.Option(help="Also switch off the neurons of every other domain.")] = True,
    random_draws: Annotated[int, typer.Option(min=0, help="Draws of random neurons whose deviation is read.")] = 5,
    num_beams: NumBeams = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 512,
    batch_size: BatchSize = 32,
    frames: FramesShown = "fit",
    prompt_form: Frame = "auto",
    lens_question: Annotated[
        list[str] | None,
        typer.Option(help="The id of a question that Figures 6 and 10 to 13 show; repeat it for several domains."),
    ] = None,
    lens_at: LensAt = None,
    even_layers: EvenLayers = False,
    further: Annotated[
        bool, typer.Option(help="Also what is not in the paper: attention cut, probes, further lenses.")
    ] = True,
    judge: Annotated[str | None, typer.Option(help="Folder or hub id of Lingo-Judge, which scores LingoQA.")] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Every table and figure of the paper, its claims tested, on one page. Stopped, it goes on where it was."""
    from dataclasses import replace as changed

    from mmneuron_lens.paper.run import paper_command
    from mmneuron_lens.runs.plan import FURTHER, Plan

    amounts = Plan(off=off, factor=factor, cross=cross, random_draws=random_draws, seed=seed)
    amounts = changed(
        amounts, batch_size=batch_size, judge=judge, budget=tokens, frames=frames, prompt_form=prompt_form
    )
    amounts = changed(
        amounts, lens_questions=tuple(lens_question or ()), lens_at=tuple(lens_at or ()), even_layers=even_layers
    )
    amounts.generation.update(num_beams=num_beams, max_new_tokens=max_new_tokens)
    amounts = amounts if images is None else changed(amounts, identification_images=images)
    amounts = amounts if further else changed(amounts, **dict.fromkeys(FURTHER, 0))
    quiet_loading()
    page = paper_command(
        store_of(out, replace), amounts, embedded=embedded, models=model or (), corpora=corpora, corpus=corpus,
        questions=questions, again=command_line(remote), progress=bar,
        settings={**model_settings(remote, dtype, device, device_map, quantize), "discover": discover},
    )  # fmt: skip
    print_tables(page)


@app.command(rich_help_panel=PAPER, epilog=example("mmneuron report runs/paper"))
def report(
    run: Annotated[Path, typer.Argument(help="The folder that `mmneuron paper` wrote.")],
    lens_at: LensAt = None,
    even_layers: EvenLayers = False,
) -> None:
    """Make the page, the tables (CSV, LaTeX) and the figures of a run of the paper again; runs no model."""
    from mmneuron_lens.paper.layers import Cases
    from mmneuron_lens.paper.page import publish_paper

    other = {"cases": Cases(tuple(lens_at or ()), even_layers)} if lens_at or even_layers else {}
    echo(f"Page: {publish_paper(run, **other).resolve()}")


@app.command(rich_help_panel=FIND, epilog=example("mmneuron merge runs/one runs/two --out runs/both"))
def merge(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `mmneuron count --shard i/n --out ...` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write the whole counts to.")],
    replace: Replace = False,
) -> None:
    """Merge the shards of a count, from one folder or several, into the counts of one run, bit for bit."""
    from mmneuron_lens.runs.merging import merge_runs

    for file in merge_runs(runs, out, replace):
        echo(file)
    say(f"Next: mmneuron select {out}")


app.command(rich_help_panel=LOOK, epilog=example("mmneuron neurons runs/look"))(neurons)
app.command(
    rich_help_panel=COMPARE,
    epilog=example(
        "mmneuron compare runs/mine --model embedded/llava-next --corpus runs/look/corpus --skip-images 20 --images 2 "
        "--fractions 0.01"
    ),
)(compare)
app.add_typer(ndif_app, name="ndif", rich_help_panel=REMOTE)
app.add_typer(jobs_app, name="jobs", rich_help_panel=REMOTE)
app.command(rich_help_panel=SHARE, epilog=example("mmneuron push runs/look hf://datasets/OWNER/NAME"))(push)
app.command(rich_help_panel=SHARE, epilog=example("mmneuron pull hf://datasets/OWNER/NAME --out runs/theirs"))(pull)
app.command(rich_help_panel=CHECK, epilog=example("mmneuron doctor"))(doctor)
app.command(rich_help_panel=CHECK, epilog=example("mmneuron prove embedded/llava-next"))(prove)
app.command(rich_help_panel=CHECK, epilog=example("mmneuron describe embedded/llava-next"))(describe)
app.add_typer(corpora_app, name="corpora", rich_help_panel=CHECK)


if __name__ == "__main__":
    app()
