"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmneuron_lens import completions
from mmneuron_lens.commands import plan_file

Run = Annotated[
    Path,
    typer.Argument(help="The folder that `mmneuron count` or `mmneuron demo` wrote.", autocompletion=completions.runs),
]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="embedded/NAME (llava-next, instructblip, idefics3, smol), folder, or hub id.",
        autocompletion=completions.models,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="embedded/NAME (llava-next, instructblip, idefics3, smol), a folder, or a hub id.",
        autocompletion=completions.models,
    ),
]
CorpusFolder = Annotated[Path, typer.Option(help="A folder of images with a questions.jsonl.")]
Domains = Annotated[
    list[str] | None,
    typer.Option(help="Only this domain; repeat it for several.", autocompletion=completions.domains),
]
Images = Annotated[int | None, typer.Option(min=1, help="Only the first so many images of each domain.")]
QuestionsPerImage = Annotated[
    int | None, typer.Option(min=1, help="Only so many questions of each image, drawn with a fixed seed.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions in one forward pass.")]
NumBeams = Annotated[int, typer.Option(min=1, help="Beams of the search for answers.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="A parameter of the method; repeat it for several."),
]
Method = Annotated[
    str,
    typer.Option(
        help="How neurons are ranked: docs/selectors.md lists the methods.", autocompletion=completions.methods
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if left out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="MAP",
        help='Layers on several devices: auto, balanced, sequential, or JSON like {"": "cuda:1"}; needs accelerate.',
    ),
]
Quantize = Annotated[
    str | None, typer.Option(help="Weights in fewer bits, nf4 or int8; needs bitsandbytes and accelerate.")
]
Remote = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Run the model on the NDIF server at this URL; `ndif`: where you logged in."),
]
Discover = Annotated[
    bool, typer.Option("--discover", help="Of a model without a table of sites: find them, and prove them at once.")
]
OffHow = Annotated[str, typer.Option("--off", help="How neurons are switched off: zero, mean, or scale.")]
Factor = Annotated[float, typer.Option(help="What `--off scale` multiplies them by.")]
FramesShown = Annotated[
    Literal["fit", "strip"],
    typer.Option("--frames", help="Of several images a question: as many as fit, or all of them side by side as one."),
]
Frame = Annotated[
    Literal["auto", "paper", "chat"],
    typer.Option(
        "--prompt-form",
        help="The frame of questions that are answered: the paper's, that of the checkpoint's chat template, or auto: "
        "chat where the language model is not the paper's.",
    ),
]
LensAt = Annotated[
    list[str] | None,
    typer.Option(
        help="A position that Figures 6 and 10 to 13 show: image 8, text -5, last, a column, or paper: the paper's own "
        "of each domain; repeat it for several. The second image token and the last text token if left out."
    ),
]
EvenLayers = Annotated[bool, typer.Option("--even-layers", help="Show layers 2, 4, ... there, as the paper.")]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make again, in its place, what lies there and was made otherwise.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", callback=plan_file, is_eager=True, help="A TOML file with any of these options, without the dashes."
    ),
]
