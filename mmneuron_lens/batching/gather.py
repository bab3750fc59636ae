"""Gather: steps of work, each done once, and their results folded within a group; kept on the way, so none is lost."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.batching.batches import Step
from mmneuron_lens.batching.left_out import LeftOut, attributed, raise_none_left
from mmneuron_lens.batching.prefetch import Opener, decoded_ahead
from mmneuron_lens.batching.progress import Progress, Todo, quietly
from mmneuron_lens.batching.throughput import Throughput
from mmneuron_lens.corpora.folder import Problems, open_images
from mmneuron_lens.corpora.sample import Sample

SECONDS = 60.0
"""How old what is not kept yet may become: what a kill costs."""

Fold = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """What one or more consecutive steps of one group came to.

    - group: of the steps.
    - tensors: folded over the steps; empty where no sample could be read.
    - seen: ids of the samples in it; left: of those that could not be read.
    - facts: JSON that is the same for every piece of one result.
    - tokens: positions computed, for the throughput that is shown; not kept.
    - reasons: why a sample was left out, by its id, without paths of a machine.
    """

    group: int
    tensors: dict[str, Tensor]
    seen: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """A piece of the steps `first` to `last` - 1."""

    first: int
    last: int
    piece: Piece


@dataclass(frozen=True)
class Shard:
    """The `number`-th (from 1) of `of` parts of the steps: neighbours, and as many in each part as can be."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InvalidValue(f"shard {self} does not exist; choose from 1/{self.of} to {self.of}/{self.of}.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def steps(self, count: int) -> range:
        """The places of this shard's steps among `count`."""
        return range(count * (self.number - 1) // self.of, count * self.number // self.of)

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """A shard from `"2/4"`, or from the RANK and WORLD_SIZE that `accelerate launch` sets (`"process"`).

        Raises `InvalidValue` with an example for anything else.
        """
        if text == "process":
            if "RANK" not in environment or "WORLD_SIZE" not in environment:
                raise InvalidValue("shard 'process' needs RANK and WORLD_SIZE; start it with `accelerate launch`.")
            return cls(int(environment["RANK"]) + 1, int(environment["WORLD_SIZE"]))
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None:
            raise InvalidValue(f"shard {text!r} is not a number of a total; write 1/4, 2/4, ..., or process.")
        return cls(int(found[1]), int(found[2]))


WHOLE = Shard()


class Keeper(Protocol):
    """Where pieces are kept while the rest is made."""

    def held(self, steps: Sequence[Step]) -> list[Held]:
        """Every piece of these steps that is there, in any order; they may overlap."""
        ...

    def keep(self, held: Held) -> None:
        """Keeps a piece; those of steps that are all in it are not needed any more."""
        ...


class Memory:
    """Pieces of this process alone."""

    def __init__(self) -> None:
        self._held: list[Held] = []

    def held(self, steps: Sequence[Step]) -> list[Held]:
        return list(self._held)

    def keep(self, held: Held) -> None:
        self._held = [one for one in self._held if not (held.first <= one.first and one.last <= held.last)] + [held]


def gather(
    steps: Sequence[Step],
    run: Callable[[Step, Opener], Piece],
    fold: Fold,
    *,
    keeper: Keeper,
    shard: Shard = WHOLE,
    workers: int = 0,
    left: LeftOut | None = None,
    title: str = "",
    progress: Progress = quietly,
    clock: Callable[[], float] = time.monotonic,
) -> list[Held]:
    """Runs the steps of a shard that no piece holds; returns disjoint pieces of all steps that are done, in order.

    - run: what one step comes to; the opener has its images decoded.
    - fold: two results of one group as one. Steps are folded from left to right, so that a run that was stopped gives
      the same bits as one that was not.
    - keeper: is given what was done at least every `SECONDS`, and when this ends in whatever way.
    - workers: processes that decode images ahead.
    - left: where samples are named that `run` refuses (`attributed`), those of kept pieces too.

    Raises as `raise_none_left` if all steps are done and no sample is left in any.
    """
    left, found = LeftOut() if left is None else left, disjoint(keeper.held(steps))
    named_again(steps, found, left)
    todo = missing(shard.steps(len(steps)), found)
    shown = Throughput(progress(still_to_do(steps, shard, todo), title), clock)
    openers = decoded_ahead([steps[place].samples for place in todo], workers)
    growing: Held | None = None
    try:
        for place, _, opener in zip(todo, shown, openers, strict=True):
            if growing is None or growing.last != place or growing.piece.group != steps[place].group:
                _keep(keeper, growing)
                growing = next((one for one in found if one.last == place), None)
                growing = growing if growing and growing.piece.group == steps[place].group else None
            piece = _attributed(steps[place], run, opener, left)
            growing = Held(
                growing.first if growing else place,
                place + 1,
                joined(growing.piece, piece, fold) if growing else piece,
            )
            shown.tell(piece.tokens)
            if shown.due(SECONDS):
                _keep(keeper, growing)
    finally:
        _keep(keeper, growing)
    found = disjoint(keeper.held(steps))
    refuse_none_left(steps, found, left)
    return found


def refuse_unfit(held: Held, steps: Sequence[Step]) -> None:
    """Raises `InvalidValue` naming what of a piece cannot be that of these steps."""
    if held.last > len(steps):
        raise InvalidValue(f"last is {held.last}, of {len(steps)} steps")
    own, piece = steps[held.first : held.last], held.piece
    if groups := {step.group for step in own} - {piece.group}:
        raise InvalidValue(f"group is {piece.group}, of steps of group {min(groups)}")
    asked = {sample.id for step in own for sample in step.samples}
    if {*piece.seen, *piece.left} != asked or {*piece.seen} & {*piece.left}:
        raise InvalidValue(f"seen and left out are not the {len(asked)} samples of its steps")


def named_again(steps: Sequence[Step], held: Sequence[Held], left: LeftOut) -> None:
    """Names the samples of kept pieces that an earlier process left out, for the same reasons."""
    for one in held:
        asked = [sample for step in steps[one.first : one.last] for sample in step.samples]
        name_samples([sample for sample in asked if sample.id in one.piece.left], one.piece.reasons, left)


def name_samples(samples: Sequence[Sample], reasons: Mapping[str, str], problems: Problems | None) -> None:
    """Names samples that were left out; one whose image cannot be decoded now says so with its path."""
    if problems is None:
        return
    for sample in samples:
        if open_images(sample, problems) is not None and sample.id in reasons:
            problems.add_sample(sample, reasons[sample.id])


def refuse_none_left(steps: Sequence[Step], held: Sequence[Held], left: LeftOut) -> None:
    """As `raise_none_left` if all steps are done and every sample is left out."""
    if not held or missing(range(len(steps)), held) or any(one.piece.seen for one in held):
        return
    if not any(one.piece.left for one in held):
        return
    reason = next((reason for one in held for reason in one.piece.reasons.values()), "")
    raise_none_left([sample for step in steps for sample in step.samples], reason, left.cause)


def joined(first: Piece, second: Piece, fold: Fold) -> Piece:
    """Two pieces of one group as one, in this order."""
    both = first.tensors and second.tensors
    tensors = fold(first.tensors, second.tensors) if both else first.tensors or second.tensors
    seen, left = first.seen + second.seen, first.left + second.left
    reasons = {**first.reasons, **second.reasons}
    return Piece(first.group, tensors, seen, left, first.facts or second.facts, reasons=reasons)


def by_group(found: Sequence[Held], fold: Fold) -> dict[int, Piece]:
    """Disjoint pieces folded in order, group by group."""
    groups: dict[int, Piece] = {}
    for one in found:
        known = groups.get(one.piece.group)
        groups[one.piece.group] = one.piece if known is None else joined(known, one.piece, fold)
    return groups


def add(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums by name. Raises `InvalidValue` for tensors of other names or shapes."""
    for name in sorted(first.keys() | second.keys()):
        forms = [one[name].shape if name in one else None for one in (first, second)]
        if forms[0] != forms[1]:
            raise InvalidValue(f"pieces of one value do not fit: {name} is {forms[0]} and {forms[1]}; make both again.")
    return {name: first[name] + second[name] for name in first}


def concatenate(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joined by name along the last axis."""
    return {name: torch.cat([first[name], second[name]], dim=-1) for name in first}


def disjoint(held: Sequence[Held]) -> list[Held]:
    """Pieces of which no two hold the same step, in order; the longer ones first where they overlap."""
    chosen: list[Held] = []
    for one in sorted(held, key=lambda one: (one.first, -one.last)):
        if not chosen or one.first >= chosen[-1].last:
            chosen.append(one)
    return chosen


def missing(wanted: range, held: Sequence[Held]) -> list[int]:
    """The wanted places that are in no piece."""
    there = {place for one in held for place in range(one.first, one.last)}
    return [place for place in wanted if place not in there]


def still_to_do(steps: Sequence[Step], shard: Shard, places: Sequence[int]) -> Todo:
    """The steps at these places, with their questions and those of the shard that are done."""
    questions = [len(steps[place].samples) for place in places]
    whole = sum(len(steps[place].samples) for place in shard.steps(len(steps)))
    return Todo([steps[place] for place in places], questions, whole - sum(questions))


def _attributed(step: Step, run: Callable[[Step, Opener], Piece], opener: Opener, left: LeftOut) -> Piece:
    """What a step comes to without the samples that refuse; those it has left out have their reasons."""

    def work(samples: Sequence[Sample]) -> Piece:
        return run(step if len(samples) == len(step.samples) else replace(step, samples=tuple(samples)), opener)

    piece, _ = attributed(step.samples, work, left, lambda sample: sample)
    piece = run(replace(step, samples=()), opener) if piece is None else piece
    reasons = left.reasons_of(step.samples)
    return replace(piece, left=tuple(reasons), reasons=reasons) if reasons else piece


def _keep(keeper: Keeper, growing: Held | None) -> None:
    if growing is not None:
        keeper.keep(growing)
