"""The command `mmneuron`: demo, count, select, show, paper, report.

Exit codes: 0 done, 1 the input has a problem, 2 wrong usage.
torch and the rest are imported when a command runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmneuron_lens.corpora.command import corpora_app
from mmneuron_lens.ndif.command import ndif_app
from mmneuron_lens.runs.command import merge
from mmneuron_lens.runtime.command import jobs_app

if TYPE_CHECKING:
    from mmneuron_lens.corpora.folder import Problems

app = typer.Typer(
    name="mmneuron",
    help="Find the domain-specific neurons of a vision-language model, switch them off, and look at them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

# Idle threads of torch sleep instead of spinning: on a busy machine spinning ones cost ten times the time. Read by
# OpenMP when torch is loaded, so it is set here, before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PROBLEMS_SHOWN = 10

WIDTH = 100
"""Characters a line of a table may take where there is no terminal to ask."""

Run = Annotated[Path, typer.Argument(help="The folder that `mmneuron count` or `mmneuron demo` wrote.")]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
Remote = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Run the model on the NDIF server at this URL; `ndif`: where you logged in."),
]


@app.command(epilog="Example: [bold]mmneuron demo --out runs/demo[/bold]")
def demo(
    out: Out = Path("runs/demo"),
    model: Annotated[
        Literal["embedded", "smol"], typer.Option(help="The two embedded models, or one with a real language model.")
    ] = "embedded",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions in one forward pass: 32, and 16 of smol.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if left out.")
    ] = None,
    remote: Remote = None,
) -> None:
    """Find domain-specific neurons on a drawn corpus: in the embedded models, about two minutes and no network.

    `--model smol` is LLaVA-NeXT from DINOv2-small and SmolLM2-135M: its parts, 183 MB, are fetched once and checked;
    after that it needs no network either. It is larger and takes longer.
    """
    with _in_one_line():
        from dataclasses import replace

        from mmneuron_lens.paper.demo import SMALL_MODELS, SMOL, demo_plan
        from mmneuron_lens.paper.demo import demo as run

        models = (SMOL,) if model == "smol" else SMALL_MODELS
        plan = demo_plan(models) if batch_size is None else replace(demo_plan(models), batch_size=batch_size)
        _quiet_loading()
        settings = {"remote": _host(remote), "dtype": dtype}
        _print_tables(run(out, models=models, plan=plan, settings=settings, progress=_bar, say=_say))


@app.command(
    epilog="Example: [bold]mmneuron count --model embedded/llava-next --corpus runs/demo/corpus --out runs/mine[/bold]"
)
def count(
    model: Annotated[
        str, typer.Option(help="embedded/llava-next, embedded/instructblip, embedded/smol, a folder, or a hub id.")
    ],
    corpus: Annotated[Path, typer.Option(help="A folder of images with a questions.jsonl.")],
    out: Out,
    domain: Annotated[
        list[str] | None, typer.Option(help="Only this domain; repeat it for several. May be one of your own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one forward pass.")] = 32,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images of each domain.")] = None,
    questions_per_image: Annotated[
        int | None, typer.Option(min=1, help="Only so many questions of each image, drawn with a fixed seed.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Ask every question by itself; do not share an image's forward.")
    ] = False,
    shard: Annotated[
        str,
        typer.Option(
            help="Only this part of the batches, for mmneuron merge: 2/4 is the second; or process, a launcher's."
        ),
    ] = "1/1",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images ahead of the model.")] = 0,
    remote: Remote = None,
) -> None:
    """Count how often each neuron is active, domain by domain.

    Writes counts/MODEL/DOMAIN.safetensors. A row of questions.jsonl is one object with domain, image (or images),
    question and answer; bad rows are named, counted and skipped.
    """
    with _in_one_line():
        from mmneuron_lens.corpora.folder import CorpusError, by_domain, read_folder, some_of
        from mmneuron_lens.corpora.sample import DOMAINS
        from mmneuron_lens.runs.merging import Shard
        from mmneuron_lens.runs.stages import count_stage, open_lens

        part = Shard.parse(shard)
        samples, problems = read_folder(corpus, tuple(dict.fromkeys([*DOMAINS, *(domain or ())])))
        chosen = by_domain(some_of(samples, images, questions_per_image))
        absent = [name for name in domain or () if name not in chosen]
        if absent:
            raise CorpusError(f"{corpus} has no good row of {', '.join(absent)}; it has {', '.join(chosen)}.")
        chosen = {name: some for name, some in chosen.items() if not domain or name in domain}
        _quiet_loading()
        lens = open_lens(model, remote=_host(remote), dtype=dtype, device=device)
        name = corpus.resolve().name
        try:
            settings = {"batch_size": batch_size, "corpus": name, "exact": exact, "shard": part, "workers": workers}
            # For `mmneuron jobs resume`.
            settings |= {"again": sys.argv[1:]} if remote else {}
            files = count_stage(lens, chosen, out, problems=problems, progress=_bar, **settings)
        finally:
            _print_problems(problems, out)
        for file in files:
            typer.echo(str(file))
        _say(f"Next: mmneuron select {out}" if shard == "1/1" else f"Next: mmneuron merge {out} --out ...")


@app.command(epilog="Example: [bold]mmneuron select runs/mine --fraction 0.01 --kinds image[/bold]")
def select(
    run: Run,
    fraction: Annotated[float, typer.Option(help="Share of each module's neurons to select.")] = 0.01,
    percentile: Annotated[float, typer.Option(help="Threshold on probabilities, as a share of them.")] = 0.95,
    kinds: Annotated[str, typer.Option(help="Only these kinds of token, with commas: image,text.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where to write, if not into the run's own folder.")] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Also show how the selection changes with the number of tokens.")
    ] = False,
) -> None:
    """Select each model's domain-specific neurons from its counts; write tables, figures and a page."""
    with _in_one_line():
        from mmneuron_lens.paper.summary import publish
        from mmneuron_lens.runs.stages import select_stage

        target = out or run
        names = [name.strip() for name in kinds.split(",") if name.strip()]
        found = select_stage(run, target, fraction=fraction, percentile=percentile, kinds=names, progress=_bar)
        _print_tables(publish(found, target, counts_in=run))
        if stability:
            from mmneuron_lens.runs.command import print_stability

            print_stability(run, fraction, percentile)


@app.command(epilog="Example: [bold]mmneuron show runs/demo[/bold]")
def show(run: Run) -> None:
    """Print the tables of a run and say where its page is."""
    with _in_one_line():
        from mmneuron_lens.runs.stages import RunError

        page = run / "index.html"
        if not page.is_file():
            raise RunError(f"{run} holds no tables yet; write them with `mmneuron select {run}`.")
        _print_tables(page)


@app.command(epilog="Example: [bold]mmneuron paper --embedded --out runs/paper[/bold]")
def paper(
    out: Out = Path("runs/paper"),
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Both embedded models on a drawn corpus: no checkpoint, no network.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="embedded/NAME (llava-next, instructblip, smol), a folder, or a hub id; repeat it."),
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
    off: Annotated[str, typer.Option(help="How neurons are switched off: zero, mean, or scale.")] = "zero",
    factor: Annotated[float, typer.Option(help="What `--off scale` multiplies them by.")] = 0.0,
    cross: Annotated[bool, typer.Option(help="Also switch off the neurons of every other domain.")] = True,
    random_draws: Annotated[int, typer.Option(min=0, help="Draws of random neurons whose deviation is read.")] = 5,
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search for answers.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one forward pass.")] = 32,
    judge: Annotated[str | None, typer.Option(help="Folder or hub id of Lingo-Judge, which scores LingoQA.")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    remote: Remote = None,
) -> None:
    """Every table and figure of the paper, its claims tested, on one page. Stopped, it goes on where it was."""
    with _in_one_line():
        from dataclasses import replace

        from mmneuron_lens.paper import run as whole

        plan = whole.Plan(off=off, factor=factor, cross=cross, random_draws=random_draws, seed=seed)
        plan = replace(plan, batch_size=batch_size, judge=judge, budget=tokens)
        plan.generation.update(num_beams=beams, max_new_tokens=max_new_tokens)
        plan = plan if images is None else replace(plan, identification_images=images)
        _quiet_loading()
        page = whole.paper_command(
            out, plan, embedded=embedded, models=model or (), corpora=corpora, corpus=corpus, questions=questions,
            settings={"dtype": dtype, "device": device, "remote": _host(remote)}, progress=_bar, say=_say,
        )  # fmt: skip
        _print_tables(page)


@app.command(epilog="Example: [bold]mmneuron report runs/paper[/bold]")
def report(run: Annotated[Path, typer.Argument(help="The folder that `mmneuron paper` wrote.")]) -> None:
    """Make the page, the tables (CSV, LaTeX) and the figures of a run of the paper again; runs no model."""
    with _in_one_line():
        from mmneuron_lens.paper.page import publish_paper

        typer.echo(f"Page: {publish_paper(run).resolve()}")


app.command(epilog="Example: [bold]mmneuron merge runs/one runs/two --out runs/both[/bold]")(merge)
app.add_typer(corpora_app, name="corpora")
app.add_typer(ndif_app, name="ndif")
app.add_typer(jobs_app, name="jobs")


@contextmanager
def _in_one_line() -> Iterator[None]:
    """A problem with the input is one line on stderr and exit code 1; a fault of this program stays a traceback."""
    try:
        yield
    except (ValueError, KeyError, OSError, ImportError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"mmneuron: {' '.join(str(said).split())}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("mmneuron: stopped; what was written so far is complete files.", err=True)
        raise typer.Exit(130) from None


def _bar(items: Sequence[Any], name: str) -> Iterable[Any]:
    from tqdm.auto import tqdm

    return tqdm(items, desc=name, file=sys.stderr, dynamic_ncols=True, mininterval=0.5)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _host(remote: str | None) -> bool | str:
    """What `lens.run` takes; nnsight's line for every job is left to a notebook."""
    if remote is None:
        return False
    import nnsight

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    return True if remote == "ndif" else remote


def _quiet_loading() -> None:
    """No progress bar of hundreds of weight tensors for a model that loads in a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _print_problems(problems: Problems, out: Path) -> None:
    if not len(problems):
        return
    file = out / "problems.txt"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{problems}\n", encoding="utf-8")
    lines = str(problems).splitlines()
    more = len(problems) - PROBLEMS_SHOWN
    shown = lines[: PROBLEMS_SHOWN + 1] + ([f"and {more} more"] if more > 0 else [])
    typer.echo("\n".join([*shown, f"All of them: {file}"]), err=True)


def _print_tables(page: Path) -> None:
    from rich.console import Console

    from mmneuron_lens.report.terminal import terminal_tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in terminal_tables(page):
        console.print(table)
        console.print()
    typer.echo(f"Page: {page.resolve()}")


if __name__ == "__main__":
    app()
