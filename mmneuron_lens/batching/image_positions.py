"""Image positions: how many positions of the language model images take, measured with the model's own processor."""

from __future__ import annotations

from functools import cache

from PIL import Image

from mmneuron_lens.corpora.frames import Size
from mmneuron_lens.lens import Lens
from mmneuron_lens.wire.encode import encode
from mmneuron_lens.wire.positions import lengths


class ImagePositions:
    """Positions by width and height in pixels, from blank pictures of that size, encoded once a size."""

    def __init__(self, lens: Lens) -> None:
        self._processor, self._facts = lens.processor, lens.architecture.facts
        self._measured = cache(self._measure)

    def of(self, size: Size) -> int:
        """Positions of each of several images of this size. An image alone may be cut otherwise."""
        return self._measured(size, 3) - self._measured(size, 2)

    def of_text(self, text: str, images: int, size: Size) -> int:
        """Positions of a prompt's text beside those of its images, with what the processor adds of its own.

        - images: how many placeholders are in the text.
        - size: of an image to measure with.
        """
        bare = str(self._processor.image_token) * 2
        added = self._measured(size, 2) - 2 * self.of(size) - (self._tokens(bare) - 2)
        return self._tokens(text) - images + added

    def _measure(self, size: Size, count: int) -> int:
        pictures = [[Image.new("RGB", size)] * count]
        inputs = encode(self._processor, pictures, [str(self._processor.image_token) * count], self._facts)
        return int(lengths(inputs["position_ids"]))

    def _tokens(self, text: str) -> int:
        return len(self._processor.tokenizer(text)["input_ids"])
