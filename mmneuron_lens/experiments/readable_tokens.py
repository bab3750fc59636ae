"""Readable tokens: as words, without the marks that vocabularies have for a space."""

from __future__ import annotations

from typing import Any


def readable(tokenizer: Any, token: int) -> str:
    """A token as it reads. One of space alone is drawn; one that is no whole character has its vocabulary's name."""
    text = tokenizer.decode([token])
    if not text.strip():
        text = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    plain = text.strip().isprintable() and "\ufffd" not in text
    return text.strip() if text and plain else str(tokenizer.convert_ids_to_tokens([token])[0])
