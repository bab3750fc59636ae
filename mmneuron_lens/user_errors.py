"""Which errors are of what a user did or of the machine, and their line; all others are faults of this program."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

REPORT = (
    "This is a fault of mmneuron-lens, not of what you asked for. Please report it with the lines above, the command, "
    "and what `mmneuron doctor` prints."
)

_MACHINE = {
    errno.ENOSPC: "free some space there, or name another folder",
    errno.EDQUOT: "free some of your quota there, or name another folder",
    errno.EACCES: "give yourself the right to it, or name another place",
    errno.EPERM: "give yourself the right to it, or name another place",
    errno.EROFS: "name a folder that can be written",
    errno.ENAMETOOLONG: "give shorter names",
    errno.ENOTDIR: "a part of this path is a file; name a folder",
    errno.EISDIR: "this is a folder; name a file",
    errno.EMFILE: "allow more open files (`ulimit -n 4096`), or use fewer --workers",
    errno.EIO: "the disk cannot be read or written; name another folder",
}
"""Faults of a path or disk, whichever file it is, and what to do."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Faults of what is written to the output too, which has no name."""

_MEMORY = (
    "give a smaller --batch-size, --dtype bfloat16, --quantize nf4 on a GPU, or --remote; `mmneuron doctor` says what "
    "this machine can hold"
)


def said(error: BaseException, words: Sequence[str] = ()) -> str | None:
    """The line that says what to do, or None where the error is a fault of this program.

    - words: of the command line; a file that is not there is the user's where one of them names it.
    """
    from interventions.errors import MMNeuronError

    if isinstance(error, MMNeuronError):
        return " ".join(str(error).split())
    if _out_of_memory(error):
        return f"out of memory ({' '.join(str(error).split())[:200]}); {_MEMORY}."
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        return _of_path(error, words)
    return None


def _of_path(error: OSError, words: Sequence[str]) -> str | None:
    path = "the output" if error.filename is None else str(error.filename)
    if error.errno in _MACHINE:
        return f"{path}: {error.strerror}; {_MACHINE[error.errno]}."
    if error.errno == errno.ENOENT and any(_within(path, word) for word in words):
        return f"{path} is not there; name one that is."
    return None


def _within(path: str, word: str) -> bool:
    """Whether a path is that of a word of the command line, or below it."""
    named = word.partition("=")[2] if word.startswith("--") else word
    return bool(named) and Path(path).absolute().is_relative_to(Path(named).absolute())


def _out_of_memory(error: BaseException) -> bool:
    """Of torch on a GPU, of torch on the CPU (which has no class of its own for it), or of Python."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
