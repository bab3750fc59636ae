"""Outline: which modules of a model are its vision tower, projector and language model, from what was discovered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmneuron_lens.architectures.discovery import Discovered
from mmneuron_lens.architectures.language import DECODERS
from mmneuron_lens.architectures.vision import TOWERS


@dataclass(frozen=True)
class Neurons:
    """Activation modules that make a site: path with `{l}`, layers (None outside of a list), width, and whether all
    images are in one row, without an axis of tiles.
    """

    path: str
    layers: int | None
    width: int
    packed: bool


@dataclass(frozen=True)
class Outline:
    """Parts of a vision-language model.

    - tower, projector: None where discovery does not tell which they are
    - base: of the tower, where it is of a family that has a table; else ""
    - llm: None where the decoder's neurons are not activation modules in its layers
    - body, head: of the language model, as `language.places` takes them
    - family: whether the decoder is of a family that has a table
    """

    tower: Neurons | None
    base: str
    projector: Neurons | None
    llm: Neurons | None
    body: str
    head: str
    family: bool


def outline(config: Any, found: Discovered, shapes: Mapping[str, tuple[int, ...]]) -> Outline:
    """The parts of a model.

    - shapes: of activation modules in a forward with one image, by path, as `measuring.shapes_of` gives them

    A tower is the one list of blocks before the decoder with one activation module each, the longest where there are
    several of different lengths; a projector the one activation module outside of lists.
    """
    towers: list[Neurons] = []
    projectors: list[Neurons] = []
    llm: list[Neurons] = []
    for pattern in found.activations:
        shape = shapes.get(found.paths(pattern)[0])
        if shape is None:
            continue
        layers = len(found.layers[pattern]) or None
        own = Neurons(pattern, layers, shape[-1], len(shape) == 2)
        if found.in_decoder(pattern):
            llm.append(own)
        else:
            (towers if layers else projectors).append(own)
    longest = max((one.layers or 0 for one in towers), default=0)
    towers = [one for one in towers if one.layers == longest]
    tower = towers[0] if len(towers) == 1 else None
    text = config.get_text_config()
    return Outline(
        tower=tower,
        base="" if tower is None else _base(config, tower),
        projector=projectors[0] if len(projectors) == 1 else None,
        llm=llm[0] if len(llm) == 1 and llm[0].layers == text.num_hidden_layers else None,
        body=found.decoder.removesuffix(".decoder") if text.model_type == "opt" else found.decoder,
        head=found.head,
        family=text.model_type in DECODERS,
    )


def _base(config: Any, tower: Neurons) -> str:
    """Where a tower lies whose family has a table; "" for others."""
    family = TOWERS.get(getattr(getattr(config, "vision_config", None), "model_type", ""))
    if family is None:
        return ""
    ending = f".{family.layer}.{family.mlp}.{family.act}"
    return tower.path.removesuffix(ending) if tower.path.endswith(ending) else ""


def draft(config: Any, parts: Outline) -> str:
    """A file of `mmneuron_lens/architectures` to start from: what was found, written as Python."""
    text = config.get_text_config()
    places: list[str] = []
    if parts.base:
        places.append(f'vision.places(config.vision_config, "{parts.base}")')
    elif parts.tower:
        places.append(f'{{"vision.mlp.act": {_place(parts.tower)}}}')
    if parts.projector:
        places.append(f'{{"projector.act": {_place(parts.projector)}}}')
    places.append(f'language.places(config.get_text_config(), "{parts.body}", "{parts.head}")')
    token = next((name for name in ("image_token_id", "image_token_index") if hasattr(config, name)), "image_token_id")
    notes = [] if parts.family else [f"# language.DECODERS has no {text.model_type!r} yet."]
    notes += [] if parts.base else ["# vision.TOWERS has no entry for this tower: its other sites are missing."]
    notes += ["# Compare facts() with its defaults: tiling, merged, cls, nested, positions, around."]
    patches = "vision.patches(config.vision_config)" if not (parts.tower and parts.tower.packed) else "0"
    kind = type(config).__name__
    joined = "\n        | ".join(places)
    lines = "\n    ".join(notes)
    return f'''"""{kind.removesuffix("Config")}: say here what is peculiar about it."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `{kind}`."""
    {lines}
    return Architecture(
        name="{kind.removesuffix("Config")}",
        places={joined},
        facts=facts(config.get_text_config(), image_token=config.{token}, patches={patches}),
    )
'''


def _place(neurons: Neurons) -> str:
    view = ', view=(("packed",),)' if neurons.packed else ""
    return f'Place("{neurons.path}", {neurons.layers}, {{"neuron": {neurons.width}}}{view})'
