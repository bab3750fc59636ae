"""How many positions of LLaVA-NeXT's language model a question takes, from its text and the sizes of its images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

from mmneuron_lens.corpora import prompts
from mmneuron_lens.corpora.frames import Frames, Size, strip_size, that_fit
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.wire.facts_types import Tiles
from mmneuron_lens.wire.tiles import anyres_length

CONTEXT, ANSWER = 4096, 512
"""LLaVA-NeXT's context in tokens, and the new tokens that must fit into it."""


CountParameters = TypedDict(
    "CountParameters",
    {
        "patches": int | None,
        "tile_size": int | None,
        "grid_pinpoints": list[list[int]] | None,
        "frames": Frames,
        "room": int,
        "vocabulary sha256": str,
    },
)
"""What a count depends on, for an artifact."""

LLAVA_NEXT: Tiles = {
    "patches": 576,
    "tile_size": 336,
    "grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
}
"""What decides an image's length in llava-hf/llava-v1.6-vicuna-7b-hf (and 13b): its published configuration."""


@dataclass(frozen=True)
class TokenCount:
    """How many positions of LLaVA-NeXT's language model a sample's identification prompt takes, BOS included.

    - tokenizer: the checkpoint's own.
    - facts: those of `Tiles`, as in `lens.architecture.facts`; images count by their sizes, no pixel is decoded.
    - frames: how several images are shown.
    - room: positions that prompt and images may take together; decides how many frames fit.
    """

    tokenizer: Any
    facts: Tiles = field(default_factory=lambda: LLAVA_NEXT)
    frames: Frames = "fit"
    room: int = CONTEXT - ANSWER

    def __call__(self, sample: Sample, sizes: list[Size]) -> int:
        """Positions of a sample, given width and height of each of its images in pixels."""
        question, _ = prompts.without_image_lines(sample.question)
        prompt = prompts.identification("llava-next", question)
        words = len(self.tokenizer(prompt.replace("<image>", "", 1))["input_ids"])
        if len(sizes) > 1 and self.frames == "strip":
            sizes = [strip_size(sizes)]
        elif len(sizes) > 1:
            sizes = [sizes[place] for place in that_fit(sizes, self.room - words, self.image)]
        # A line break follows each placeholder; the first is among the words.
        return words + sum(map(self.image, sizes)) + (len(sizes) - 1) * self._line_break

    def image(self, size: Size) -> int:
        """Positions of one image of this width and height."""
        if not self.facts.get("grid_pinpoints"):
            return self.facts["patches"]
        return anyres_length([size[1], size[0]], self.facts)

    @property
    def _line_break(self) -> int:
        return len(self.tokenizer("\n", add_special_tokens=False)["input_ids"])

    def parameters(self) -> CountParameters:
        """What the count depends on, for an artifact."""
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "patches": self.facts.get("patches"),
            "tile_size": self.facts.get("tile_size"),
            "grid_pinpoints": self.facts.get("grid_pinpoints"),
            "frames": self.frames,
            "room": self.room,
            "vocabulary sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }
