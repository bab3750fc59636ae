"""Left out: the samples that encoding or a forward refuses. They are named, and the others go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.runtime.jobs.server import JobRaised
from mmneuron_lens.runtime.remote import RemoteRaised

OF_A_SAMPLE = (JobRaised, RemoteRaised)
"""Errors that a server sends back and that may come from one sample, as `InvalidValue` may."""

OF_THE_RUN = (OSError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError, FloatingPointError)

RUN = re.compile(
    r"out of memory|can't allocate|cannot allocate|\bCUDA\b|\bcudnn|\bcublas|FloatingPointError|(not |non-)finite",
    re.IGNORECASE,
)
"""How errors read, there or here, that come from a machine or the model's numbers and not from what it was given."""

FOLDER = re.compile(r"(?<![\w/:])/(?:[^/\s'\"]+/)+")

SHOWN = 300
"""Characters of an error that a problem quotes."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class SampleRefused(InvalidValue):
    """A sample that cannot be used, by its name, where no problems are kept."""


class NoneLeft(InvalidValue):
    """All samples of a domain are left out."""


class LeftOut(Problems):
    """The samples that a stage leaves out, each with its first reason.

    - told: the problems of the run, which are told of each; without them the first raises `InvalidValue`.
    - cause: the first exception among the reasons.
    """

    def __init__(self, told: Problems | None = None) -> None:
        super().__init__(Path() if told is None else told.file)
        self.told = told
        self.reasons: dict[tuple[str, str], str] = {}
        self.cause: Exception | None = None

    @classmethod
    def of(cls, problems: Problems | None) -> LeftOut:
        """These problems themselves if they are such, else what tells them."""
        return problems if isinstance(problems, LeftOut) else cls(problems)

    def add_sample(self, sample: Sample, says: str) -> None:
        if self.told is None:
            raise SampleRefused(f"question {sample.id!r} of {sample.domain}: {says}") from self.cause
        self.reasons.setdefault((sample.domain, sample.id), says)
        self.told.add_sample(sample, says)

    def refuse(self, sample: Sample, error: Exception) -> None:
        """Names a sample by what it raised."""
        self.cause = self.cause or error
        self.add_sample(sample, said(error))

    def holds(self, sample: Sample) -> bool:
        """Whether a sample is left out."""
        return (sample.domain, sample.id) in self.reasons

    def reasons_of(self, samples: Iterable[Sample]) -> dict[str, str]:
        """Why each of these samples that is left out is, by its id."""
        return {sample.id: self.reason(sample) for sample in samples if self.holds(sample)}

    def reason(self, sample: Sample) -> str:
        """Why a sample is left out, without paths of this machine; "" if it is not."""
        says = self.reasons.get((sample.domain, sample.id), "")
        for path in sample.images:
            says = says.replace(f"{path.parent}/", "")
        return FOLDER.sub("", says)


def attributed(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Result],
    left: LeftOut,
    sample_of: Callable[[Item], Sample],
) -> tuple[Result | None, list[Item]]:
    """What `work` comes to for all items that it can be done for (None if there is none), and these items.

    Nothing but `work(items)` where that succeeds. Otherwise halves are tried, and halves of those that fail, down to
    the items that fail alone; they are named in `left`, and the work is done for the others together.

    Raises what is not about one sample (`is_of_a_sample`), what items raise only together, and whatever is raised by a
    fault of ours where nobody is told.
    """
    try:
        return work(items), list(items)
    except Exception as error:
        if not items or not is_of_a_sample(error) or (left.told is None and not isinstance(error, InvalidValue)):
            raise
        refused = dict(_refused(range(len(items)), items, work, error))
        if not refused:
            raise
    for place, raised in refused.items():
        left.refuse(sample_of(items[place]), raised)
    kept = [item for place, item in enumerate(items) if place not in refused]
    return (work(kept) if kept else None), kept


def is_of_a_sample(error: Exception) -> bool:
    """Whether an exception may come from one sample: not from a server, a disk, a device or numbers in trouble."""
    if isinstance(error, InvalidValue):
        return not isinstance(error, SampleRefused)
    if isinstance(error, OF_THE_RUN) or RUN.search(str(error)):
        return False
    return isinstance(error, OF_A_SAMPLE) or not isinstance(error, MMNeuronError)


def said(error: Exception) -> str:
    """What an exception says of a sample, on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    if isinstance(error, InvalidValue):
        return text
    kind = "" if isinstance(error, MMNeuronError) else f"{type(error).__name__}: "
    return f"the model cannot run it ({kind}{text}); write it otherwise, or remove the row."


def raise_none_left(samples: Sequence[Sample], reason: str, cause: Exception | None = None) -> NoReturn:
    """Ends a stage all of whose samples are left out.

    - reason: of the first; cause: what it raised.

    Raises `NoneLeft`, or the cause itself where it is no error that a user can mend: a fault of ours.
    """
    domains = ", ".join(sorted({sample.domain for sample in samples}))
    first = f" The first: {reason}" if reason else ""
    says = f"no sample of {domains} could be read; see the problems of its rows.{first}"
    if cause is not None and not isinstance(cause, MMNeuronError):
        cause.add_note(says)
        raise cause
    raise NoneLeft(says) from cause


def _refused(
    places: Sequence[int], items: Sequence[Item], work: Callable[[Sequence[Item]], object], error: Exception
) -> list[tuple[int, Exception]]:
    """Places of items that raise alone, among some that raised `error` together."""
    if len(places) == 1:
        return [(places[0], error)]
    found: list[tuple[int, Exception]] = []
    for half in (places[: len(places) // 2], places[len(places) // 2 :]):
        try:
            work([items[place] for place in half])
        except Exception as raised:
            if not is_of_a_sample(raised):
                raise
            found += _refused(half, items, work, raised)
    return found
