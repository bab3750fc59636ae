"""One question about one or more images: what every corpus yields and every experiment consumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOMAINS = ("common", "remote_sensing", "medical", "document", "auto_driving")
"""The five visual domains of the paper (Table 4), in the order every table of this package uses."""


@dataclass(frozen=True)
class Sample:
    """A question, the images it is about, and its accepted answers.

    - id: no other sample of its domain has it.
    - domain: one of `DOMAINS`, or any other name.
    - images: their files, in order.
    - answers: any of them is right; none of a split that publishes none.
    - options: the texts of a multi-option question, without their letters; its answer is the letter.
    - kind: the corpus's own type of question ("count", "place", ...), or "".
    """

    id: str
    domain: str
    images: tuple[Path, ...]
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    kind: str = ""
