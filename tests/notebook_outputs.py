"""What is compared of a notebook that was executed again: kinds, shapes and counts, not numbers."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent
SHAPES = r"\b(?:bool|u?int\d+|b?float\d+) \[[\d, ]*\]|torch\.Size\(\[[\d, ]*\]\)|shape: \([\d, ]*\)|tensor\[[\dx ]*\]"
CLOSE = 0.15
"""By how much the sides of a figure may differ: fonts and labels are those of the machine."""


class _Tables(HTMLParser):
    """Of each table: its head, and how many rows stand below it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[list[str], int]] = []
        self._head: list[str] = []
        self._rows, self._in_head = 0, False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self._head, self._rows = [], 0
        self._rows += tag == "tr"
        self._in_head |= tag == "thead"

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.found.append((self._head, self._rows))
        self._in_head &= tag != "thead"

    def handle_data(self, data: str) -> None:
        if self._in_head and data.strip():
            self._head.append(data.strip())


def tables(page: str) -> list[tuple[list[str], int]]:
    parser = _Tables()
    parser.feed(page)
    return parser.found


def differences(stored: Any, fresh: Any) -> list[str]:
    """Where two executions of a notebook do not agree, a sentence each."""
    pairs = [*zip(stored.cells, fresh.cells, strict=True)]
    return [
        f"cell {number}: {said}"
        for number, (old, new) in enumerate(pairs)
        if old.cell_type == "code"
        for said in _cell(old.outputs, new.outputs)
    ]


def _cell(old: list[Any], new: list[Any]) -> list[str]:
    kinds = [[_kind(output) for output in some] for some in (old, new)]
    if kinds[0] != kinds[1]:
        return [f"stored shows {kinds[0]}, executed {kinds[1]}"]
    return [said for one, other in zip(old, new, strict=True) for said in _output(one, other)]


def _kind(output: Any) -> tuple[str, ...]:
    return (output.output_type, output.get("name", ""), *sorted(output.get("data", {})))


def _output(old: Any, new: Any) -> list[str]:
    found: list[str] = []
    here, there = ({**one.get("data", {}), "stream": one.get("text", "")} for one in (old, new))
    if "image/png" in here:
        sizes = [_size(one["image/png"]) for one in (here, there)]
        if any(abs(a - b) > CLOSE * b for a, b in zip(*sizes, strict=True)):
            found.append(f"a figure is {sizes[0]} stored, {sizes[1]} executed")
    if "text/html" in here:
        parts = [tables(one["text/html"]) for one in (here, there)]
        if parts[0] != parts[1]:
            found.append(f"tables are {parts[0]} stored, {parts[1]} executed")
    for kind in ("text/plain", "stream"):
        texts = [one.get(kind, "") for one in (here, there)]
        shapes = [re.findall(SHAPES, text) for text in texts]
        if shapes[0] != shapes[1]:
            found.append(f"shapes are {shapes[0]} stored, {shapes[1]} executed")
        lines = [len(text.splitlines()) for text in texts]
        if kind == "stream" and lines[0] != lines[1]:
            found.append(f"{lines[0]} lines are stored, {lines[1]} were printed")
    return found


def _size(encoded: str) -> tuple[int, int]:
    with Image.open(BytesIO(b64decode(encoded))) as picture:
        return picture.size
