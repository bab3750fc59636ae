"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what to do.

    - group: the part of the table. name: of the thing.
    - state: "ok"; "note", good to know; "problem", something of the package does not work.
    - found: what is there. next_step: what to do, "" where there is nothing.
    """

    group: str
    name: str
    state: State
    found: str
    next_step: str = ""

    def __post_init__(self) -> None:
        assert self.state != "problem" or self.next_step, f"{self.name}: a problem without a next step"
