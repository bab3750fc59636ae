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
    FramesShown,
    Images,
    ModelName,
    Out,
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
    console,
    corpus_of,
    model_settings,
    print_problems,
    print_tables,
    quiet_loading,
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
    until: Annotated[
        float | None,
        typer.Option(help="Count only until two halves of the data select the same neurons to this overlap: 0.9."),
    ] = None,
    remote: Remote = None,
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Count how often each neuron is active, domain by domain.

    Writes counts/MODEL/DOMAIN.safetensors. A row of questions.jsonl is one object with domain, image (or images),
    question and answer; bad rows are named, counted and skipped.
    """
    from mmneuron_lens.batching.gather import Shard
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.runs.count import count_stage
    from mmneuron_lens.runs.folder import file_of
    from mmneuron_lens.runs.until import count_until, enough_line, rule_of

    mine, store = Shard.parse(shard), store_of(out, replace)
    rule = rule_of(until, mine)
    asked = corpus_of(corpus, domain, images, questions_per_image)
    quiet_loading()
    lens = Lens(model, **model_settings(remote, dtype, device, device_map, quantize), discover=discover)
    counted = count_stage if rule is None else partial(count_until, rule=rule)
    parts = {"shard": mine, "again": command_line(remote)} if rule is None else {}
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
            if rule is not None:
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
    replace: Replace = False,
    plan: PlanFile = None,
) -> None:
    """Select each model's domain-specific neurons from its counts; write tables, figures and a page."""
    from mmneuron_lens.paper.summary import publish
    from mmneuron_lens.runs.identify import select_stage

    target = out or run
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    rule: dict[str, Any] = {"fraction": fraction, "percentile": percentile, "kinds": names}
    found = select_stage(run, store_of(target, replace), progress=bar, **rule)
    missing = {one.selection.model: one.controls.missing for one in found}
    print_tables(publish(target, counts_in=run, uncontrolled=missing))
    if stability:
        from mmneuron_lens.neurons.stability import stability as stability_of
        from mmneuron_lens.report.stability import save_stability, stability_table

        for one in found:
            shown = stability_of(list(one.counts), fraction, percentile)
            console().print(stability_table(shown))
            echo(save_stability(shown, target))
