"""HTML with text from outside in it: always text there, never an element, and in the order it is written."""

from __future__ import annotations

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
