"""Artifacts without what they say of single samples: ids become digests, reasons are left out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load, save

from mmneuron_lens.artifacts.counts import LEFT_OUT, REASONS
from mmneuron_lens.artifacts.format import HEADER, RESERVED, document_of, read_document, read_sealed, sealed

OF_SAMPLES = (LEFT_OUT, "samples", "questions")
"""Names of lists of ids of samples, or of pairs of a domain and an id, wherever in an artifact's document."""


def redacted(path: str | Path) -> bytes | None:
    """The bytes of an artifact's file with digests in place of ids of samples; None where it names no sample.

    Two equal ids stay equal, so that what was left out can be counted and compared. Raises as `read_artifact`.
    """
    content = read_sealed(path, "")
    document = read_document(path, content)
    own = {name: value for name, value in document.items() if name not in RESERVED}
    changed = cast("dict[str, Any]", _without_ids(own))
    if changed == own:
        return None
    text = document_of(path, document["kind"], changed)
    return sealed(save(load(content), metadata={HEADER: text}))


def count_left_out(document: Any) -> int:
    """How many samples an artifact's document says were left out."""
    found = document.get("provenance", {}).get(LEFT_OUT, []) if isinstance(document, dict) else []
    return len(found) if isinstance(found, list) else 0


def _without_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_ids(one) for one in value]
    if not isinstance(value, dict):
        return value
    made: dict[str, Any] = {}
    for name, one in value.items():
        if name == REASONS:
            continue
        made[name] = _digests(one) if name in OF_SAMPLES and isinstance(one, list) else _without_ids(one)
    return made


def _digests(ids: list[Any]) -> list[Any]:
    """Of ids, or of pairs of a domain and an id; anything else as it is."""
    return [
        _digest(one) if isinstance(one, str) else [one[0], _digest(one[1])] if _is_pair(one) else _without_ids(one)
        for one in ids
    ]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)


def _digest(text: str) -> str:
    return f"sample {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
