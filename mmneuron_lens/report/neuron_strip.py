"""A neuron in a line of a page: its name, what it answers to, and the pictures on which it is most active."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.report.neuron_card import map_of, map_size
from mmneuron_lens.report.neuron_document import neuron_document
from mmneuron_lens.report.neuron_maps import png_of
from mmneuron_lens.report.neuron_sources import NeuronSources

LONGEST = 220
"""Pixels of a picture's longer side."""


def neuron_strip(sources: NeuronSources, place: int, folder: Path, link: str, most: int = 4) -> Markup:
    """The neuron in this row of the table, with its first pictures and their maps inside the text.

    - folder: where the thumbnails lie, as `sources.pictures` calls them.
    - link: of the page of neurons, which has its card.
    - most: pictures.
    """
    card = neuron_document(sources, place)
    own = [sources.names[sources.domains[one]] for one in card["domains"]]
    odds = f", log-odds {card['odds']['text']}" if card["odds"] else ""
    said = html(
        '<figcaption><a href="{}#{}/{}/{}">{}</a> {}{}</figcaption>',
        link, card["site"], card["layer"], card["neuron"], card["title"], ", ".join(own), odds,
    )  # fmt: skip
    shown = [_picture(one, folder) for one in card["examples"] if one["picture"]][:most]
    return html(
        '<figure class="strip">{}<div class="row scroll" tabindex="0" role="region" aria-label="{}">{}</div></figure>',
        said, f"pictures of {card['title']}", joined(shown),
    )  # fmt: skip


def _picture(example: dict[str, Any], folder: Path) -> Markup:
    laid = ""
    if example["map"]:
        laid = html(
            '<img class="map" src="{}" alt="">', _uri("png", png_of(map_of(example), *map_size(example["ratio"])))
        )
    with Image.open(folder / example["picture"]) as picture:
        picture.thumbnail((LONGEST, LONGEST))
        kept = BytesIO()
        picture.convert("RGB").save(kept, "JPEG", quality=80)
    told = f"{example['question']} {' / '.join(example['answers'])}".strip()
    return html(
        '<div class="example" title="{}"><img src="{}" alt="{}">{}</div>',
        f"{told} ({example['activation']})", _uri("jpeg", kept.getvalue()), told, laid,
    )  # fmt: skip


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
