"""Moments: how often and how strongly each neuron is active in one domain, from the forwards of a count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interventions import Graph, moments
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, REASONS, Counts
from mmneuron_lens.artifacts.moments import THRESHOLD, Moments
from mmneuron_lens.batching.gather import Held, Piece, by_group
from mmneuron_lens.batching.remote import Values
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import CountPlan, Read, count_steps, plan_count, prompt_kinds
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.finite import refuse_tally

OWN = "moments"
"""Provenance: what the moments of a domain are of, beyond what its counts are of."""

_READ = {"active": "positive", "above": "above", "sums": "sum", "squares": "square"}
"""Names in a piece, and those that `interventions.moments` gives."""


def moment_sites(lens: Lens) -> list[str]:
    """The sites that moments are taken at: every `.act`, and the `.post` of every MLP that is gated."""
    return [site for site in lens.sites if site.endswith(".act") or (site.endswith(".post") and gated(lens, site))]


def gated(lens: Lens, site: str) -> bool:
    """Whether the MLP with this `.post` multiplies its activation by something before the down projection.

    So it is unless the linear layers beside the down projection give one number a neuron; where they do not say how
    many they give, it may be.
    """
    place = lens.architecture.place(site)
    parent, _, name = next(path for _, path in place.paths()).rpartition(".")
    beside = [child for own, child in lens.module.get_submodule(parent).named_children() if own != name]
    widths = [getattr(child, "out_features", None) for child in beside]
    return sum(width for width in widths if isinstance(width, int)) != place.sizes["neuron"]


def moments_graph(lens: Lens) -> Graph:
    """What is read: one read a site."""
    return Graph((moments.at(moment_sites(lens)),))


def plan_moments(plan: CountPlan, lens: Lens) -> CountPlan:
    """The same steps as of a count, with the facts that say what comes of them beyond its own."""
    return replace(plan, facts={**plan.facts, OWN: {"above": THRESHOLD, "sites": moment_sites(lens)}})


def moments_piece(
    lens: Lens, plan: CountPlan, group: int, out: Values, seen: tuple[str, ...], tokens: int = 0
) -> Piece:
    """What a run of `moments_graph` came to: as `count.piece_of`, and `above`, `sums`, `squares`, `maximum` by site.

    Raises `NotFinite` for activations that say nothing of their neurons.
    """
    tensors: dict[str, Tensor] = {}
    kinds, dtype = {site: prompt_kinds(site) for site in moment_sites(lens)}, lens.dtype
    for site, names in kinds.items() if out else ():
        found: dict[str, Tensor] = dict(out["moments", site])
        refuse_tally(site, found.pop("not finite"), dtype)
        if lens.architecture.place(site).layers is None:
            found = {name: value[None] for name, value in found.items()}
        found = {name: value[:, : len(names)].cpu() for name, value in found.items()}
        positions = tensors[f"tokens/{site}"] = found["positions"][0].contiguous()
        tensors |= {f"{name}/{site}": found[read].contiguous() for name, read in _READ.items()}
        maximum = found["maximum"].float()
        tensors[f"maximum/{site}"] = maximum.masked_fill((positions == 0)[:, None], torch.nan)
    facts = {"kinds": {site: list(names) for site, names in kinds.items()}, "steps": len(plan.steps)}
    return Piece(group, tensors, seen, facts=facts, tokens=tokens)


def added(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two results of one group as one, by name. Raises `InvalidValue` for tensors of other names or shapes."""
    for name in sorted(first.keys() | second.keys()):
        forms = [one[name].shape if name in one else None for one in (first, second)]
        if forms[0] != forms[1]:
            raise InvalidValue(f"pieces of one value do not fit: {name} is {forms[0]} and {forms[1]}; make both again.")
    return {
        # The one that is not NaN, where there are tokens in one of them only.
        name: torch.fmax(value, second[name]) if name.startswith("maximum/") else value + second[name]
        for name, value in first.items()
    }


MOMENTS = Read(moments_graph, moments_piece, added)
"""For `count_steps`."""


def moments_of(held: Sequence[Held], facts: Mapping[str, Any]) -> Moments:
    """All pieces of a domain as its moments. Needs no model.

    - facts: of the plan.

    Raises `InvalidValue` with the first reason when no sample could be read.
    """
    groups = by_group(held, added)
    reasons = {name: reason for one in held for name, reason in one.piece.reasons.items()}
    filled = [piece for piece in groups.values() if piece.tensors]
    if not filled:
        first = f" The first: {next(iter(reasons.values()))}" if reasons else ""
        raise InvalidValue(f"no sample of {facts['domain']} could be read; see the problems of its rows.{first}")
    kinds = {site: tuple(names) for site, names in filled[0].facts["kinds"].items()}
    tokens = {site: _bucketed(filled, f"tokens/{site}") for site in sorted(kinds)}
    held_by = {
        name: {site: _bucketed(filled, f"{name}/{site}") for site in sorted(kinds)} for name in (*_READ, "maximum")
    }
    left = sorted({name for one in held for name in one.piece.left}, key=json.dumps)
    shared = {name: value for name, value in facts.items() if name != "domain"}
    why = {REASONS: {name: reasons[name] for name in left if name in reasons}} if reasons else {}
    return Moments(
        facts["model id"], facts["domain"], tokens=tokens, positive=held_by["active"], above=held_by["above"],
        sums=held_by["sums"], squares=held_by["squares"], maximum=held_by["maximum"],
        kinds={site: kinds[site] for site in sorted(kinds)}, samples=sum(len(one.piece.seen) for one in held),
        provenance={**shared, LEFT_OUT: left, **why},
    )  # fmt: skip


def _bucketed(filled: Sequence[Piece], name: str) -> Tensor:
    """A tensor of each piece in the place of its bucket; of buckets without one 0, of maxima NaN."""
    example = filled[0].tensors[name]
    nothing = torch.nan if name.startswith("maximum/") else 0
    made = torch.full((BUCKETS, *example.shape), nothing, dtype=example.dtype, device="cpu")
    for piece in filled:
        made[piece.group] = piece.tensors[name]
    return made


def counts_from(found: Moments) -> Counts:
    """The counts of the same domain, byte for byte those of a count alone."""
    sites = [site for site in found.kinds if site.endswith(".act")]
    return Counts(
        found.model,
        found.domain,
        {site: found.positive[site] for site in sites},
        {site: found.tokens[site] for site in sites},
        {site: found.kinds[site] for site in sites},
        found.samples,
        {name: value for name, value in found.provenance.items() if name != OWN},
    )


def moments_domain(lens: Lens, samples: Sequence[Sample], **settings: Any) -> Moments:
    """The moments of one domain, kept by nobody. settings: of `plan_count`, `problems` among them."""
    plan = plan_moments(plan_count(lens, samples, **settings), lens)
    return moments_of(count_steps(lens, plan, problems=settings.get("problems"), read=MOMENTS), plan.facts)
