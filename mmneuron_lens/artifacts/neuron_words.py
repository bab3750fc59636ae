"""Neuron words: the tokens that chosen neurons of the language model write, and what they add to right answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import polars as pl

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.artifact import KEY
from mmneuron_lens.artifacts.fitting import refuse_types, refuse_unless
from mmneuron_lens.artifacts.format import read_lines, unpacking, write_lines
from mmneuron_lens.artifacts.short_repr import short_repr
from mmneuron_lens.artifacts.table_html import table_html


@dataclass(frozen=True)
class NeuronTokens:
    """What one neuron writes.

    - site, layer, neuron: which one.
    - top, bottom: tokens as they read, with <W_down[:, i], W_U[y]>: the highest first, and the lowest first; empty
      where the model cannot have them.
    - contribution: the mean over its examples of what it adds to the logit of the right answer's first token, at the
      prompt's last position; None where that is not known. questions: how many examples that is of.
    """

    site: str
    layer: int
    neuron: int
    top: tuple[tuple[str, float], ...]
    bottom: tuple[tuple[str, float], ...]
    contribution: float | None = None
    questions: int = 0


@dataclass(frozen=True, eq=False)
class WrittenWords:
    """The words of chosen neurons of one model; JSON lines on disk.

    - missing: why words, or contributions, are not there; empty where all are.
    - parameters: how many words, and how the questions were asked. provenance: what they were made from.
    """

    model: str
    neurons: tuple[NeuronTokens, ...]
    missing: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    kind = "neuron-words"

    def __repr__(self) -> str:
        return short_repr(self)

    def __len__(self) -> int:
        return len(self.neurons)

    def of(self, site: str, layer: int, neuron: int) -> NeuronTokens | None:
        """What the neuron of a site, layer and index writes; None where it is not among these."""
        found = (one for one in self.neurons if (one.site, one.layer, one.neuron) == (site, layer, neuron))
        return next(found, None)

    def to_frame(self) -> pl.DataFrame:
        """A row per neuron: model, site, layer, neuron, top and bottom (lists of tokens), contribution, questions."""
        rows = [
            {"model": self.model, "site": one.site, "layer": one.layer, "neuron": one.neuron}
            | {name: [word for word, _ in getattr(one, name)] for name in ("top", "bottom")}
            | {"contribution": one.contribution, "questions": one.questions}
            for one in self.neurons
        ]
        schema = {"model": pl.String, "site": pl.String, "layer": pl.Int64, "neuron": pl.Int64}
        lists = {name: pl.List(pl.String) for name in ("top", "bottom")}
        return pl.DataFrame(rows, schema={**schema, **lists, "contribution": pl.Float64, "questions": pl.Int64})

    def _repr_html_(self) -> str:
        return table_html(self.to_frame().head(50))

    def save(self, path: str | Path, key: Mapping[str, Any] | None = None) -> None:
        """Writes a line of what they are, then a neuron a line, to the file `path`; raises as `write_lines`.

        - key: facts that say what the words are, for a run's store.
        """
        own = {"model": self.model, "missing": self.missing, "parameters": dict(self.parameters)}
        own |= {"provenance": dict(self.provenance)} | ({} if key is None else {KEY: dict(key)})
        write_lines(path, self.kind, [asdict(one) for one in self.neurons], own)

    @classmethod
    def load(cls, path: str | Path) -> WrittenWords:
        """Reads from the file `path` what `save` wrote; raises as `read_lines`."""
        return cls.load_with_key(path)[0]

    @classmethod
    def load_with_key(cls, path: str | Path) -> tuple[WrittenWords, dict[str, Any] | None]:
        """The words in the file `path`, and the key that they were saved with, if any."""
        rows, metadata = read_lines(path, cls.kind)
        key: Any = metadata.pop(KEY, None)
        with unpacking(path, cls.kind):
            refuse_unless(key is None or isinstance(key, dict), KEY, f"is {key!r:.60}, not an object")
            tuples: list[dict[str, Any]] = [
                {**row, **{name: _tupled(row[name]) for name in ("top", "bottom")}} for row in rows
            ]
            own = {name: metadata[name] for name in ("model", "missing", "parameters", "provenance")}
            made = cls(neurons=tuple(NeuronTokens(**one) for one in tuples), **own)
            refuse_types(made)
            for number, one in enumerate(made.neurons, 1):
                _refuse_row(number, one)
            names = {(one.site, one.layer, one.neuron) for one in made.neurons}
            refuse_unless(len(names) == len(made.neurons), "rows", "hold one neuron twice")
        return made, cast("dict[str, Any] | None", key)


def _tupled(found: Any) -> Any:
    """Lists as tuples; anything else as it is, to be refused by its type."""
    return tuple(map(_tupled, cast("list[Any]", found))) if isinstance(found, list) else found


def _refuse_row(number: int, one: NeuronTokens) -> None:
    """Raises `InvalidValue` for a neuron with a field that cannot be."""
    try:
        refuse_types(one)
    except InvalidValue as error:
        raise InvalidValue(f"row {number}, {error}") from None
    for name in ("layer", "neuron", "questions"):
        refuse_unless(getattr(one, name) >= 0, f"row {number}, {name}", f"is {getattr(one, name)}, and cannot be")
    for name, sign in (("top", -1), ("bottom", 1)):
        scores = [sign * score for _, score in getattr(one, name)]
        refuse_unless(scores == sorted(scores), f"row {number}, {name}", "is not in the order of its scores")
    known = one.contribution is not None
    refuse_unless(known == (one.questions > 0), f"row {number}, contribution", f"is of {one.questions} questions")
