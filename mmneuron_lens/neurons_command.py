"""The command `mmneuron neurons`: a table of a run's neurons, and a page with what each answers to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmneuron_lens.echo import echo
from mmneuron_lens.options import (
    BatchSize,
    Device,
    DeviceMap,
    Discover,
    Domains,
    Dtype,
    FramesShown,
    Images,
    PlanFile,
    Quantize,
    QuestionsPerImage,
    Remote,
    Replace,
    Run,
)
from mmneuron_lens.printing import (
    bar,
    command_line,
    corpus_of,
    model_settings,
    print_problems,
    quiet_loading,
    refuse_useless,
    say,
    store_of,
)


def neurons(
    run: Run,
    model: Annotated[
        str | None, typer.Option(help="embedded/NAME, folder, or hub id: whose examples are read; with --corpus.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="The folder with images and questions.jsonl in which examples are looked for.")
    ] = None,
    of: Annotated[
        str, typer.Option("--of", metavar="WHICH", help="selected, all, or a file: site layer/neuron a line, or CSV.")
    ] = "selected",
    top: Annotated[int, typer.Option(min=1, help="Images kept of each neuron.")] = 20,
    attributions: Annotated[
        bool, typer.Option("--attributions", help="Also what each neuron adds to right answers, by gradients.")
    ] = False,
    effects: Annotated[
        int | None,
        typer.Option(min=1, help="Also switch off so many selected neurons of each domain and module, one at a time."),
    ] = None,
    domain: Domains = None,
    images: Images = None,
    questions_per_image: QuestionsPerImage = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Ask every question by itself; do not share an image's forward.")
    ] = False,
    frames: FramesShown = "fit",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images ahead of the model.")] = 0,
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Show what the neurons of a run answer to: a table, and a page with pictures.

    With a model and a corpus, the largest activations of its neurons are read: examples/MODEL.safetensors,
    words/MODEL.jsonl, and thumbnails in neurons/pictures/. Without them the page is made of what is there.
    """
    from mmneuron_lens.runs.folder import RunError

    if (model is None) != (corpus is None):
        lacks = "--corpus FOLDER" if corpus is None else "--model NAME"
        raise RunError(f"examples are read with a model and a corpus; give {lacks} too, or neither for the page alone.")
    if model is None and not any((run / "examples").glob("*.safetensors")) and not (run / "selection").is_dir():
        raise RunError(
            f"{run} holds neither a selection nor examples; run `mmneuron count` and `mmneuron select {run}`, then "
            f"`mmneuron neurons {run} --model NAME --corpus FOLDER`."
        )
    if model is not None and corpus is not None:
        asked = corpus_of(corpus, domain, images, questions_per_image)
        quiet_loading()
        settings = model_settings(remote, dtype, device, device_map, quantize)
        _read(
            run, asked, of, model, {**settings, "discover": discover}, k=top, again=command_line(remote),
            attributions=attributions, effects=effects, replace=replace, batch_size=batch_size, exact=exact,
            frames=frames, workers=workers,
        )  # fmt: skip
    else:
        refuse_useless({"--attributions": attributions, "--effects": effects}, "no --model and --corpus")
    from mmneuron_lens.runs.folder import selected_models
    from mmneuron_lens.runs.neuron_tables import write_neurons

    if selected_models(run):
        write_neurons(run)
    from mmneuron_lens.paper.neurons_page import publish_neurons

    echo(f"Page: {publish_neurons(run).resolve()}")


def _read(
    run: Path,
    asked: Any,
    of: str,
    model: str,
    settings: dict[str, Any],
    *,
    attributions: bool,
    effects: int | None,
    replace: bool,
    **shared: Any,
) -> None:
    """Reads what is not there yet of the examples of a model's neurons."""
    from mmneuron_lens.artifacts.selection import Selection
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.runs.attributions import attributions_stage
    from mmneuron_lens.runs.examples import examples_stage
    from mmneuron_lens.runs.folder import RunError, file_of
    from mmneuron_lens.runs.neuron_effects import effects_stage
    from mmneuron_lens.runs.neuron_file import read_neurons

    lens = Lens(model, **settings)
    which: Any = of if of in ("selected", "all") else read_neurons(of, lens)
    file = file_of(run, "selection", lens.name)
    selection = Selection.load(file) if file.is_file() else None
    if effects and selection is None:
        raise RunError(f"--effects: {run} has no selection of {lens.name}; write one with `mmneuron select {run}`.")
    store, samples = store_of(run, replace), asked.by_domain()
    quietly: dict[str, Any] = {"problems": asked.problems, "progress": bar, "frames": shared["frames"]}
    try:
        examples_stage(lens, selection, samples, store, of=which, corpus=asked.name, **{**shared, **quietly})
        if attributions:
            attributions_stage(lens, samples, store, corpus=asked.name, **quietly)
        if effects and selection is not None:
            of_domains = {domain: some for domain, some in samples.items() if domain in selection.domains}
            effects_stage(lens, selection, of_domains, store, most=effects, **quietly)
    finally:
        print_problems(asked.problems, run)
    say(f"{lens.name}: examples in {file_of(run, 'examples', lens.name)}")
