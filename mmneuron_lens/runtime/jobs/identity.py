"""Identity: the sha256 of what a job computes, so that a result is found again exactly when it would be the same."""

from __future__ import annotations

import hashlib
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from interventions.errors import InvalidType


def digest(*values: Any) -> str:
    """The sha256 in hexadecimal of plain values, tensors and functions.

    Functions are told apart by their code, defaults, closures and the functions they use, not by their names or by
    where they were written. Equal between processes of one Python version. Raises `TypeError` for anything whose
    bytes are not known to be the same next time.
    """
    sha = hashlib.sha256()
    _feed(sha, values, {})
    return sha.hexdigest()


def _feed(sha: Any, value: Any, seen: dict[int, int]) -> None:
    sha.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, Tensor):
        sha.update(repr((str(value.dtype), tuple(value.shape))).encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for name, part in value.items():
            _feed(sha, name, seen)
            _feed(sha, part, seen)
    elif isinstance(value, list | tuple):
        sha.update(str(len(value)).encode())
        for part in value:
            _feed(sha, part, seen)
    elif isinstance(value, set | frozenset):
        for part in sorted(digest(part) for part in value):
            sha.update(part.encode())
    elif isinstance(value, FunctionType):
        _feed_function(sha, value, seen)
    elif isinstance(value, CodeType):
        _feed(sha, [value.co_code, value.co_names, value.co_varnames, value.co_freevars, list(value.co_consts)], seen)
    elif isinstance(value, bytes):
        sha.update(str(len(value)).encode() + b":" + value)
    elif value is None or isinstance(value, str | int | float | complex | torch.dtype | torch.device | type(...)):
        sha.update(repr(value).encode())
    elif hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        # A class or a function written in C, known by its name.
        sha.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif type(value).__name__ in ("module", "_OpNamespace", "OpOverloadPacket"):
        sha.update(getattr(value, "__name__", repr(value)).encode())
    else:
        raise InvalidType(f"{type(value).__name__} {value!r:.80} is not plain data; bind tensors, numbers or text.")


def _feed_function(sha: Any, function: FunctionType, seen: dict[int, int]) -> None:
    if id(function) in seen:
        sha.update(f"again {seen[id(function)]}".encode())
        return
    seen[id(function)] = len(seen)
    _feed(sha, function.__code__, seen)
    _feed(sha, [function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        _feed(sha, cell.cell_contents, seen)
    names = [name for name in sorted(_names(function.__code__)) if name in function.__globals__]
    for name in names:
        value = function.__globals__[name]
        sha.update(name.encode())
        # What the server's own packages hold is known by name.
        inside = isinstance(value, FunctionType) and value.__module__ != "__main__"
        _feed(sha, f"{value.__module__}.{value.__qualname__}" if inside else value, seen)


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
