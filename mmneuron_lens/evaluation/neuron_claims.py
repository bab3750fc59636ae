"""Claims about neurons: where they lie, how many, in which order of domains, and which are silent.

Intervals resample the 16 buckets of images with replacement and repeat the whole procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy
import torch
from scipy.stats import kendalltau

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.evaluation.findings import Evidence, Finding, Verdict, interval_of, not_run, verdict_of
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.silent import silent_neurons


def resampled_selections(one: Evidence, resamples: int, seed: int) -> list[Selection]:
    """The selection repeated on buckets drawn with replacement; a draw that leaves a domain without tokens is left out.

    Buckets are drawn for each domain on its own, as its images are.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(resamples if one.counts else 0):
        drawn = [_resampled(counts, generator) for counts in one.counts]
        given = one.selection.parameters
        kinds = {site: tuple(names) for site, names in given["kinds"].items()}
        try:
            made.append(select(drawn, given["fraction"], given["percentile"], kinds))
        except ValueError:
            continue
    return made


def turning_points(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 1: changes of direction of the number of neurons over layers, smoothed over an eighth of the layers."""
    statistic = "turning points of the number of domain-specific neurons over the language model’s layers"
    layers = len(one.selection.masks["llm.mlp.act"])
    value = _turns(one.selection)
    note = f"{layers} layers have at most {max(0, layers - 2)} turning points." if layers < 12 else ""
    low, high = interval_of([_turns(some) for some in drawn])
    verdict = verdict_of(low, high, lambda number: number == 2, exact=True)
    return Finding(one.model, statistic, float(value), low, high, verdict, note=note)


def document_depth(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 2: mean layer of document neurons minus that of all other domains' neurons, in layers."""
    statistic = "mean layer of document neurons minus that of the other domains’ in the vision encoder"
    value = _depth(one.selection)
    if math.isnan(value):
        return Finding(one.model, "no document neurons in the vision encoder", None, None, None, "not run")
    low, high = interval_of([_depth(some) for some in drawn])
    return Finding(one.model, statistic, value, low, high, verdict_of(low, high, lambda number: number < 0), "layers")


def largest_share(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 3: the largest share of a module's neurons that belong to one domain, in per cent."""
    fraction = one.selection.parameters["fraction"]
    low, high = interval_of([_largest(some) for some in drawn])
    note = f"The rule selects at most {100 * fraction:g} % of each module, so no data could exceed it."
    verdict = verdict_of(low, high, lambda number: number < 1)
    statistic = "largest share of one module’s neurons that belong to one domain"
    return Finding(one.model, statistic, _largest(one.selection), low, high, verdict, "%", note)


def ranking_agreement(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 7: Kendall's tau between the modules' rankings of domains, mean over pairs of modules; 1 is the same."""
    value = _agreement(one.selection)
    low, high = interval_of([_agreement(some) for some in drawn])
    if math.isnan(value):
        return Finding(one.model, "no two modules rank the domains", None, None, None, "not run")
    verdict = verdict_of(low, high, lambda number: number < 1 - 1e-9)
    most = {module: max(numbers, key=lambda domain: numbers[domain]) for module, numbers in _per_module(one.selection)}
    note = (
        "Most neurons: " + "; ".join(f"{module}, {domain.replace('_', ' ')}" for module, domain in most.items()) + "."
    )
    statistic = "agreement of the modules’ rankings (Kendall’s tau, 1 is the same ranking)"
    return Finding(one.model, statistic, value, low, high, verdict, "", note)


def silent_in_vision(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 8: neurons of the vision encoder that were active on no token; the interval resamples buckets.

    A resample leaves buckets out, so in it at least as many are silent; all are moved down by their mean excess.
    """
    if not one.counts:
        return not_run(one, "neurons were not counted")
    site = "vision.mlp.act"
    value = int(silent_neurons(list(one.counts), site).sum())
    generator = torch.Generator().manual_seed(seed)
    active_by_bucket = [counts.active[site].sum(2) for counts in one.counts]
    drawn = []
    for _ in range(resamples):
        active = torch.zeros_like(active_by_bucket[0][0])
        for some in active_by_bucket:
            active += some[torch.randint(0, len(some), (len(some),), generator=generator, device="cpu")].sum(0)
        drawn.append(float((active == 0).sum()))
    excess = sum(drawn) / max(len(drawn), 1) - value
    low, high = interval_of([max(0.0, one - excess) for one in drawn])
    tokens = sum(int(counts.tokens[site].sum()) for counts in one.counts)
    total = one.counts[0].active[site].shape[1] * one.counts[0].active[site].shape[-1]
    rate = 3e6 / tokens
    note = f"Of {total:,} neurons, over {tokens:,} tokens: each is active on fewer than {rate:.1f} tokens in a million."
    verdict: Verdict = "holds" if value > 0 else "does not hold"
    return Finding(one.model, "neurons active on no token", float(value), low, high, verdict, "neurons", note)


def _resampled(counts: Counts, generator: torch.Generator) -> Counts:
    size = len(next(iter(counts.tokens.values())))
    drawn = torch.randint(0, size, (size,), generator=generator, device="cpu")
    return replace(
        counts,
        active={site: active[drawn] for site, active in counts.active.items()},
        tokens={site: tokens[drawn] for site, tokens in counts.tokens.items()},
    )


def _turns(selection: Selection) -> int:
    """Changes of direction over layers, equal neighbours counting as one, after a centred mean of an eighth of them."""
    numbers = selection.masks["llm.mlp.act"].any(-1).sum(1).double()
    width = max(1, len(numbers) // 8) | 1
    padded = torch.cat([numbers[:1].expand(width // 2), numbers, numbers[-1:].expand(width // 2)])
    steps = padded.unfold(0, width, 1).mean(1).diff().sign()
    steps = steps[steps != 0]
    return int((steps[1:] != steps[:-1]).sum())


def _depth(selection: Selection) -> float:
    if "document" not in selection.domains or "vision.mlp.act" not in selection.masks:
        return math.nan
    per_layer = selection.masks["vision.mlp.act"].sum(1).double()
    index = selection.domains.index("document")
    layers = torch.arange(len(per_layer), device=per_layer.device).double()
    own = per_layer[:, index]
    others = per_layer.sum(1) - own
    return float((layers * own).sum() / own.sum() - (layers * others).sum() / others.sum())


def _largest(selection: Selection) -> float:
    shares = []
    for module, numbers in _per_module(selection):
        sites = [site for site in selection.masks if module_of(site) == module]
        total = sum(selection.masks[site][..., 0].numel() for site in sites)
        shares.append(100 * max(numbers.values()) / total)
    return max(shares)


def _per_module(selection: Selection) -> list[tuple[str, dict[str, int]]]:
    modules = dict.fromkeys(module_of(site) for site in selection.masks)
    return [
        (
            module,
            {name: sum(int(m.sum()) for m in selection.neurons(name, module).values()) for name in selection.domains},
        )
        for module in modules
    ]


def _agreement(selection: Selection) -> float:
    numbers = [list(some.values()) for _, some in _per_module(selection)]
    taus = [float(numpy.asarray(kendalltau(one, other))[0]) for one, other in combinations(numbers, 2)]
    # Equal numbers in every domain rank nothing.
    ranked = [tau for tau in taus if not math.isnan(tau)]
    return sum(ranked) / len(ranked) if ranked else math.nan
