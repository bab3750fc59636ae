"""Bounds of JSON from outside: how deep it is nested, and how long one record is. Every reader of it begins here."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import numpy

DEPTH = 64
"""Lists and objects that may stand in one another. A deeper record costs parsers memory that grows with its square."""

LONGEST = 2**20
"""Characters of a row or a record, at most. Parsed they take up to 30 times their bytes."""

TEXT = 2**17
"""Characters of one text of a row, at most: more than a model has positions. As tokens each takes about 600 bytes."""

PIECE = 65_536
"""Bytes that are looked through at once."""

RECORDS = 2
"""How deep the records of a published file stand: in a list of an object."""

DEEP, LONG = f"nested more than {DEPTH} deep", f"longer than {LONGEST} characters"

ESCAPE = re.compile(rb"\\.", re.DOTALL)
HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F]).", re.DOTALL)
TOKEN = re.compile(rb'\\.|["\[\]{},]|[^"\\\[\]{},]+|\\\Z', re.DOTALL)


PLAIN = bytes(set(range(256)) - set(b'[]{}"'))
STEPS = numpy.zeros(256, numpy.int8)
STEPS[list(b"[{")], STEPS[list(b"]}")] = 1, -1


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class OutOfBounds(ValueError):
    """A JSON text is too deep or too long."""


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises `OutOfBounds`, or `ValueError` for what is no JSON."""
    if len(text) > LONGEST:
        raise OutOfBounds(LONG)
    if too_deep(text.encode("utf-8", "surrogatepass")):
        raise OutOfBounds(DEEP)
    return json.loads(text)


def too_deep(text: bytes) -> bool:
    """Whether more than `DEPTH` lists and objects of a JSON text stand in one another."""
    return _depths(ESCAPE.sub(b"", text), False)[1] > DEPTH


def within_bounds(stream: Readable) -> bool:
    """Whether every record of a JSON document is within bounds: no for one that is nearly too long, too.

    A quick look at the whole document, several times as fast as parsing it.
    """
    depth, length, inside, cut = 0, 0, False, b""
    while piece := stream.read(PIECE):
        text = ESCAPE.sub(b"", cut + piece) if cut or b"\\" in piece else piece
        # Half an escape, whose other half comes next.
        text, cut = (text[:-1], text[-1:]) if text.endswith(b"\\") else (text, b"")
        lowest, highest, change = _depths(text, inside)
        quotations = text.count(b'"')
        length = 0 if depth + lowest <= RECORDS and (quotations or not inside) else length + len(piece)
        if depth + highest > DEPTH or length > LONGEST - 2 * PIECE:
            return False
        depth, inside = depth + change, inside ^ (quotations % 2 == 1)
    return True


def half_characters(stream: Readable) -> bool:
    """Whether a JSON document may write the first half of a character alone, which quick parsers read as another."""
    last = b""
    while piece := stream.read(PIECE):
        if (b"\\u" in piece or last) and HALF.search(last + piece):
            return True
        last = piece[-12:] if b"\\" in piece[-12:] else b""
    return False


class Bounded:
    """A JSON document to be read as bytes, in which each record out of bounds is the text `DEEP` or `LONG` instead."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._depth, self._inside, self._cut = 0, False, b""
        self._record: list[bytes] = []
        self._length, self._says = 0, ""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as many as it comes to; none at the end. None too for a size of 0."""
        while size:
            piece = self._stream.read(PIECE)
            out = self._out(self._cut + piece)
            if out or not piece:
                return out if piece or self._says else out + self._ended()
        return b""

    def _out(self, piece: bytes) -> bytes:
        self._cut, out = b"", []
        for token in TOKEN.findall(piece):
            if token == b"\\":
                self._cut = token
            elif token == b'"':
                self._inside = not self._inside
                self._keep(token)
            elif self._inside or token not in (b"[", b"]", b"{", b"}", b","):
                self._keep(token)
            elif token == b",":
                out += [self._ended(), token] if self._depth <= RECORDS else self._keep(token)
            elif token in (b"[", b"{"):
                self._depth += 1
                self._says = self._says or (DEEP if self._depth > DEPTH else "")
                out += [self._ended(), token] if self._depth <= RECORDS else self._keep(token)
            else:
                out += [self._ended(), token] if self._depth <= RECORDS else self._keep(token)
                self._depth -= 1
        return b"".join(out)

    def _keep(self, token: bytes) -> tuple[()]:
        self._length += len(token)
        if self._length > LONGEST:
            self._says = self._says or LONG
        if self._says:
            self._record = []
        else:
            self._record.append(token)
        return ()

    def _ended(self) -> bytes:
        record = json.dumps(self._says).encode() if self._says else b"".join(self._record)
        self._record, self._length, self._says = [], 0, ""
        return record


def _depths(text: bytes, inside: bool) -> tuple[int, int, int]:
    """How far below and above its beginning a JSON text without escapes goes, and where it ends, in brackets.

    - inside: whether it begins inside a string.
    """
    marks = numpy.frombuffer(text.translate(None, PLAIN), numpy.uint8)
    if not marks.size:
        return 0, 0, 0
    outside = (numpy.cumsum(marks == ord('"')) + inside) % 2 == 0
    depths = numpy.cumsum(STEPS[marks] * outside)
    return min(0, int(depths.min())), max(0, int(depths.max())), int(depths[-1])
