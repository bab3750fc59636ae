"""One neuron's card without a script, for a notebook: everything it shows is inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmneuron_lens.artifacts.neuron_examples import SIDE
from mmneuron_lens.artifacts.table_html import NO_MATH
from mmneuron_lens.report.html_text import joined
from mmneuron_lens.report.looks import colours_of
from mmneuron_lens.report.neuron_document import TEXTS, neuron_document
from mmneuron_lens.report.neuron_maps import png_of
from mmneuron_lens.report.neuron_sources import NeuronSources
from mmneuron_lens.report.page import own_file, template

LONGEST = 240
"""Pixels of a map's longer side."""


def neuron_card(sources: NeuronSources, place: int, folder: Path) -> str:
    """The card of the neuron in this row of the table as HTML: text, numbers, and pictures as data.

    - folder: where the thumbnails lie, as `sources.pictures` calls them.
    """
    card = neuron_document(sources, place)
    style = joined([own_file("neuron_card.css"), own_file("neuron_alone.css")], "\n")
    shown = template("neuron_card.html.jinja").render(
        card=card, model=sources.model, texts=TEXTS, style=style,
        names=[sources.names[one] for one in sources.domains], colours=colours_of(sources.domains),
        pictures=_pictures(card["examples"], folder),
    )  # fmt: skip
    return NO_MATH.format(shown)


def map_of(example: dict[str, Any]) -> torch.Tensor:
    """The map of an example of a card's document: uint8 [`SIDE`, `SIDE`]."""
    cells = base64.b64decode(example["map"])
    return torch.frombuffer(bytearray(cells), dtype=torch.uint8).reshape(SIDE, SIDE)


def map_size(ratio: float, longest: int = LONGEST) -> tuple[int, int]:
    """Height and width of a map laid on a picture that is so many times as wide as high."""
    return max(SIDE, round(longest / max(ratio, 1))), max(SIDE, round(longest * min(ratio, 1)))


def _pictures(examples: Sequence[dict[str, Any]], folder: Path) -> list[tuple[str, str]]:
    """By example the picture and its map, as data; "" for one that is not there."""
    found: list[tuple[str, str]] = []
    for one in examples:
        file = folder / one["picture"]
        picture = _uri("image/jpeg", file.read_bytes()) if one["picture"] and file.is_file() else ""
        laid = _uri("image/png", png_of(map_of(one), *map_size(one["ratio"]))) if one["map"] else ""
        found.append((picture, laid))
    return found


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
