"""Caching: all activations of one forward at once, as TransformerLens gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from interventions import Graph, keep
from interventions.errors import InvalidValue
from interventions.narrowing import checked_sites
from interventions.sites import matching
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.result import Result


def cached_graph(model: Model, batch: Batch, sites: Sequence[str] | str = "*") -> Graph:
    """The graph that keeps these sites, in their order; globs leave out what the batch does not reach.

    Raises `UnknownName` for a site that is not there, `InvalidType` for what names none, and `InvalidValue` where
    nothing is left.
    """
    patterns = checked_sites(tuple(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else (sites,))
    names = [name for pattern in patterns for name in matching(pattern, model.sites)]
    found = [name for name in dict.fromkeys(names) if name in patterns or reached(model, name, batch)]
    if not found:
        raise InvalidValue(f"{', '.join(patterns)}: this batch reaches none of {', '.join(dict.fromkeys(names))}.")
    return Graph((keep.at(found),))


def cache_of(out: Result, graph: Graph) -> tuple[Tensor, dict[str, Any]]:
    """The logits of a run of `cached_graph` on one batch, and the values by site, in the order asked."""
    return out.logits[0], {site: out[one.name, site][0] for one in graph for site in one.sites}


def reached(model: Model, site: str, batch: Batch) -> bool:
    """Whether a forward of this batch comes by a site: text alone has no image, and SDPA returns no weights."""
    if site.endswith("attention.pattern") and model.attentions[site.partition(".")[0]] != "eager":
        return False
    return site.startswith("llm.") or "vision" in batch.fields
