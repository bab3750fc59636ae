"""Envelope: a small result arrives inside its last status, as a torch file; read here only if it is harmless.

nnsight would unpickle whatever a server sends. Torch's own safe loader does not read this file's protocol, so its
opcodes are checked first: plain values, and one name, that of nnsight's enumeration of job states.
"""

from __future__ import annotations

import io
import pickletools
import zipfile

from interventions.errors import InvalidValue

# fmt: off
PLAIN = frozenset([
    "PROTO", "FRAME", "STOP", "MEMOIZE", "BINGET", "LONG_BINGET", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES",
    "BINBYTES", "BINBYTES8", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
])
# fmt: on
"""Opcodes that push, keep or collect values. None takes a value off the stack, so what was pushed last is on top."""

ALLOWED = ("nnsight.schema.response", "Status")


def refuse_unsafe(message: bytes) -> None:
    """Raise `ValueError` unless a message is one torch zip file of plain values and job states."""
    try:
        with zipfile.ZipFile(io.BytesIO(message)) as archive:
            names = archive.namelist()
            pickled = [name for name in names if name.endswith(".pkl")]
            if len(pickled) != 1 or pickled[0].rpartition("/")[2] != "data.pkl":
                raise InvalidValue(f"The server's answer holds {', '.join(pickled) or 'no data.pkl'}; it is not read.")
            content = archive.read(pickled[0])
    except zipfile.BadZipFile:
        raise InvalidValue("The server's answer is not a torch zip file; it is not read.") from None
    words: list[str | None] = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("STACK_GLOBAL", "REDUCE"):
            # A state is named by two literals and made from one value: no other name, no other call, gets through.
            if opcode.name == "STACK_GLOBAL" and tuple(words[-2:]) != ALLOWED:
                raise InvalidValue(f"The server's answer names {'.'.join(map(str, words[-2:]))}; it is not read.")
        elif opcode.name not in PLAIN:
            raise InvalidValue(f"The server's answer uses {opcode.name}; it is not read.")
        # These two push nothing; a frame begins anywhere, also between the literals of a name.
        if opcode.name not in ("MEMOIZE", "FRAME"):
            words.append(argument if "UNICODE" in opcode.name else None)
