"""Neuron file: neurons that a user names, a line each, as masks: `llm.mlp.act 14/2051`, or CSV with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.lens import Lens

LINE = re.compile(r"(\S+)\s+(\d{1,9})\s*/\s*(\d{1,9})")
COLUMNS = ("site", "layer", "neuron")
AGAIN = 'write "llm.mlp.act 14/2051", or CSV with the columns site, layer, neuron.'


def read_neurons(path: str | Path, lens: Lens) -> dict[str, Bool[Tensor, "layer neuron"]]:
    """The neurons that a file names, by site.

    - path: lines such as `llm.mlp.act 14/2051` (layer, then neuron, from 0), empty lines and those that begin with `#`
      left out; or CSV whose header has site, layer and neuron among its columns, such as a run's neurons.csv.

    Raises `FileMissing` for no such file, `InvalidValue` naming the line, the value and the next step for one that is
    no neuron of this model, and for a file without any; `UnknownName` for a site.
    """
    path = Path(path)
    known = [site for site in lens.sites if site.endswith((".act", ".post"))]
    masks: dict[str, Tensor] = {}
    for number, site, layer, neuron in _named(path):
        where = f"{path}, line {number}"
        if site not in known:
            raise UnknownName(f"{where}: {unknown('site of neurons', site, known)}")
        place = lens.architecture.place(site)
        layers, neurons = place.layers or 1, place.sizes["neuron"]
        for what, value, count in (("layer", layer, layers), ("neuron", neuron, neurons)):
            if value >= count:
                raise InvalidValue(f"{where}: {what} is {value}; {site} of {lens.name} has {what}s 0 to {count - 1}.")
        masks.setdefault(site, torch.zeros(layers, neurons, dtype=torch.bool, device="cpu"))[layer, neuron] = True
    if not masks:
        raise InvalidValue(f"{path} names no neuron; {AGAIN}")
    return masks


def _named(path: Path) -> Iterator[tuple[int, str, int, int]]:
    """Line, site, layer and neuron of each."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileMissing(f"{path}: no such file; {AGAIN}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{path}: cannot be read as text ({error}); {AGAIN}") from None
    full = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    full = [(number, line) for number, line in full if not line.startswith("#")]
    header = next(csv.reader([full[0][1]]), []) if full else []
    columns = [name.strip().lower() for name in header]
    if set(COLUMNS) <= set(columns):
        yield from _rows(path, full[1:], [columns.index(name) for name in COLUMNS])
        return
    for number, line in full:
        found = LINE.fullmatch(line)
        if found is None:
            raise InvalidValue(f"{path}, line {number}: {line!r:.80} names no neuron; {AGAIN}")
        yield number, found[1], int(found[2]), int(found[3])


def _rows(path: Path, lines: list[tuple[int, str]], places: list[int]) -> Iterator[tuple[int, str, int, int]]:
    for number, line in lines:
        cells = next(csv.reader([line]))
        values = [cells[place].strip() if place < len(cells) else "" for place in places]
        for name, value in zip(COLUMNS[1:], values[1:], strict=True):
            if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
                raise InvalidValue(f"{path}, line {number}: {name} is {value!r:.40}, no whole number from 0; {AGAIN}")
        yield number, values[0], int(values[1]), int(values[2])
