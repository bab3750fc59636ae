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
    - others: activation modules that are none of these
    """

    tower: Neurons | None
    base: str
    projector: Neurons | None
    llm: Neurons | None
    body: str
    head: str
    family: bool
    others: tuple[str, ...]


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
        if shape is None or len(shape) not in (2, 3):
            continue
        layers = len(found.layers[pattern]) or None
        own = Neurons(pattern, layers, shape[-1], len(shape) == 2)
        if found.in_decoder(pattern):
            llm.append(own)
        else:
            (towers if layers else projectors).append(own)
    longest = max((one.layers or 0 for one in towers), default=0)
    towers = [one for one in towers if one.layers == longest]
    text = config.get_text_config()
    tower = towers[0] if len(towers) == 1 else None
    projector = projectors[0] if len(projectors) == 1 else None
    decoder = llm[0] if len(llm) == 1 and llm[0].layers == text.num_hidden_layers else None
    named = {one.path for one in (tower, projector, decoder) if one is not None}
    return Outline(
        tower=tower,
        base="" if tower is None else _base(config, tower),
        projector=projector,
        llm=decoder,
        body=found.decoder.removesuffix(".decoder") if text.model_type == "opt" else found.decoder,
        head=found.head,
        family=text.model_type in DECODERS,
        others=tuple(pattern for pattern in found.activations if pattern not in named),
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
    text, kind = config.get_text_config(), type(config).__name__
    places = [f'language.places(config.get_text_config(), "{parts.body}", "{parts.head}")']
    if parts.projector:
        places.insert(0, f'{{"projector.act": {_place(parts.projector)}}}')
    if parts.base:
        places.insert(0, f'vision.places(config.vision_config, "{parts.base}")')
    elif parts.tower:
        places.insert(0, f'{{"vision.mlp.act": {_place(parts.tower)}}}')
    token = next((name for name in ("image_token_id", "image_token_index") if hasattr(config, name)), "image_token_id")
    packed = parts.tower is not None and parts.tower.packed
    notes = [] if parts.family else [f"# language.DECODERS has no {text.model_type!r} yet."]
    notes += [] if parts.base else ["# vision.TOWERS has no entry for this tower: its other sites are missing."]
    notes += [f"# {path} has no site." for path in parts.others]
    notes += ["# Compare facts() with its defaults: tiling, merged, cls, nested, positions, around."]
    rooms = "language" if packed and not parts.base else "language, vision"
    names = "Architecture, Place" if any("Place(" in place for place in places) else "Architecture"
    return "\n".join(
        [
            f'"""{kind.removesuffix("Config")}: say here what is peculiar about it."""',
            "",
            "from __future__ import annotations",
            "",
            "from typing import Any",
            "",
            f"from mmneuron_lens.architectures import {rooms}",
            f"from mmneuron_lens.architectures.architecture import {names}",
            "from mmneuron_lens.architectures.facts import facts",
            "",
            "",
            "def architecture(config: Any) -> Architecture:",
            f'    """From a `{kind}`."""',
            *(f"    {note}" for note in notes),
            "    return Architecture(",
            f'        name="{kind.removesuffix("Config")}",',
            "        places=" + "\n        | ".join(places) + ",",
            "        facts=facts(",
            "            config.get_text_config(),",
            f"            image_token=config.{token},",
            *(["            patches=0,", "            patch_size=config.vision_config.patch_size,"] if packed else []),
            *([] if packed else ["            **vision.tile(config.vision_config),"]),
            "        ),",
            "    )",
        ]
    )


def _place(neurons: Neurons) -> str:
    view = ', view=(("packed",),)' if neurons.packed else ""
    return f'Place("{neurons.path}", {neurons.layers}, {{"neuron": {neurons.width}}}{view})'
