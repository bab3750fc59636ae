"""Errors: one base class for everything that a user can mend, so that a fault of this program stays a traceback.

Each error is also the built-in one that Python would raise, so `except KeyError` works as it does elsewhere.
"""

from __future__ import annotations

import re

from interventions.printable import printable

LONGEST = 2000
"""Characters of a message; what is quoted in it may be longer."""


_BREAK = re.compile(r"[ ]*[\t\n\r\v\f]\s*")


class MMNeuronError(Exception):
    """Something the user can mend: the message names the thing, the value, the choices and the next step, in a line."""

    def __str__(self) -> str:
        # KeyError shows its argument quoted, OSError with its number; a sentence is shown as it is. What a server, a
        # corpus or a file name put into it stays one line, and moves no cursor.
        said = _BREAK.sub(" ", " ".join(str(argument) for argument in self.args)).strip()
        said = printable(said)
        return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


class InvalidValue(MMNeuronError, ValueError):
    """A value that does not fit."""


class InvalidType(MMNeuronError, TypeError):
    """A value of another type, or an argument that is missing."""


class UnknownName(MMNeuronError, KeyError):
    """A name that is not there; the message lists those that are."""


class OutOfRange(MMNeuronError, IndexError):
    """An index that is not there; the message says how many there are."""


class NotFinite(MMNeuronError, ArithmeticError):
    """Activations that are infinite or not a number; the message names site, layer, how many, and the cure."""


class ProofFailed(MMNeuronError, AssertionError):
    """A model whose sites or shortcuts are not what they are called; the message names the first."""


class FileMissing(MMNeuronError, FileNotFoundError):
    """A file or folder that is not there."""


class StorageFailed(MMNeuronError, OSError):
    """A disk that is full, or a folder that cannot be written; the message says what was kept."""


class MissingPackage(MMNeuronError, ImportError):
    """A package that is not installed, or of a version that does not fit."""


class ServerUnreachable(MMNeuronError, ConnectionError):
    """A server that does not answer, or is not ready."""


class ServiceFailed(MMNeuronError, OSError):
    """A program or service of this machine that is missing, or does not start."""
