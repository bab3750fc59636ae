"""Rows: answers on disk while the others are given, each known by the digest of everything it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mmneuron_lens.artifacts.answers import Answer, Answers
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.batching.gather import Keeper
from mmneuron_lens.experiments.ablate import AnswerRows, MemoryRows
from mmneuron_lens.runs.folder import files_in
from mmneuron_lens.runs.pieces import Pieces

NAME = 24
"""Characters of the name of a file of answers, its ending apart."""


class KeptRows:
    """Answers in a folder, a file for those that were given together; those of a finished file are there too.

    So answers that were given for a smaller plan, in batches of another size, or before the process was killed, are
    not given again. A damaged file is moved aside, said, and its answers given again.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.folder = pieces, pieces.folder
        self._known: dict[str, Answer] = {}
        files = [file for file in files_in(self.folder, ".jsonl") if len(file.stem) == NAME]
        for file in [*([pieces.value] if pieces.value.is_file() else []), *files]:
            try:
                self._known |= {one.digest: one for one in Answers.load(file)}
            except ArtifactError as error:
                if file == pieces.value:
                    raise
                pieces.aside(file, error)

    def get(self, digest: str) -> Answer | None:
        return self._known.get(digest)

    def add(self, answers: Sequence[Answer]) -> None:
        """Keeps these answers, on disk before it returns."""
        self.pieces.still()
        self._known |= {one.digest: one for one in answers}
        name = hashlib.sha256("".join(one.digest for one in answers).encode()).hexdigest()[:NAME]
        Answers(tuple(answers)).save(self.folder / f"{name}.jsonl")


def rows_of(keeper: Keeper) -> AnswerRows:
    """Where answers are kept beside the pieces of a value: on disk, or in memory."""
    return KeptRows(keeper) if isinstance(keeper, Pieces) else MemoryRows()
