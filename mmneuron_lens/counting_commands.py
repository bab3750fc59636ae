"""The commands `mmneuron count` and `mmneuron select`: which neurons are active where, and which are specific."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mmneuron_lens.echo import echo
from mmneuron_lens.options import (
    BatchSize,
    CorpusFolder,
    Device,
    DeviceMap,
    Discover,
    Domains,
    Dtype,
    Frame,
    FramesShown,
    Images,
    Method,
    ModelName,
    Out,
    Parameters,
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
    parameters_of,
    print_problems,
    print_selections,
    print_table,
    print_tables,
    quiet_loading,
    refuse_useless,
    say,
    store_of,
)


def count(
    model: ModelName,
    corpus: CorpusFolder,
    out: Out,
    domain: Domains = None,
    batch_size: BatchSize = 32,
    images: Images = None,
    questions_per_image: QuestionsPerImage = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Ask every question by itself; do not share an image's forward.")
    ] = False,
    frames: FramesShown = "fit",
    shard: Annotated[
        str,
        typer.Option(
            help="Only this part of the work, for mmneuron merge: 2/4 is the second; or process, a launcher's."
        ),
    ] = "1/1",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images ahead of the model.")] = 0,
    moments: Annotated[
        bool, typer.Option("--moments", help="Also keep how strongly each neuron is active, from the same forwards.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Also keep so many top activations of every neuron, for mmneuron neurons."),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Count only until two halves of the data select the same neurons to this overlap: 0.9."),
    ] = None,
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Count how often each neuron is active, domain by domain.

    Writes counts/MODEL/DOMAIN.safetensors, and with --moments moments/MODEL/DOMAIN.safetensors. A row of
    questions.jsonl is one object with domain, image (or images), question and answer; bad rows are named, counted and
    skipped.
    """
    from mmneuron_lens.artifacts.counts import Counts
    from mmneuron_lens.batching.gather import Shard
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.runs.count import count_stage
    from mmneuron_lens.runs.folder import file_of
    from mmneuron_lens.runs.moments import moments_stage
    from mmneuron_lens.runs.until import count_until, enough_line, rule_of

    mine, store = Shard.parse(shard), store_of(out, replace)
    rule = rule_of(until, mine)
    refuse_useless({"--moments": moments, "--top": top is not None}, "" if rule is None else "--until")
    asked = corpus_of(corpus, domain, images, questions_per_image)
    quiet_loading()
    lens = Lens(model, **model_settings(remote, dtype, device, device_map, quantize), discover=discover)
    counted = (moments_stage if moments else count_stage) if rule is None else partial(count_until, rule=rule)
    parts = {"shard": mine, "again": command_line(remote), "top": top} if rule is None else {}
    try:
        counts = counted(
            lens, asked.by_domain(), store, workers=workers,
            batch_size=batch_size, corpus=asked.name, exact=exact, frames=frames, problems=asked.problems,
            progress=bar, **parts,
        )  # fmt: skip
    finally:
        print_problems(asked.problems, out)
    for name, found in counts.items():
        if found is not None:
            echo(file_of(out, "counts", lens.name, name))
            if moments:
                echo(file_of(out, "moments", lens.name, name))
            if rule is not None and isinstance(found, Counts):
                echo(enough_line(found))
    whole = all(found is not None for found in counts.values())
    say(f"Next: mmneuron select {out}" if whole else f"Next, with the other shards: mmneuron merge {out} --out ...")


def select(
    run: Run,
    fraction: Annotated[float, typer.Option(help="Share of each module's neurons to select.")] = 0.01,
    percentile: Annotated[float, typer.Option(help="Threshold on probabilities, as a share of them.")] = 0.95,
    kinds: Annotated[str, typer.Option(help="Only these kinds of token, with commas: image,text.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where to write, if not into the run's own folder.")] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Also show how the selection changes with the number of tokens.")
    ] = False,
    method: Method = "dape",
    parameter: Parameters = None,
    masks: Annotated[
        Path | None, typer.Option(help="Take the neurons of this file of LAPE's masks: indices by domain and layer.")
    ] = None,
    write_masks: Annotated[
        Path | None, typer.Option(help="Also write the language model's neurons to this file, as LAPE's masks.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only this model of the run; needed with --corpus.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="A folder with a questions.jsonl, for attributions that are not there yet.")
    ] = None,
    images: Images = None,
    questions_per_image: QuestionsPerImage = None,
    batch_size: BatchSize = 16,
    alpha: Annotated[
        float | None, typer.Option(min=0, help="Of attributions: exponent of the gradient in can; 1 if left out.")
    ] = None,
    gradient_steps: Annotated[
        int | None, typer.Option(min=0, help="Of attributions: points of integrated gradients; plain ones if left out.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    discover: Discover = False,
    frames: FramesShown = "fit",
    prompt_form: Frame = "auto",
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Select each model's domain-specific neurons from its counts; write tables, figures and a page.

    With --method the neurons of another method, into selections/METHOD/MODEL.safetensors; with --masks those of a file.
    """
    from mmneuron_lens.paper.summary import publish
    from mmneuron_lens.runs.foreign_masks import masks_stage, write_masks_of
    from mmneuron_lens.runs.identify import select_stage
    from mmneuron_lens.runs.observed import attributed_run

    attributed = {name: value for name, value in (("alpha", alpha), ("steps", gradient_steps)) if value is not None}
    refuse_useless(
        {"--method": method != "dape", "--parameter": parameter, "--corpus": corpus, "--stability": stability},
        "--masks" if masks is not None else "",
    )
    refuse_useless(
        {"--alpha or --gradient-steps": attributed}, "" if corpus is not None else "attributions that are there"
    )
    refuse_useless({"--stability": stability}, "" if method == "dape" else f"--method {method}")
    target = out or run
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    rule: dict[str, Any] = {"fraction": fraction, "percentile": percentile, "kinds": names, "model": model}
    if masks is not None:
        for file in masks_stage(run, masks, store_of(target, replace), written=write_masks, **rule):
            echo(file)
        return
    parameters = parameters_of(method, parameter or [])
    if corpus is not None:
        quiet_loading()
        how = {**model_settings(remote, dtype, device, device_map, quantize), "discover": discover}
        asked = corpus_of(corpus, None, images, questions_per_image)
        attributed_run(
            run, model, asked, store_of(run, replace), method=method, how=how, batch_size=batch_size, **attributed,
            frames=frames, prompt_form=prompt_form, progress=bar,
        )  # fmt: skip
        print_problems(asked.problems, run)
    found = select_stage(run, store_of(target, replace), method=method, parameters=parameters, progress=bar, **rule)
    if write_masks is not None:
        write_masks_of([one.selection for one in found], write_masks)
        echo(write_masks)
    if method != "dape":
        print_selections([(one.selection, one.controls.missing) for one in found], target)
        return
    missing = {one.selection.model: one.controls.missing for one in found}
    print_tables(publish(target, counts_in=run, uncontrolled=missing))
    if stability:
        from mmneuron_lens.neurons.stability import stability as stability_of
        from mmneuron_lens.report.stability import save_stability, stability_table

        for one in found:
            shown = stability_of(list(one.counts), fraction, percentile)
            print_table(stability_table(shown))
            echo(save_stability(shown, target))
