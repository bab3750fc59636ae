"""HTML with text from outside in it: always text there, never an element, and in the order it is written."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from interventions.printable import printable


def visible(value: Any) -> Any:
    """Text without what cannot be seen and turns a line round, such as U+202E; HTML and numbers as they are."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def html(pattern: str, *values: Any) -> Markup:
    """HTML of our own, a literal, with a value for each `{}`: text is escaped, `Markup` stands as it is."""
    return Markup(pattern).format(*map(visible, values))


def joined(parts: Any, between: str = "") -> Markup:
    """Parts one after the other, as the values of `html`."""
    return Markup(between).join(map(visible, parts))


def json_in_html(value: Any) -> Markup:
    """The value as JSON that may stand inside a script: nothing in it begins or ends an element.

    Half a character is written as JSON writes it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Markup(text.encode("utf-8", "backslashreplace").decode())
