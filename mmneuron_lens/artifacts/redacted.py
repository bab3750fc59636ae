"""Artifacts without what they say of single samples: ids become digests, reasons are left out."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load, save

from mmneuron_lens.artifacts.counts import LEFT_OUT, REASONS
from mmneuron_lens.artifacts.format import HEADER, RESERVED, document_of, read_document, read_sealed, sealed

OF_SAMPLES = (LEFT_OUT, "samples")
"""Names of lists of ids of samples, wherever in an artifact's document."""


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
        texts = isinstance(one, list) and all(isinstance(text, str) for text in one)
        made[name] = [_digest(text) for text in one] if name in OF_SAMPLES and texts else _without_ids(one)
    return made


def _digest(text: str) -> str:
    return f"sample {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
