"""What a model said while some neurons were off: the answers from which every score is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, overload

from mmneuron_lens.artifacts.artifact import KEY
from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import read_lines, unpacking, write_lines
from mmneuron_lens.artifacts.short_repr import short_repr

NONE, DOMAIN, RANDOM = "none", "domain", "random"
"""Conditions: nothing off, the domain's neurons off, and (numbered, "random 1") draws of as many random ones off."""

ALL = "All"
"""In place of a module: neurons were off in every module."""

AnswerKey = tuple[str, str, str, str, str]
"""Module, condition, domain of the neurons, domain of the question, id: which answer of one model it is."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one question while some neurons were off.

    - id: of the question. condition: whose neurons were off, such as "none", "domain" or "random 1".
    - module: where they were off ("None", a module of the paper, or "All").
    - neurons_of: the domain they belong to, or that the random draw is matched to ("" for "none").
    - domain: of the question; answers: the accepted ones.
    - options: the texts of a multiple-choice question, whose accepted answers are letters.
    - selection: the `content_hash` of the selection that said which neurons, or "".
    - digest: the sha256 of everything the answer depends on, the size of its batch apart.
    """

    model: str
    module: str
    condition: str
    neurons_of: str
    domain: str
    id: str
    question: str
    answers: tuple[str, ...]
    answer: str
    selection: str = ""
    digest: str = ""
    options: tuple[str, ...] = ()

    @property
    def key(self) -> AnswerKey:
        """What tells an answer from all others of one model."""
        return self.module, self.condition, self.neurons_of, self.domain, self.id


@dataclass(frozen=True, eq=False)
class Answers(Sequence[Answer]):
    """The answers of one model, with the settings they were given under; JSON lines on disk."""

    answers: tuple[Answer, ...]
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    kind = "answers"

    def __repr__(self) -> str:
        return short_repr(self)

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Answer, ...]: ...
    def __getitem__(self, index: int | slice) -> Answer | tuple[Answer, ...]:
        return self.answers[index]

    def given_with(self, selection: str) -> Answers:
        """Those that were given with this very selection, by the `content_hash` of its file."""
        return Answers(tuple(one for one in self.answers if one.selection == selection), self.settings)

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None:
        """Writes a line of settings, then one answer a line, to the file `path`; raises as `write_lines`.

        - key: facts that say what the answers are, for a run's store.
        """
        metadata = {"settings": dict(self.settings)} | ({} if key is None else {KEY: dict(key)})
        write_lines(path, self.kind, [asdict(answer) for answer in self.answers], metadata)

    @classmethod
    def load(cls, path: str | Path) -> Answers:
        """Reads from the file `path` what `save` wrote; raises as `read_lines`."""
        return cls.load_with_key(path)[0]

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[Answers, dict[str, Any] | None]:
        """The answers in the file `path`, and the key that they were saved with, if any."""
        rows, metadata = read_lines(path, cls.kind)
        texts = ("answers", "options")
        with unpacking(path, cls.kind):
            given: list[dict[str, Any]] = [{**row, **{name: _tupled(row, name) for name in texts}} for row in rows]
            made = cls(tuple(Answer(**one) for one in given), metadata["settings"])
            refuse_types(made)
            for number, one in enumerate(made, 1):
                _refuse_row(number, one)
            refuse_unless(len({one.model for one in made}) < 2, "model", "is not the same in all rows")
            refuse_unless(len({one.key for one in made}) == len(made), "rows", "hold one answer twice")
        return made, metadata.get(KEY)


def _tupled(row: dict[str, Any], name: str) -> Any:
    found = row.get(name, [])
    return tuple(cast("list[Any]", found)) if isinstance(found, list) else found


def _refuse_row(number: int, answer: Answer) -> None:
    """Raises `InvalidValue` for an answer with a field that is no text."""
    for name, value in vars(answer).items():
        several = name in ("answers", "options") and isinstance(value, tuple)
        texts: list[Any] = [*value] if several else [value]
        fits = all(isinstance(text, str) for text in texts)
        refuse_unless(fits, f"row {number}, {name}", f"is {value!r:.60}, no text")
