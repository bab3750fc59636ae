"""A sample list: which questions of a corpus every model is asked, as an artifact of one JSON document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import ArtifactError, read_lines, unpacking, write_lines
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.token_count import CountParameters

Purpose = Literal["identification", "evaluation"]

KIND = "sample list"

DrawParameters = TypedDict(
    "DrawParameters",
    {
        "seed": int,
        "short": int,
        "budget": NotRequired[int],
        "count": NotRequired[CountParameters],
        "cut to": NotRequired[int],
        "questions": NotRequired[int],
    },
)
"""How a list was drawn. `short` says by how much the corpus misses the budget or the questions. Identification has
budget, count and, where it is balanced, "cut to" (tokens); evaluation has questions."""


@dataclass(frozen=True)
class SampleList:
    """The chosen samples of one corpus.

    - ids: in drawn order.
    - tokens: each one's LLaVA-NeXT tokens; empty where they are not counted.
    - parameters: how they were drawn.
    """

    domain: str
    corpus: str
    split: str
    purpose: Purpose
    ids: tuple[str, ...]
    tokens: tuple[int, ...]
    parameters: DrawParameters

    @property
    def total(self) -> int:
        return sum(self.tokens)

    @property
    def digest(self) -> str:
        """The sha256 of the ids in their order."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    def pick(self, samples: Iterable[Sample]) -> list[Sample]:
        """The listed samples out of a corpus, in the list's order. Raises `ArtifactError` when some are not there."""
        wanted = set(self.ids)
        found = {sample.id: sample for sample in samples if sample.id in wanted}
        absent = [one for one in self.ids if one not in found]
        if absent:
            raise ArtifactError(
                f"{len(absent)} of {len(self.ids)} listed samples are not in {self.corpus} {self.split}, the first: "
                f"{absent[0]}; give the corpus the list was drawn from, or draw it anew."
            )
        return [found[one] for one in self.ids]

    def save(self, path: str | Path) -> None:
        """Writes a JSON document; the same list gives the same bytes. Raises as `write_lines`."""
        facts = {**asdict(self), "total": self.total, "ids sha256": self.digest}
        write_lines(path, KIND, [], facts)

    @classmethod
    def load(cls, path: str | Path) -> SampleList:
        """Reads what `save` wrote; raises as `read_lines`."""
        _, document = read_lines(path, KIND)
        names = ("domain", "corpus", "split", "purpose", "parameters")
        with unpacking(path, KIND):
            ids, tokens = tuple(document["ids"]), tuple(document["tokens"])
            made = cls(**{name: document[name] for name in names}, ids=ids, tokens=tokens)
            refuse_types(made)
            refuse_unless(len(tokens) in (0, len(ids)), "tokens", f"are {len(tokens)} of {len(ids)} samples")
            refuse_unless(min(tokens, default=0) >= 0, "tokens", "are fewer than 0")
            told = {"total": made.total, "ids sha256": made.digest}
            refuse_unless(
                {name: document[name] for name in told} == told, "ids", "or tokens are not those it was drawn with"
            )
        return made
