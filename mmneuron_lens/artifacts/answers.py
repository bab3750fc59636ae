"""Answers: what a model said while some neurons were off, kept as JSON lines from which every score is computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NONE, DOMAIN, RANDOM = "none", "domain", "random"
"""Conditions: nothing off, the domain's neurons off, and (numbered, "random 1") draws of as many random ones off."""

ALL = "All"
"""In place of a module: neurons were off in every module."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one question while some neurons were off.

    module: where they were off ("None", a module of the paper, or "All"); neurons_of: the domain they belong to, or
    that the random draw is matched to ("" for "none"). domain: of the question. answers: the accepted ones.
    selection: the `content_hash` of the selection that said which neurons, or "".
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


def save_answers(answers: Iterable[Answer], path: str | Path) -> None:
    """Writes one JSON object a line; scores can be recomputed from the file alone."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as lines:
        lines.writelines(map(_line, answers))
    os.replace(partial, path)


def load_answers(path: str | Path) -> list[Answer]:
    """Reads what `save_answers` wrote."""
    with open(path, encoding="utf-8") as lines:
        return [_answer(json.loads(line)) for line in lines]


Key = tuple[str, str, str, str, str]
"""Module, condition, domain of the neurons, domain of the question, id: which answer it is."""


def key_of(answer: Answer) -> Key:
    """What tells an answer from all others of one model."""
    return answer.module, answer.condition, answer.neurons_of, answer.domain, answer.id


class AnswerLog:
    """Answers kept as they are given, so that a run that was stopped goes on where it was.

    The file's first line holds the settings under which they were given; with other settings it is begun anew. A last
    line that was cut off is dropped. Without a path answers are kept in memory alone.
    """

    def __init__(self, path: str | Path | None = None, settings: dict[str, Any] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(settings or {}, sort_keys=True))
        self.answers: dict[Key, Answer] = {}
        if self.path is None:
            return
        head, *rows = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else (b"null",)
        if _parsed(head) == self.settings:
            self.answers = {key_of(one): one for one in map(_answer, map(_parsed, rows))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        with open(partial, "w", encoding="utf-8") as lines:
            lines.write(json.dumps(self.settings, sort_keys=True) + "\n")
            lines.writelines(_line(one) for one in self.answers.values())
        os.replace(partial, self.path)

    def add(self, answers: Iterable[Answer]) -> None:
        """Keeps these answers, on disk before it returns."""
        new = {key_of(one): one for one in answers}
        self.answers |= new
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as lines:
                lines.write("".join(map(_line, new.values())))
                lines.flush()
                os.fsync(lines.fileno())


Match = Callable[[str, Sequence[str]], bool]
"""Whether an answer is right, given the accepted ones."""


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Equal to an accepted answer after lower-casing and stripping white space."""
    return answer.strip().lower() in {one.strip().lower() for one in accepted}


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False) + "\n"


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(**{**row, "answers": tuple(row["answers"])})


def _parsed(line: bytes) -> Any:
    return json.loads(line.decode("utf-8"))
