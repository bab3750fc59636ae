"""Shown samples: questions as an artifact shows them: words with their positions, pictures by digest and size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmneuron_lens.artifacts.neuron_examples import ShownSample
from mmneuron_lens.corpora.content import image_digest
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.pictured_row import PicturedRows
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.readable_tokens import readable
from mmneuron_lens.wire.images import file_bytes


def shown_tensors(batch: Batch, numbers: Sequence[int], rows: PicturedRows) -> dict[str, Tensor]:
    """What a batch says of its questions, by column: `words` int64 [3, word], the question's number, position and
    token; `pictures` int64 [4, picture], its number, the picture's, height and width; `digests` uint8 [32, picture].
    """
    words: list[tuple[int, int, int]] = []
    pictures: list[tuple[int, int, int, int]] = []
    digests: list[list[int]] = []
    for row, (number, kinds) in enumerate(zip(numbers, batch.kind, strict=True)):
        ids: list[int] = batch.inputs["input_ids"][row].tolist()
        real = [column for column, kind in enumerate(kinds) if kind != "padding"]
        words += [(number, place, ids[column]) for place, column in enumerate(real) if kinds[column] == "text"]
        sizes: list[list[float]] = rows.sizes(row).tolist()
        pictures += [(number, place, int(size[0]), int(size[1])) for place, size in enumerate(sizes)]
        digests += [list(bytes.fromhex(digest_of(given))) for given in batch.given[0][row]]
    return {
        "words": torch.tensor(words, dtype=torch.int64, device="cpu").view(-1, 3).T.contiguous(),
        "pictures": torch.tensor(pictures, dtype=torch.int64, device="cpu").view(-1, 4).T.contiguous(),
        "digests": torch.tensor(digests, dtype=torch.uint8, device="cpu").view(-1, 32).T.contiguous(),
    }


def digest_of(given: Any) -> str:
    """The sha256 of a picture's file; of a picture without one, of the lossless file that it travels as."""
    if isinstance(given, str | Path):
        return image_digest(given)
    return hashlib.sha256(file_bytes(given)).hexdigest()


def shown_samples(lens: Lens, samples: Sequence[Sample], found: Mapping[str, Tensor]) -> tuple[ShownSample, ...]:
    """The questions as they are shown. found: of `shown_tensors`, all batches together."""
    words: dict[int, list[tuple[int, int]]] = {}
    for number, position, token in found["words"].T.tolist():
        words.setdefault(number, []).append((position, token))
    pictures: dict[int, list[tuple[int, tuple[str, int, int]]]] = {}
    for (number, place, height, width), digest in zip(
        found["pictures"].T.tolist(), found["digests"].T.tolist(), strict=True
    ):
        pictures.setdefault(number, []).append((place, (bytes(digest).hex(), height, width)))
    read = _Reader(lens)
    return tuple(
        ShownSample(
            one.id,
            one.domain,
            one.question,
            one.answers,
            tuple(picture for _, picture in sorted(pictures.get(number, []))),
            read.runs(sorted(words.get(number, []))),
        )
        for number, one in enumerate(samples)
    )


class _Reader:
    """Tokens as they read, each decoded once."""

    def __init__(self, lens: Lens) -> None:
        self.tokenizer, self.known = lens.processor.tokenizer, dict[int, str]()

    def word(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = readable(self.tokenizer, token)
        return self.known[token]

    def runs(self, words: Sequence[tuple[int, int]]) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """Neighbouring positions as one run: the first of them, and the tokens."""
        made: list[tuple[int, list[str]]] = []
        for position, token in words:
            if not made or made[-1][0] + len(made[-1][1]) != position:
                made.append((position, []))
            made[-1][1].append(self.word(token))
        return tuple((first, tuple(some)) for first, some in made)
