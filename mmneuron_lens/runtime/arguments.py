"""Arguments: what the public calls are given, refused in a line where it is something else."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypedDict, cast

from interventions import Graph, Intervention
from interventions.errors import InvalidType, InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.shapes import site_shape
from mmneuron_lens.wire.types import SitePlan

_vocabularies: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def graph_of(value: object) -> Graph:
    """A graph; of one intervention, the graph of it. Raises `InvalidType` for anything else."""
    if isinstance(value, Intervention):
        return Graph((value,))
    if isinstance(value, Graph):
        return value
    if isinstance(value, list | tuple):
        raise InvalidType(
            f"One graph is meant, not a {type(value).__name__} of {len(value)}; join them: first | second."
        )
    raise InvalidType(
        f"A graph or an intervention is run, not {_kind(value)}; decorate a function with @reads, @writes or @rewires."
    )


def graphs_of(value: object, max_rows: int | None = None) -> Graph | list[Graph]:
    """Several graphs as a list, of a list or of what `sweep` makes; one graph, or one of an intervention, as it is.

    Raises `InvalidType` for anything else, with its place; `InvalidValue` for `max_rows` without several.
    """
    if isinstance(value, Graph | Intervention | str | bytes) or not isinstance(value, Sequence):
        if max_rows is not None:
            raise InvalidValue(
                f"max_rows={max_rows} bounds a forward of several graphs, and this is one; leave it out."
            )
        return graph_of(value)
    found: list[Graph] = []
    for place, one in enumerate(cast("Sequence[object]", value)):
        try:
            found.append(graph_of(one))
        except InvalidType as error:
            raise InvalidType(f"graphs[{place}]: {error}") from None
    return found


class Running(TypedDict, total=False):
    """Settings of a run: see `Lens.run`."""

    sources: Iterable[Batch] | Batch | None
    logits: bool
    remote: bool | str | None
    max_rows: int | None


def texts_of(value: object) -> list[str]:
    """Texts as a list; of one text, that text. Raises `InvalidType` for what is none, `InvalidValue` for no text."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidType(f"texts is a list of texts, not {_kind(value)}.")
    texts = list(cast("Iterable[object]", value))
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidType(f"texts[{place}] is text, not {_kind(text)}.")
    if not texts:
        raise InvalidValue("There is no text to encode; give one per row.")
    return cast("list[str]", texts)


def rows_of(value: object) -> list[tuple[Sequence[Any], Sequence[str]]]:
    """Rows of images and prompts. Raises `InvalidType` for a row of another form, `InvalidValue` for none."""
    form = "(list of images, list of prompts)"
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidType(f"rows is a list of {form}, not {_kind(value)}.")
    rows: list[tuple[Sequence[Any], Sequence[str]]] = []
    for place, row in enumerate(cast("Iterable[object]", value)):
        parts = cast("tuple[object, ...]", row if isinstance(row, list | tuple) else (row,))
        if len(parts) != 2 or not all(isinstance(part, list | tuple) for part in parts):
            raise InvalidType(f"rows[{place}] is {form}, not {', '.join(map(_kind, parts)) or 'empty'}.")
        images, prompts = cast("tuple[list[Any], list[object]]", parts)
        rows.append((images, texts_of(prompts) if prompts else []))
    if not rows:
        raise InvalidValue(f"There is no row to pack; give at least one {form}.")
    return rows


def batch_of(value: object, what: str = "a batch") -> Batch:
    """A batch as it is. Raises `InvalidType` for anything else."""
    if not isinstance(value, Batch):
        raise InvalidType(f"{what} is made with lens.encode(images, texts) or lens.pack(rows), not {_kind(value)}.")
    return value


def batches_of(value: object, what: str = "a batch") -> Iterable[Batch]:
    """Batches, of which a `Batch` is one. Raises `InvalidType` for what is none, at once where that can be seen.

    Raises `InvalidValue` for no batch at all.
    """
    if isinstance(value, Batch):
        return [value]
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        return [batch_of(value, what)]
    checked = _checked(value, what)
    return list(checked) if isinstance(value, list | tuple) else checked


def _checked(values: Iterable[object], what: str) -> Iterator[Batch]:
    none = True
    for value in values:
        none = False
        yield batch_of(value, what)
    if none:
        raise InvalidValue(f"There is no batch to run; {what} is made with lens.encode(images, texts).")


def paired(
    batches: Iterable[Batch], sources: Iterable[Batch] | None, rewires: bool
) -> Iterator[tuple[Batch, Batch | None]]:
    """Each batch with its source. Raises `InvalidType` where a graph needs sources that are not given, `InvalidValue`
    for sources that nothing would take, or another number of them.
    """
    if rewires and sources is None:
        raise InvalidType("This graph rewires: give the paired batches, lens.run(graph, batches, sources=[...]).")
    if sources is None:
        return ((batch, None) for batch in batches)
    if not rewires:
        raise InvalidValue("sources are given and nothing in this graph rewires; leave them out.")
    if isinstance(batches, Sized) and isinstance(sources, Sized) and len(batches) != len(sources):
        raise InvalidValue(f"{len(batches)} batches and {len(sources)} sources; each batch has one source.")
    return _both(batches, sources)


def _both(batches: Iterable[Batch], sources: Iterable[Batch]) -> Iterator[tuple[Batch, Batch]]:
    others = iter(sources)
    for number, batch in enumerate(batches, 1):
        source = next(others, None)
        if source is None:
            raise InvalidValue(f"{number - 1} sources for more batches than that; each batch has one source.")
        yield batch, source
    if next(others, None) is not None:
        raise InvalidValue("There are more sources than batches; each batch has one source.")


def refuse_unlike(plans: list[SitePlan], batch: Batch, source: Batch, model: Model, start: str | None = None) -> None:
    """Raise `InvalidValue` for a source batch whose values at a rewired site, or at `start`, have another shape."""
    for plan in plans:
        acts = [(other, act) for other in plans for act in other["acts"]]
        rewiring = [act["name"] for other, act in acts if other is plan and act["mode"] == "rewires"]
        for _, act in acts:
            given = [one for one in act["values"].values() if one["source"] and one["alike"]]
            rewiring += [act["name"] for one in given if one["site"] == plan["site"]]
        if plan["site"] == start:
            rewiring.append("run_between")
        if not rewiring:
            continue
        here, there = (site_shape(plan["site"], one, model.architecture) for one in (batch, source))
        if here != there:
            raise InvalidValue(
                f"{rewiring[0]} at {plan['site']}: the source batch has shape {list(there)} there and this batch "
                f"{list(here)}; encode both with as many rows, and prompts and images of equal length."
            )


def refuse_strange(model: Model, batch: Batch) -> None:
    """Raise `InvalidValue` for a batch that another model's processor made: of other image tokens, or other words."""
    facts = model.architecture.facts
    # Where modules lie does not show in a batch.
    names = [name for name in {**facts, **batch.facts} if name != "once"]
    different = [name for name in names if facts.get(name) != batch.facts.get(name)]
    if not different and _words(batch.tokenizer) in (None, _words(model.processor.tokenizer)):
        return
    what = f"other {', '.join(name.replace('_', ' ') for name in different)}" if different else "another vocabulary"
    raise InvalidValue(
        f"This batch was made for another model than {model.name} ({what}); make it with this lens's encode or pack."
    )


def refuse_weightless(model: Model, cure: str = "run it on a server, remote=True or a URL, or ") -> None:
    """Raise `InvalidValue` for a model without weights."""
    if model.device.type == "meta":
        raise InvalidValue(f"{model.name} has no weights here; {cure}load it with Lens(...).")


def _words(tokenizer: Any) -> int | None:
    """What tells one vocabulary from another; computed once for each tokenizer."""
    if tokenizer is None:
        return None
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = hash(frozenset(tokenizer.get_vocab().items()))
    return _vocabularies[tokenizer]


def _kind(value: object) -> str:
    return repr(value) if value is None or isinstance(value, int | float | str) else type(value).__name__
