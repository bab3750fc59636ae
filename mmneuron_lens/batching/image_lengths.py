"""Image lengths: how many positions an image of some size takes in a prompt, by the model's own processor."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import Image

from mmneuron_lens.corpora.frames import Size
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.encoding import placeholder_of
from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.tiles import anyres_length


def is_llava_next(facts: Facts) -> bool:
    """Whether an image takes what LLaVA-NeXT's does, as its size tells; LLaVA-OneVision makes large grids smaller."""
    return facts["tiling"] == "anyres" and not facts["nested"]


class ImageLengths:
    """Positions of one of several images, and of what its processor puts around it, with `placeholder_of` in the text.

    LLaVA-NeXT's are known by its facts. Elsewhere blank pictures of the size are encoded, once for each size, or once
    in all where every image is one tile. `beside` is what the processor adds to a prompt, whatever its images.
    """

    def __init__(self, lens: Lens) -> None:
        self.processor, self.facts = lens.processor, lens.architecture.facts
        self.placeholder, self.token = placeholder_of(lens.model), str(lens.processor.image_token)
        self.known: dict[Size, int] = {}

    def __call__(self, size: Size) -> int:
        """Positions that one more image of this width and height takes, its placeholder's own text left out."""
        if is_llava_next(self.facts):
            return anyres_length([size[1], size[0]], self.facts)
        measured = (1, 1) if self.facts["tiling"] == "one" else size
        if measured not in self.known:
            # Of two and three: one image alone may be cut into more tiles.
            self.known[measured] = self._beyond(measured, 3) - self._beyond(measured, 2)
        return self.known[measured]

    @cached_property
    def beside(self) -> int:
        """Positions that the processor adds to a prompt beside its images."""
        size = (32, 32)
        return self._beyond(size, 2) - 2 * self(size)

    def words(self, text: str) -> int:
        """Tokens of a prompt, its placeholders left out."""
        return len(self.processor.tokenizer(text)["input_ids"]) - text.count(self.token)

    def _beyond(self, size: Size, images: int) -> int:
        """Positions of so many images of a size, beyond the words around them."""
        text, picture = self.placeholder * images, Image.new("RGB", size)
        with torch.device("cpu"):
            made: Any = encode(self.processor, [[picture] * images], [text], self.facts)
        return int(made["attention_mask"].sum()) - self.words(text)
