"""What a run returns: results by intervention and site, and the answers when it generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from interventions.errors import UnknownName
from interventions.sites import unknown


class Result(Mapping[tuple[str, str], Any]):
    """A mapping from `(intervention name, site)` to a tensor whose first axis is the layer, where the site has layers.

    `out["name"]` is the value at the one site that has this name.

    - text: the answers, one per row of all batches; empty where nothing was generated
    - tokens: their token ids, int64, without padding
    - logits: on request, one CPU tensor per batch: `[rows, tokens, vocabulary]` of a forward,
      `[rows, answer tokens, vocabulary]` of a generation (teacher-forced)
    """

    def __init__(
        self, values: dict[tuple[str, str], Any], text: list[str], tokens: list[Tensor], logits: list[Tensor]
    ) -> None:
        self._values = values
        self.text = text
        self.tokens = tokens
        self.logits = logits

    def __getitem__(self, key: tuple[str, str] | str) -> Any:
        """The value of `name, site`, or of a name that one site has.

        Raises `UnknownName` with the results that are there, or with the sites of a name that several have.
        """
        if isinstance(key, str):
            sites = [site for name, site in self._values if name == key]
            if len(sites) > 1:
                raise UnknownName(f"{key!r} has results at {', '.join(sites)}; write out[{key!r}, {sites[0]!r}].")
            if not sites:
                raise UnknownName(unknown("result", key, list(dict.fromkeys(name for name, _ in self._values))))
            key = (key, sites[0])
        if key not in self._values:
            shown = [f"{name}, {site}" for name, site in self._values]
            raise UnknownName(unknown("result", ", ".join(key), shown))
        return self._values[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        lines = [f"  {name!r}, {site!r}: {_show(value)}" for (name, site), value in self._values.items()]
        answers = [f"  text: {len(self.text)} answers"] if self.text else []
        return "\n".join(["Result", *lines, *answers])


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
