"""Readable tokens: as people write them, without the marks of vocabularies for spaces, bytes and parts of words."""

from __future__ import annotations

from typing import Any

from interventions.printable import printable

DRAWN = {"\n": "⏎", "\t": "⇥"}
"""What stands for space that is a token of its own; "␣" for any other."""

UNKNOWN = "\ufffd"


def readable(tokenizer: Any, token: int, strip: bool = True) -> str:
    """A token as it reads: "Ġcat", "▁cat" and "##cat" are all "cat".

    - tokenizer: of a processor; byte-level BPE, SentencePiece or WordPiece.
    - strip: without the space before or behind it. A token of space alone is drawn: "␣", "⏎".

    Bytes that are no whole character are named, `<0xE2>`; what cannot be printed is its escape, `\\x1b`.
    """
    text, name = tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens([token])[0])
    if UNKNOWN in text and UNKNOWN not in name:
        text = _bytes_of(name)
    elif not text:
        text = name.replace("▁", " ")
    text = _without_mark(tokenizer, text)
    if text and not text.strip():
        return "".join(DRAWN.get(one, "␣") for one in text)
    return printable(text.strip() if strip else text)


def _bytes_of(name: str) -> str:
    """What a token of a byte-level vocabulary is, as far as its bytes are characters; another one's is its name."""
    if not all(one in BYTES for one in name):
        return name
    # Bytes that are no character come out as lone surrogates, from U+DC80 on.
    text = bytes(BYTES[one] for one in name).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(one) - 0xDC00:02X}>" if "\udc80" <= one <= "\udcff" else one for one in text)


def _without_mark(tokenizer: Any, text: str) -> str:
    """The text without the mark of a part of a word, where the vocabulary has one."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    mark = getattr(model, "continuing_subword_prefix", None) or ""
    return text[len(mark) :] if mark and text.startswith(mark) and text != mark else text


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level vocabularies: a printable byte is its own, the others follow U+0100 in order."""
    found, others = {}, 0
    for byte in range(256):
        own = chr(byte).isprintable() and not chr(byte).isspace()
        found[chr(byte) if own else chr(256 + others)] = byte
        others += not own
    return found


BYTES = _byte_letters()
