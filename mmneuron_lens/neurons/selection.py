"""The domain-specific neurons of each module: the published procedure, and its result as an artifact.

The paper names the bottom 1 % of the entropy and "a predefined threshold"; both rules, as published in code, are
written out at `select_module`. Selection is per site: the two Q-Former branches are selected separately and belong to
one module of the paper, "Q-Former".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import CORPUS_FIELDS, Counts, refuse_differences
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.selection import Selection, in_order
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.neurons.dape import activation_probability, dape

TIE = 1e-12
"""Entropies that agree to this many nats are a tie: less is rounding of the logarithm, which differs by machine."""


@dataclass(frozen=True, eq=False)
class ModuleSelection:
    """What `select_module` finds: `mask` bool [layer, neuron, domain], `entropy` float64 [layer, neuron] in nats."""

    mask: Tensor
    entropy: Tensor
    threshold: float
    requested: int
    selected: int

    @property
    def shortfall(self) -> int:
        """How many neurons fewer than requested had a domain above the threshold."""
        return self.requested - self.selected


def select_module(
    probability: Float64[Tensor, "layer neuron domain"], fraction: float = 0.01, percentile: float = 0.95
) -> ModuleSelection:
    """The published selection in one module, from activation probabilities.

    1. threshold = the `round(percentile * layer * neuron * domain)`-th smallest of all probabilities, not interpolated;
    2. only neurons with a domain strictly above it survive (so a neuron that is never active does not);
    3. of these, the `round(fraction * layer * neuron)` lowest entropies are selected, ties by lowest (layer, neuron);
       if fewer survive, only those are selected and the rest is the shortfall;
    4. a selected neuron belongs to every domain where its probability is strictly above the threshold.

    Raises `ValueError` when a probability is outside [0, 1], or a parameter outside (0, 1].
    """
    for name, value in (("fraction", fraction), ("percentile", percentile)):
        if not 0 < value <= 1:
            raise InvalidValue(f"{name} is {value}; it must be above 0 and at most 1 (the paper: 0.01 and 0.95).")
    if probability.numel() == 0 or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise InvalidValue(
            f"probabilities {tuple(probability.shape)} are empty or outside [0, 1]; give M / N per domain."
        )
    entropy = dape(probability)
    rank = max(1, round(percentile * probability.numel()))
    threshold = float(probability.flatten().kthvalue(rank).values)
    above = probability > threshold
    survivors = above.any(dim=-1).flatten().nonzero().squeeze(1)
    requested = round(fraction * entropy.numel())
    chosen = survivors[lowest_first(entropy.flatten()[survivors])[:requested]]
    mask = torch.zeros(entropy.numel(), dtype=torch.bool, device=entropy.device)
    mask[chosen] = True
    return ModuleSelection(above & mask.view_as(entropy)[..., None], entropy, threshold, requested, len(chosen))


def lowest_first(entropy: Float64[Tensor, " neuron"]) -> Int64[Tensor, " neuron"]:
    """The neurons in order of entropy; of values that are each within `TIE` of the next, the first comes first."""
    values, order = entropy.sort(stable=True)
    group = torch.zeros_like(order)
    group[1:] = (values.diff() > TIE).cumsum(0)
    return torch.empty_like(order).scatter_(0, order, group).sort(stable=True).indices


def select(
    counts: list[Counts],
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: dict[str, tuple[str, ...]] | None = None,
    method: Literal["dape"] = "dape",
) -> Selection:
    """Selects the domain-specific neurons of every site from the counts of two or more domains, one `Counts` each.

    `kinds` narrows a site to some kinds of token, {"llm.mlp.act": ("image",)}; without it all count, as in the paper.
    Domains come in the order of `DOMAINS`. Raises `ValueError` when the counts differ in model, sites, kinds or any
    provenance outside `CORPUS_FIELDS`, when a domain comes twice or has no tokens, or when the method is unknown.
    """
    if method != "dape":
        raise InvalidValue(f"no selection method {method!r}; choose from dape.")
    counts = sorted(counts, key=lambda one: DOMAINS.index(one.domain) if one.domain in DOMAINS else len(DOMAINS))
    domains = tuple(one.domain for one in counts)
    if len(domains) < 2 or len(set(domains)) < len(domains):
        raise InvalidValue(f"domains {domains} do not make a selection; give the counts of two or more, each once.")
    refuse_differences(counts, action="select from")
    unknown = (kinds or {}).keys() - counts[0].active.keys()
    if unknown:
        raise InvalidValue(f"kinds name no counted site {sorted(unknown)}; choose from {', '.join(counts[0].active)}.")
    kinds = {site: (kinds or {}).get(site, counts[0].kinds[site]) for site in in_order(counts[0].active)}
    tokens = {site: torch.tensor([one.total(site, kinds[site])[1] for one in counts], device="cpu") for site in kinds}
    probability = {site: domain_probability(counts, site, kinds[site]) for site in kinds}
    found = {site: select_module(probability[site], fraction, percentile) for site in kinds}
    shared = {name: value for name, value in counts[0].provenance.items() if name not in CORPUS_FIELDS}
    own = {one.domain: {"samples": one.samples, "corpus": one.provenance.get("corpus")} for one in counts}
    return Selection(
        model=counts[0].model,
        domains=domains,
        masks={site: module.mask for site, module in found.items()},
        entropy={site: module.entropy for site, module in found.items()},
        probability=probability,
        tokens=tokens,
        threshold={site: module.threshold for site, module in found.items()},
        requested={site: module.requested for site, module in found.items()},
        parameters={"method": method, "fraction": fraction, "percentile": percentile, "kinds": kinds},
        provenance={**provenance(**shared), "domains": own},
    )


def domain_probability(
    counts: list[Counts], site: str, kinds: tuple[str, ...] | None = None
) -> Float64[Tensor, "layer neuron domain"]:
    """Activation probabilities of a site, one domain after the other; `ValueError` names a domain without tokens."""
    columns = []
    for one in counts:
        active, tokens = one.total(site, kinds)
        if tokens == 0:
            raise InvalidValue(
                f"{one.domain} has no {'/'.join(kinds or ())} tokens at {site}; count it, or leave it out."
            )
        columns.append(activation_probability(active, tokens))
    return torch.stack(columns, dim=-1)


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
