"""Keys: what a value is, and what tells it from another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import dumps

SHOWN = 6
"""Differences that a message names, at most."""


class StoreConflict(InvalidValue):
    """Another value lies where this one would; the message says what differs and what to do."""


@dataclass(frozen=True)
class Key:
    """What a value is: where it lies in a run, and every fact that its content depends on.

    - path: relative to the run's folder, with `/`.
    - facts: JSON: the model's fingerprint, digests of every input, every setting that changes a number.
    """

    path: str
    facts: Mapping[str, Any]


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any], name: str = "") -> list[str]:
    """What differs between two documents of facts, one phrase each: "batch size is 32 there and 16 here"."""
    found: list[str] = []
    for key in dict.fromkeys([*wanted, *held]):
        there, here, where = held.get(key), wanted.get(key), f"{name} {key}".strip()
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, where)
        elif key not in held or key not in wanted or dumps(there) != dumps(here):
            told = [_short(one[key]) if key in one else "absent" for one in (held, wanted)]
            found.append(f"{where} is {told[0]} there and {told[1]} here")
    return found


def refusal(path: Path, differing: list[str]) -> str:
    """One line: where another value lies, what differs, what to do."""
    more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    what = "; ".join(differing[:SHOWN]) or "it does not say what it was made from"
    return f"{path} holds another value: {what}{more}. Give another folder with --out, or --replace to make it again."


def _short(value: Any) -> str:
    text = dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
