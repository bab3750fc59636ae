"""Answers: what a model said while some neurons were off, kept as JSON lines from which every score is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    with open(path, "w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


def load_answers(path: str | Path) -> list[Answer]:
    """Reads what `save_answers` wrote."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Answer(**{**row, "answers": tuple(row["answers"])}) for row in rows]


Match = Callable[[str, Sequence[str]], bool]
"""Whether an answer is right, given the accepted ones."""


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Equal to an accepted answer after lower-casing and stripping white space."""
    return answer.strip().lower() in {one.strip().lower() for one in accepted}
