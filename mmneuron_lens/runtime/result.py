"""What a run returns: results by intervention and site, and the answers when it generated."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.wire.fold import finished, join
from mmneuron_lens.wire.types import Key, Over


class Result(Mapping[tuple[str, str], Any]):
    """A mapping from `(intervention name, site)` to a tensor whose first axis is the layer, where the site has layers.

    `out["name"]` is the value at the one site that has this name. Results of one graph on other batches are added with
    `out.merged(other)`: what was folded is kept until it is asked for, so that means keep their weights.

    - text: the answers, one per row of all batches; empty where nothing was generated
    - tokens: their token ids, int64, without padding
    - logits: on request, one CPU tensor per batch: `[rows, tokens, vocabulary]` of a forward,
      `[rows, answer tokens, vocabulary]` of a generation (teacher-forced)
    """

    def __init__(
        self,
        folded: dict[Key, Any],
        text: list[str],
        tokens: list[Tensor],
        logits: list[Tensor],
        overs: Mapping[Key, Over],
    ) -> None:
        self._folded = folded
        self._overs: dict[Key, Over] = {key: overs[key] for key in folded}
        self._values: dict[Key, Any] = {}
        self.text = text
        self.tokens = tokens
        self.logits = logits

    def __getitem__(self, key: tuple[str, str] | str) -> Any:
        """The value of `name, site`, or of a name that one site has.

        Raises `UnknownName` with the results that are there, or with the sites of a name that several have.
        """
        if isinstance(key, str):
            sites = [site for name, site in self._folded if name == key]
            if len(sites) > 1:
                raise UnknownName(f"{key!r} has results at {', '.join(sites)}; write out[{key!r}, {sites[0]!r}].")
            if not sites:
                raise UnknownName(unknown("result", key, list(dict.fromkeys(name for name, _ in self._folded))))
            key = (key, sites[0])
        if key not in self._folded:
            shown = [f"{name}, {site}" for name, site in self._folded]
            raise UnknownName(unknown("result", ", ".join(key), shown))
        if key not in self._values:
            self._values[key] = finished(self._folded[key], self._overs[key])
        return self._values[key]

    def merged(self, *others: Result) -> Result:
        """This result and others of the same graph, run on other batches here or elsewhere, as of one run.

        Batches, answers and logits stand in the order of the results. Exact, but for the order of sums of floats. What
        a read says of samples is right where every run had numbers of its own: `batch.with_samples([...])`.

        - others: any number, none included

        Raises `InvalidValue` where one has other results, or folded in another way.
        """
        folded = {key: _apart(value) for key, value in self._folded.items()}
        text, tokens, logits = list(self.text), list(self.tokens), list(self.logits)
        for other in others:
            for key in {**self._folded, **other._folded}:
                if key not in folded or key not in other._folded:
                    has = "the first result" if key in folded else "another"
                    raise InvalidValue(f"{key[0]} at {key[1]} is in {has} alone; merge results of one graph.")
                if not _alike(self._overs[key], other._overs[key]):
                    raise InvalidValue(
                        f"{key[0]} at {key[1]} is folded in two ways, {_named(self._overs[key])} and "
                        f"{_named(other._overs[key])}; merge results of one graph."
                    )
                folded[key] = join(folded[key], _beside(other._folded[key], folded[key]), self._overs[key])
            text, tokens, logits = text + other.text, tokens + other.tokens, logits + other.logits
        return Result(folded, text, tokens, logits, self._overs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._folded)

    def __len__(self) -> int:
        return len(self._folded)

    def __repr__(self) -> str:
        lines = [f"  {name!r}, {site!r}: {_show(value)}" for (name, site), value in self.items()]
        answers = [f"  text: {len(self.text)} answers"] if self.text else []
        return "\n".join(["Result", *lines, *answers])


def _apart(value: Any) -> Any:
    """A copy whose tensors a fold may change."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _apart(part) for name, part in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        parts = [_apart(part) for part in cast("list[Any]", value)]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _beside(value: Any, other: Any) -> Any:
    """A copy whose tensors are where those of another partial result are, where both have them."""
    if isinstance(value, Tensor):
        return value.to(other.device, copy=True) if isinstance(other, Tensor) else value.clone()
    if isinstance(value, dict) and isinstance(other, dict):
        held = cast("dict[Any, Any]", other)
        return {name: _beside(part, held.get(name)) for name, part in cast("dict[Any, Any]", value).items()}
    if isinstance(value, tuple) and isinstance(other, tuple):
        pairs = zip(cast("tuple[Any, ...]", value), cast("tuple[Any, ...]", other), strict=True)
        return tuple(_beside(one, beside) for one, beside in pairs)
    return _apart(value)


def _alike(one: Over, other: Over) -> bool:
    """Whether two ways to fold are one: a function of a module may have been checked or made again."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return _code(one) == _code(other)


def _code(fold: Any) -> Any:
    plain = inspect.unwrap(_function(fold))
    return plain.__code__, [repr(cell.cell_contents) for cell in plain.__closure__ or ()]


def _named(over: Over) -> str:
    return over if isinstance(over, str) else _function(over).__name__


def _function(over: Any) -> Any:
    return cast("dict[str, Any]", over)["together"] if isinstance(over, dict) else over


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        parts = cast(dict[str, Any], value).items()
        return "{" + ", ".join(f"{name}: {_show(part)}" for name, part in parts) + "}"
    if isinstance(value, list):
        items = cast(list[Any], value)
        return f"list of {len(items)}: {_show(items[0])}" if items else "empty list"
    return type(value).__name__
