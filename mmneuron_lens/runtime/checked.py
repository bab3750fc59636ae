"""Checked: which graphs were proved to fit which kind of batch, so that a sweep of many runs proves each once."""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from interventions import Graph, Intervention
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.compile import SitePlan
from mmneuron_lens.runtime.shapes import check_plans

AT_MOST = 256
"""Digests kept per model; the one that was asked for longest ago goes first."""

Functions = tuple[Callable[[], Any], ...]

_checked: weakref.WeakKeyDictionary[Model, OrderedDict[str, Functions]] = weakref.WeakKeyDictionary()


def check_once(graph: Graph, plans: list[SitePlan], model: Model, batch: Batch, generated: bool = True) -> None:
    """`check_plans`, unless the same graph passed it on a batch of the same fields. Raises as that does.

    generated: whether tokens may be generated.

    Kept are digests and weak references: no tensor that a graph binds, and no function, lives longer for it.
    """
    known = _checked.setdefault(model, OrderedDict())
    functions = [one.function for one in graph] + [one.over for one in graph if inspect.isfunction(one.over)]
    key = _digest(graph, batch, generated)
    if key in known and all(held() is function for held, function in zip(known[key], functions, strict=True)):
        known.move_to_end(key)
        return
    check_plans(plans, batch, model.architecture, model.module, model.dtype, generated)
    # A function defined again may get the address of the old one, which is then dead.
    known[key] = tuple(weakref.ref(function) for function in functions)
    while len(known) > AT_MOST:
        known.popitem(last=False)


def _digest(graph: Graph, batch: Batch, generated: bool) -> str:
    """What decides whether a graph fits: its parts, the batch's fields, which positions must not count, and whether
    there are tokens that are generated."""
    parts = [_form(one, batch) for one in graph]
    fields = [(group, tuple(some), bool((some["weight"] != 1).any())) for group, some in batch.fields.items()]
    return hashlib.sha256(repr((parts, fields, generated)).encode()).hexdigest()


def _form(one: Intervention, batch: Batch) -> tuple[Hashable, ...]:
    """What of an intervention decides whether it fits: where it acts does not, but how many positions it sees does."""
    positions: Hashable = one.positions
    if isinstance(one.positions, tuple) and one.positions[0] != "slice":
        # Those of generated tokens are not in the prompt, and those of a site before the language model are all.
        prompt = [place for place in one.positions if isinstance(place, int) and place < batch.prompt_length]
        positions = ("columns", len(prompt), len(one.positions))
    bindings = tuple((name, one.bindings[name].identity()) for name in sorted(one.bindings))
    narrowed = (positions, one.steps, one.rows, one.all_beams)
    return (id(one.function), one.mode, one.sites, one.over, bindings, *narrowed)
