"""What the number of selected neurons proves: a null of permuted domain labels, and agreement between two halves.

The rule takes the lowest 1 % whatever the data, so its count alone says nothing. Both controls redo the procedure on
the buckets of the counts: no second pass over the corpora. What they cannot tell is how much the neurons differ between
domains; see `neurons.effects`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.module_selection import TIE, select_module
from mmneuron_lens.neurons.selection import PUBLISHED, select


def false_discovery_rate(
    counts: list[Counts],
    selection: Selection,
    permutations: int = 20,
    seed: int = 0,
    progress: Callable[[list[int]], Any] = iter,
) -> FalseDiscovery:
    """How many neurons the procedure would find under the observed entropy cut-off if domains meant nothing.

    Each permutation shuffles the domain labels over all (domain, bucket) cells that have tokens, sums the counts again
    and redoes threshold and filter; of the survivors it counts those whose entropy is at most the highest entropy
    selected in the real data. `progress` wraps the list of permutations of a site (`tqdm`, for one).

    Raises `ValueError` when `selection` was not made from these counts, or not by the published method.
    """
    if selection.parameters.get("method", PUBLISHED) != PUBLISHED:
        raise InvalidValue(
            f"a false discovery rate is one of entropies, and this is by {selection.parameters['method']}."
        )
    ordered = in_order_of(counts, selection)
    null = {}
    for site, mask in selection.masks.items():
        active, tokens, labels = filled_cells(ordered, site, selection.parameters["kinds"][site])
        shape = (*selection.entropy[site].shape, len(ordered))
        chosen = mask.any(dim=-1)
        cutoff = float(selection.entropy[site][chosen].max()) if bool(chosen.any()) else -1.0
        generator = torch.Generator().manual_seed(seed)
        draws = []
        for _ in progress(list(range(permutations))):
            shuffled = labels[torch.randperm(len(labels), generator=generator, device="cpu")]
            draws.append(_under(probability_of_cells(active, tokens, shuffled, shape), cutoff, selection.parameters))
        null[site] = tuple(draws)
    facts = {**selection.provenance, "parameters": selection.parameters, "permutations": permutations, "seed": seed}
    return FalseDiscovery(selection.model, {site: selection.selected(site) for site in null}, null, facts)


def halves_overlap(
    counts: list[Counts],
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: dict[str, tuple[str, ...]] | None = None,
    splits: int = 5,
    seed: int = 0,
) -> HalvesOverlap:
    """How far two halves of the data select the same neurons (of any domain), for several random splits of the buckets.

    Each domain's buckets that have tokens are dealt into two halves. By chance alone the overlap of two selections of
    a fraction f is about f / (2 - f), 0.005 at 1 %.

    Raises `ValueError` when a domain has tokens in fewer than two buckets.
    """
    selection = select(counts, fraction, percentile, kinds)
    by_domain = {one.domain: one for one in counts}
    ordered = [by_domain[domain] for domain in selection.domains]
    shared: dict[str, tuple[int, ...]] = {}
    either: dict[str, tuple[int, ...]] = {}
    for site in selection.masks:
        active, tokens, labels = filled_cells(ordered, site, selection.parameters["kinds"][site])
        shape = (*selection.entropy[site].shape, len(ordered))
        generator = torch.Generator().manual_seed(seed)
        sizes = []
        for _ in range(splits):
            first = half_of(labels, selection.domains, site, generator)
            chosen = []
            for half in (first, ~first):
                probability = probability_of_cells(active[half], tokens[half], labels[half], shape)
                chosen.append(select_module(probability, fraction, percentile).mask.any(dim=-1))
            sizes.append((int((chosen[0] & chosen[1]).sum()), int((chosen[0] | chosen[1]).sum())))
        shared[site], either[site] = tuple(size[0] for size in sizes), tuple(size[1] for size in sizes)
    facts = {**selection.provenance, "parameters": selection.parameters, "splits": splits, "seed": seed}
    return HalvesOverlap(selection.model, shared, either, facts)


def in_order_of(counts: Sequence[Counts], selection: Selection) -> list[Counts]:
    """The counts that a selection was made from, in the order of its domains; raises `InvalidValue` for others."""
    by_domain = {one.domain: one for one in counts}
    if by_domain.keys() != set(selection.domains) or any(one.model != selection.model for one in counts):
        raise InvalidValue(
            f"counts are of {sorted(by_domain)}, the selection of {sorted(selection.domains)}; give its counts."
        )
    ordered = [by_domain[domain] for domain in selection.domains]
    for site, mask in selection.masks.items():
        cells = filled_cells(ordered, site, selection.parameters["kinds"][site])
        if not torch.equal(probability_of_cells(*cells, tuple(mask.shape)), selection.probability[site]):
            raise InvalidValue(f"the selection at {site} was not made from these counts; select again from them.")
    return ordered


def filled_cells(
    counts: list[Counts], site: str, kinds: tuple[str, ...]
) -> tuple[Float64[Tensor, "cell neuron"], Float64[Tensor, " cell"], Int64[Tensor, " cell"]]:
    """The (domain, bucket) cells with tokens: counts, tokens (both exact in float64) and the domain's number."""
    active, tokens, labels = [], [], []
    for number, one in enumerate(counts):
        cells, sizes = one.per_bucket(site, tuple(kinds))
        filled = sizes > 0
        active.append(cells[filled].flatten(1).double())
        tokens.append(sizes[filled].double())
        labels.append(torch.full((int(filled.sum()),), number, device="cpu"))
    return torch.cat(active), torch.cat(tokens), torch.cat(labels)


def probability_of_cells(active: Tensor, tokens: Tensor, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Activation probabilities [layer, neuron, domain] when the cells carry these labels; sums are exact integers."""
    member = torch.nn.functional.one_hot(labels, shape[-1]).double()
    return ((active.T @ member) / (tokens @ member)).view(shape)


def _under(probability: Tensor, cutoff: float, parameters: dict[str, Any]) -> int:
    module = select_module(probability, parameters["fraction"], parameters["percentile"])
    survives = (probability > module.threshold).any(dim=-1)
    return int((survives & (module.entropy <= cutoff + TIE)).sum())


def half_of(labels: Tensor, domains: tuple[str, ...], site: str, generator: torch.Generator) -> Bool[Tensor, " cell"]:
    """The cells of a random half of every domain's buckets. Raises `InvalidValue` for a domain with fewer than two."""
    first = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for number, domain in enumerate(domains):
        cells = (labels == number).nonzero().squeeze(1)
        if len(cells) < 2:
            raise InvalidValue(
                f"{domain} has tokens in {len(cells)} bucket at {site}; two halves need two, count more images."
            )
        order = torch.randperm(len(cells), generator=generator, device="cpu")
        first[cells[order[: len(cells) // 2]]] = True
    return first
