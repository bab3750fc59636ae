"""The domain-specific neurons of each module by any registered method, as an artifact, and as many random ones.

Selection is per site: the two Q-Former branches are selected separately and belong to one module of the paper,
"Q-Former".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

import mmneuron_lens.neurons.selectors  # noqa: F401  (registers the methods)
from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.artifacts.counts import CORPUS_FIELDS, Counts, refuse_differences
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.selection import Selection, in_order
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.neurons.membership import members
from mmneuron_lens.neurons.module_selection import ModuleSelection, domain_probability, select_module
from mmneuron_lens.neurons.observed import Observed, observed
from mmneuron_lens.neurons.selectors.registry import Selector, selector_named

PUBLISHED = "dape"
"""The method of the paper, whose rule is `select_module`; what `members` says is the rule of all others."""

Kinds = Mapping[str, tuple[str, ...]]


def select(
    given: Observed | Sequence[Counts],
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Kinds | None = None,
    method: str = PUBLISHED,
    **parameters: Any,
) -> Selection:
    """Selects the domain-specific neurons of every site from what was measured in two or more domains.

    - given: the counts of each domain, or with moments and attributions as `observed` takes them.
    - fraction: the share of a module's neurons that is selected; see `select_module`, or `members` for what it means to
      every other method.
    - percentile: the threshold on probabilities that the published method asks for.
    - kinds: narrows a site to some kinds of token, {"llm.mlp.act": ("image",)}; without it all count, as in the paper.
      Only for methods that need nothing but counts.
    - method: a registered one: docs/selectors.md.
    - parameters: of the method, over its published ones.

    Domains come in the order of `DOMAINS`. Probabilities, entropies and thresholds are those of the counts, whatever
    the method. A site that a method has no scores for has no neurons. Raises `InvalidValue` when the counts differ in
    model, sites, kinds or any provenance outside `CORPUS_FIELDS`, when a domain comes twice or has no tokens, or when
    what the method needs is not there, and `UnknownName` for a method or parameter that is not there.
    """
    chosen, seen = selector_named(method), ordered(given)
    if method == PUBLISHED and parameters:
        raise UnknownName(unknown(f"parameter of {method}", next(iter(parameters)), ["fraction", "percentile"]))
    counts = list(seen.counts)
    if len(seen.domains) < 2 or len(set(seen.domains)) < len(seen.domains):
        raise InvalidValue(
            f"domains {seen.domains} do not make a selection; give the counts of two or more, each once."
        )
    refuse_differences(counts, action="select from")
    every = _all_kinds(counts[0], kinds)
    tokens = {site: torch.tensor([one.total(site, every[site])[1] for one in counts], device="cpu") for site in every}
    probability = {site: domain_probability(counts, site, every[site]) for site in every}
    published = {site: select_module(probability[site], fraction, percentile) for site in every}
    shared = {name: value for name, value in counts[0].provenance.items() if name not in CORPUS_FIELDS}
    own = {one.domain: {"samples": one.samples, "corpus": one.provenance.get("corpus")} for one in counts}
    rule: dict[str, Any] = {"method": method, "fraction": fraction, "percentile": percentile, "kinds": every}
    if method == PUBLISHED:
        masks, requested, scores = _by_rule(published)
    else:
        scores = chosen.scores(_narrowed(seen, chosen, kinds, every), **parameters)
        masks, requested = _by_scores(scores, published, fraction)
        scores = {site: values.masked_fill(values == -torch.inf, torch.nan) for site, values in scores.items()}
        rule |= {"parameters": {**chosen.defaults, **parameters}, **chosen.described}
    return Selection(
        model=counts[0].model,
        domains=seen.domains,
        masks=masks,
        entropy={site: module.entropy for site, module in published.items()},
        probability=probability,
        tokens=tokens,
        threshold={site: module.threshold for site, module in published.items()},
        requested=requested,
        parameters=rule,
        provenance={**provenance(**shared), "domains": own},
        scores=scores,
    )


def ordered(given: Observed | Sequence[Counts]) -> Observed:
    """What was measured with domains in the order of `DOMAINS`, others behind them as they came."""
    seen = given if isinstance(given, Observed) else Observed(tuple(given))
    counts = sorted(seen.counts, key=lambda one: DOMAINS.index(one.domain) if one.domain in DOMAINS else len(DOMAINS))
    return observed(counts, seen.moments, seen.attributions)


def _all_kinds(counts: Counts, kinds: Kinds | None) -> dict[str, tuple[str, ...]]:
    unknown_sites = (kinds or {}).keys() - counts.active.keys()
    if unknown_sites:
        raise InvalidValue(
            f"kinds name no counted site {sorted(unknown_sites)}; choose from {', '.join(counts.active)}."
        )
    return {site: (kinds or {}).get(site, counts.kinds[site]) for site in in_order(counts.active)}


def _narrowed(seen: Observed, chosen: Selector, kinds: Kinds | None, every: Kinds) -> Observed:
    """What a method is given, with these kinds of token only."""
    if not kinds:
        return seen
    if beyond := [name for name in chosen.needs if name != "counts"]:
        raise InvalidValue(
            f"kinds narrow counts, and {chosen.name} is made of {' and '.join(beyond)}; leave kinds out, or choose a "
            f"method of counts."
        )
    return replace(seen, counts=tuple(_of_kinds(one, every) for one in seen.counts))


def _of_kinds(counts: Counts, kinds: Kinds) -> Counts:
    places = {site: [counts.kinds[site].index(kind) for kind in some] for site, some in kinds.items()}
    return replace(
        counts,
        active={site: counts.active[site][:, :, some] for site, some in places.items()},
        tokens={site: counts.tokens[site][:, some] for site, some in places.items()},
        kinds=dict(kinds),
    )


def _by_rule(
    published: Mapping[str, ModuleSelection],
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor]]:
    masks = {site: module.mask for site, module in published.items()}
    return masks, {site: module.requested for site, module in published.items()}, {}


def _by_scores(
    scores: Mapping[str, Tensor], published: Mapping[str, ModuleSelection], fraction: float
) -> tuple[dict[str, Tensor], dict[str, int]]:
    masks = {
        site: members(scores[site], fraction) if site in scores else torch.zeros_like(module.mask)
        for site, module in published.items()
    }
    return masks, {site: module.requested if site in scores else 0 for site, module in published.items()}


def random_like(
    selection_mask: Bool[Tensor, "layer neuron domain"], seed: int, match: Literal["module", "layer"] = "module"
) -> Bool[Tensor, "layer neuron domain"]:
    """As many random neurons for each domain as were selected for it, never one selected for any domain.

    Drawn without replacement, for each domain on its own. `match="module"` keeps the number in the module (the paper's
    "Random"), `match="layer"` the number in every layer (stricter). The same seed gives the same neurons.

    Raises `ValueError` when fewer neurons are free than must be drawn.
    """
    if match not in ("module", "layer"):
        raise InvalidValue(f"no match {match!r}; choose from module, layer.")
    layers, neurons, domains = selection_mask.shape
    generator = torch.Generator().manual_seed(seed)
    groups = (1, layers * neurons) if match == "module" else (layers, neurons)
    free = ~selection_mask.any(dim=-1).view(groups)
    wanted = selection_mask.reshape(*groups, domains).sum(1)
    drawn = torch.zeros(domains, *groups, dtype=torch.bool, device="cpu")
    for domain in range(domains):
        for group in range(groups[0]):
            pool, count = free[group].nonzero().squeeze(1), int(wanted[group, domain])
            if count > len(pool):
                place = "the module" if match == "module" else f"layer {group}"
                raise InvalidValue(
                    f"{count} random neurons wanted in {place}, {len(pool)} are free; select a smaller fraction."
                )
            order = torch.randperm(len(pool), generator=generator, device="cpu")
            drawn[domain, group, pool[order[:count]]] = True
    return drawn.view(domains, layers, neurons).permute(1, 2, 0).contiguous()
