"""The command `mmneuron compare`: which selector's neurons matter, against as many random ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmneuron_lens import completions
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
    ModelName,
    NumBeams,
    PlanFile,
    Quantize,
    QuestionsPerImage,
    Remote,
    Replace,
    Run,
    Seed,
)
from mmneuron_lens.printing import bar, corpus_of, model_settings, print_problems, print_tables, quiet_loading, store_of


def compare(
    run: Run,
    model: ModelName,
    corpus: CorpusFolder,
    methods: Annotated[
        str,
        typer.Option(
            help="Ways to select neurons, with commas; random stands for the draws, always there.",
            autocompletion=completions.several_methods,
        ),
    ] = "dape,random",
    domain: Domains = None,
    images: Images = None,
    skip_images: Annotated[
        int, typer.Option(min=0, help="Leave out the first so many images of each domain, which identified neurons.")
    ] = 0,
    questions_per_image: QuestionsPerImage = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of each module's neurons, with commas; eight from 0.001 to 0.2 if left out.")
    ] = "",
    random_draws: Annotated[int, typer.Option(min=1, help="Draws of as many random neurons.")] = 5,
    others: Annotated[
        str, typer.Option(help="Shares at which questions of other domains are asked too: all, none, or some.")
    ] = "all",
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Also generate answers, at the share nearest 1 %.")] = (
        False
    ),
    amplify: Annotated[
        bool, typer.Option("--amplify", help="Also turn the neurons up, to 2, 3 and 4 times, at the share nearest 1 %.")
    ] = False,
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
    """Say which selector's neurons matter to their domain's answers, against as many random ones.

    Switches the neurons that each method calls most specific off, at several sizes, and reads the log-probability of
    the right answer. Ask it of images that identified no neuron: --skip-images. Writes comparison/MODEL.safetensors,
    tables, figures and the page.
    """
    from mmneuron_lens.lens import Lens
    from mmneuron_lens.neurons.compared import FRACTIONS
    from mmneuron_lens.paper.summary import publish
    from mmneuron_lens.runs.compare import compare_run

    shares = shares_of(fractions, "--fractions") or [*FRACTIONS]
    nearest = min(shares, key=lambda one: abs(one - 0.01))
    also = None if others == "all" else [] if others == "none" else shares_of(others, "--others")
    asked = corpus_of(corpus, domain, images, questions_per_image, skip_images)
    first = corpus_of(corpus, domain, skip_images, questions_per_image).by_domain() if skip_images else None
    quiet_loading()
    lens = Lens(model, **model_settings(remote, dtype, device, device_map, quantize), discover=discover)
    settings: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens} if accuracy else {}
    try:
        compare_run(
            store_of(run, replace), run, lens, asked.by_domain(), corpus=asked.name, identification=first,
            methods=[name.strip() for name in methods.split(",") if name.strip()], fractions=shares, draws=random_draws,
            seed=seed, others=also, accuracy=[nearest] if accuracy else [], amplify=[nearest] if amplify else [],
            batch_size=batch_size, frames=frames, prompt_form=prompt_form, problems=asked.problems, progress=bar,
            **settings,
        )  # fmt: skip
    finally:
        print_problems(asked.problems, run)
    print_tables(publish(run))


def shares_of(text: str, option: str) -> list[float]:
    """Numbers of a text, with commas. Raises `InvalidValue` naming the option for what is none."""
    from interventions.errors import InvalidValue

    try:
        return [float(one) for one in text.split(",") if one.strip()]
    except ValueError:
        raise InvalidValue(f"{option} is {text!r}; write shares with commas, such as 0.01,0.05.") from None
