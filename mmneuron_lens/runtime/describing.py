"""Describing: what discovery finds in a model, with what its table names, and a table to start from without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import polars as pl
from PIL import Image
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.architectures import ARCHITECTURES, Architecture, architecture_of
from mmneuron_lens.architectures.discovery import Discovered, discover, named
from mmneuron_lens.architectures.measuring import shapes_of
from mmneuron_lens.architectures.outline import draft, outline
from mmneuron_lens.runtime.agreement import processed


@dataclass(frozen=True)
class Description:
    """A model as discovery sees it.

    - kind: the configuration's `model_type`
    - found: what was discovered; shapes: of its activation modules in a forward with one image
    - unmeasured: why there are no shapes; "" where there are
    - architecture: its table of sites; None without one
    - start: a table to start from, as Python; "" where there is one, or nothing was measured
    """

    kind: str
    found: Discovered
    shapes: dict[str, tuple[int, ...]]
    unmeasured: str
    architecture: Architecture | None
    start: str

    def to_frame(self) -> pl.DataFrame:
        """A row per activation module: path, class, layers, shape and width in a forward, and the site it has."""
        sites = {} if self.architecture is None else named(self.found, self.architecture)
        rows = []
        for pattern, kind in self.found.activations.items():
            shape = self.shapes.get(self.found.paths(pattern)[0])
            rows.append(
                {
                    "module": pattern,
                    "class": kind,
                    "layers": len(self.found.layers[pattern]) or None,
                    "shape": " x ".join(map(str, shape)) if shape else "not reached" if self.shapes else "not measured",
                    "site": sites.get(pattern) or "none",
                }
            )
        text = ("module", "class", "shape", "site")
        frame = pl.DataFrame(rows, schema={**dict.fromkeys(text, pl.String), "layers": pl.Int64})
        return frame.select("module", "class", "layers", "shape", "site")

    def lines(self) -> list[str]:
        """The decoder, the unembedding, lists of blocks, and the sites of the table."""
        made = [f"decoder: {self.found.decoder}", f"unembedding: {self.found.head}"]
        made += [f"blocks: {path}, {count} of them" for path, count in self.found.blocks.items()]
        made += [f"widths are not measured: {self.unmeasured}"] if self.unmeasured else []
        if self.architecture is None:
            return [*made, f"{self.kind} has no table of sites."]
        return [*made, f"{self.architecture.name}: {', '.join(self.architecture.sites)}"]


def describe(module: Any, processor: Any) -> Description:
    """What is found in a model, without reading a weight.

    Raises `InvalidValue` for a model without a decoder, or one that its table refuses.
    """
    config, found = module.config, discover(module)
    paths = [path for pattern in found.activations for path in found.paths(pattern)]
    shapes: dict[str, tuple[int, ...]] = {}
    unmeasured = ""
    try:
        shapes = shapes_of(module, paths, with_one_image(module, processor))
    except InvalidValue as error:
        unmeasured = str(error)
    known = config.model_type in ARCHITECTURES
    return Description(
        kind=config.model_type,
        found=found,
        shapes=shapes,
        unmeasured=unmeasured,
        architecture=architecture_of(config) if known else None,
        start="" if known or not shapes else draft(config, outline(config, found, shapes)),
    )


def with_one_image(module: Any, processor: Any) -> dict[str, Tensor]:
    """What a processor makes of one drawn image and a short question.

    Raises `InvalidValue` where it takes neither its own image token nor its own chat template.
    """
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8))
    said = ""
    for text in prompts(processor):
        try:
            return processed(module, processor, [picture], text)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())
    raise InvalidValue(f"{type(processor).__name__} makes no inputs of one image and a question: {said:.160}")


def prompts(processor: Any) -> list[str]:
    """A question about an image: behind the image token, and in the processor's own chat template."""
    asked = "what is this?"
    token = getattr(processor, "image_token", None)
    made = [f"{token}\n{asked}"] if token else []
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": asked}]
        made.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    return made or [asked]
