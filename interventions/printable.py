"""Text from outside as it can be shown: nothing in it moves a cursor, turns a line round or hides."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Within a word of several scripts, and in emoji."""


def printable(text: str, keep: str = "") -> str:
    """The text with every character that cannot be printed written as its escape: `\\x1b`, `\\n`, `\\u202e`.

    - keep: characters that stay as they are, such as a line break.
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or _is_shown(one) else ascii(one)[1:-1] for one in text)


def _is_shown(one: str) -> bool:
    return one.isprintable() or one in _JOINERS or unicodedata.category(one) == "Zs"
