"""Claims about neurons: where they lie, how many, in which order of domains, and which are silent.

Intervals resample the 16 buckets of images with replacement and repeat the whole procedure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy
import torch
from scipy.stats import kendalltau

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.digits import number
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.evaluation.findings import Evidence, Finding, Verdict, few, interval_of, not_run, verdict_of
from mmneuron_lens.evaluation.rankings import reversal
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.silent import silent_neurons

LLM, VISION = "llm.mlp.act", "vision.mlp.act"

INTERMEDIATE, NEAR_OUTPUT = (1 / 8, 3 / 4), 3 / 4
"""Depths, 0 the first layer and 1 the last, for the paper's words: one turning point "in the intermediate layer", after
"the first several layers", and one "near the output layer", here the last quarter."""


def resampled_selections(one: Evidence, resamples: int, seed: int) -> list[Selection]:
    """The selection repeated on buckets drawn with replacement; a draw that leaves a domain without tokens is left out.

    Buckets are drawn for each domain on its own, as its images are. None where a domain's tokens lie in one bucket.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(0 if _too_few(one.counts) else resamples):
        drawn = [_resampled(counts, generator) for counts in one.counts]
        given = one.selection.parameters
        kinds = {site: tuple(names) for site, names in given["kinds"].items()}
        try:
            made.append(select(drawn, given["fraction"], given["percentile"], kinds))
        except ValueError:
            continue
    return made


def turning_points(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 1: changes of direction of the number of neurons over layers, smoothed over an eighth of the layers.

    It holds for the paper's three stages (section 4.2.1): a rise to a turning point "in the intermediate layer", a fall
    to another "near the output layer", and a rise: two turning points, in this order and these places.
    """
    statistic = "turning points of the number of domain-specific neurons over the language model’s layers"
    if LLM not in one.selection.masks:
        return not_run(one, "the language model’s neurons were not counted")
    layers = len(one.selection.masks[LLM])
    turns = _turns(one.selection)
    three = [float(_three_stages(_turns(some), layers)) for some in drawn]
    verdict = verdict_of(float(_three_stages(turns, layers)), *interval_of(three), lambda number: number == 1)
    low, high = interval_of([float(len(_turns(some))) for some in drawn])
    places = ", ".join(f"{'most' if peak else 'fewest'} at layer {layer}" for layer, peak in turns)
    note = (
        f"Of layers 0 to {layers - 1}: {places or 'none'}. The paper: most at an intermediate layer, then fewest near "
        "the output."
    )
    note += f" {layers} layers have at most {max(0, layers - 2)} turning points." if layers < 12 else ""
    return Finding(one.model, statistic, float(len(turns)), low, high, verdict, note=note)


def document_depth(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 2: mean layer of document neurons minus that of all other domains' neurons, in layers."""
    statistic = "mean layer of document neurons minus that of the other domains’ in the vision encoder"
    value = _depth(one.selection)
    if math.isnan(value):
        return not_run(one, "no document neurons, or no others, in a vision encoder of several layers")
    low, high = interval_of([_depth(some) for some in drawn])
    verdict = verdict_of(value, low, high, lambda number: number < 0)
    number = int(one.selection.neurons("document", VISION)[VISION].sum())
    note = _reaching(one.selection.reachable(VISION, "document"), number, "document neurons")
    return Finding(one.model, statistic, value, low, high, verdict, "layers", note)


def largest_share(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 3: the largest share of a module's neurons that belong to one domain, in per cent.

    The rule decides how many neurons are selected, so at the paper's fraction of 1 % or below it cannot fail.
    """
    fraction = one.selection.parameters["fraction"]
    value = _largest(one.selection)
    low, high = interval_of([_largest(some) for some in drawn])
    verdict: Verdict = verdict_of(value, low, high, lambda number: number < 1)
    note = f"The rule selects at most {100 * fraction:g} % of each module"
    if fraction <= 0.01:
        verdict = "cannot fail here"
        note += ", so no data could exceed it (but by rounding to a whole neuron)"
    note += ". How much the neurons differ is among the controls."
    statistic = "largest share of one module’s neurons that belong to one domain"
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)


def ranking_agreement(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 7: Kendall's tau between the modules' rankings of domains, mean over pairs of modules; 1 is the same.

    Noise alone keeps it below 1, so the verdict is not tau's: it is that of `rankings.reversal`, whose null hypothesis
    is one ranking shared by all modules.
    """
    statistic = "agreement of the modules’ rankings (Kendall’s tau, 1 is the same ranking)"
    value = _agreement(one.selection)
    if math.isnan(value):
        return not_run(one, "no two modules rank the domains")
    low, high = interval_of([_agreement(some) for some in drawn])
    modules = [module for module, _ in _per_module(one.selection)]
    most = "; ".join(f"{module}, {_named(max(some, key=lambda name: some[name]))}" for module, some in
                     _per_module(one.selection))  # fmt: skip
    note = f"Most neurons: {most}."
    if len(drawn) < 2:
        return Finding(one.model, statistic, value, low, high, "not decided", "", note)
    found = reversal(_numbers(one.selection), numpy.stack([_numbers(some) for some in drawn]))
    upper, lower = (_named(one.selection.domains[place]) for place in (found.upper, found.lower))
    if found.differ:
        note += f" By more than noise, {upper} stands above {lower} in {modules[found.above]} and below it in "
        note += f"{modules[found.below]}."
    else:
        note += " No two domains change their order between modules by more than noise could."
    verdict: Verdict = "holds" if found.differ else "not decided" if found.differ is None else "does not hold"
    return Finding(one.model, statistic, value, low, high, verdict, "", note)


def silent_in_vision(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 8: neurons of the vision encoder that were active on no token; the interval resamples buckets.

    A resample leaves buckets out, so in it at least as many are silent; all are moved down by their mean excess. More
    inputs can only wake neurons, so the interval ends at the number seen.
    """
    if not one.counts or VISION not in one.counts[0].active:
        return not_run(one, "neurons of a vision encoder were not counted")
    silent = silent_neurons(list(one.counts), VISION)
    value = int(silent.sum())
    generator = torch.Generator().manual_seed(seed)
    active_by_bucket = [counts.active[VISION].sum(2) for counts in one.counts]
    drawn = []
    for _ in range(0 if _too_few(one.counts) else resamples):
        active = torch.zeros_like(active_by_bucket[0][0])
        for some in active_by_bucket:
            active += some[torch.randint(0, len(some), (len(some),), generator=generator, device="cpu")].sum(0)
        drawn.append(float((active == 0).sum()))
    excess = sum(drawn) / max(len(drawn), 1) - value
    low, high = interval_of([min(max(0.0, some - excess), float(value)) for some in drawn])
    tokens = sum(int(counts.tokens[VISION].sum()) for counts in one.counts)
    rate = 3e6 / tokens
    note = f"Of {silent.numel():,} neurons, over {tokens:,} tokens: each is active on fewer than {number(rate)} tokens "
    note += "in a million. "
    known = one.counts[0].reachability
    reached = int(silent[known.mask(VISION, len(silent))].sum()) if known.known else None
    note += _reaching(reached, value, "silent neurons")
    verdict = verdict_of(float(value), low, high, lambda number: number > 0)
    return Finding(one.model, "neurons active on no token", float(value), low, high, verdict, "neurons", note.strip())


def _too_few(counts: Sequence[Counts]) -> bool:
    """Whether some domain has tokens in fewer than two buckets at some site."""
    return few([int((tokens.sum(1) > 0).sum()) for one in counts for tokens in one.tokens.values()])


def _resampled(counts: Counts, generator: torch.Generator) -> Counts:
    size = len(next(iter(counts.tokens.values())))
    drawn = torch.randint(0, size, (size,), generator=generator, device="cpu")
    return replace(
        counts,
        active={site: active[drawn] for site, active in counts.active.items()},
        tokens={site: tokens[drawn] for site, tokens in counts.tokens.items()},
    )


def _turns(selection: Selection) -> list[tuple[int, bool]]:
    """Changes of direction over layers, after a centred mean of an eighth of them: the layer, and whether it is a peak.

    Equal neighbours count as one, of which the last is where the direction changes.
    """
    numbers = selection.masks[LLM].any(-1).sum(1).double()
    width = max(1, len(numbers) // 8) | 1
    padded = torch.cat([numbers[:1].expand(width // 2), numbers, numbers[-1:].expand(width // 2)])
    steps = padded.unfold(0, width, 1).mean(1).diff().sign()
    moving = [(layer, float(step)) for layer, step in enumerate(steps.tolist()) if step]
    return [(layer, step < 0) for (_, before), (layer, step) in pairwise(moving) if step != before]


def _three_stages(turns: list[tuple[int, bool]], layers: int) -> bool:
    """Whether the turning points are a peak at an intermediate layer, then a trough near the output."""
    depths = [layer / (layers - 1) for layer, _ in turns]
    if [peak for _, peak in turns] != [True, False]:
        return False
    # Rounded to whole layers: of four, layer 2 is as near to the output as a turning point can be.
    return INTERMEDIATE[0] <= depths[0] <= INTERMEDIATE[1] and turns[1][0] >= math.floor(NEAR_OUTPUT * (layers - 1))


def _depth(selection: Selection) -> float:
    if "document" not in selection.domains or len(selection.masks.get(VISION, ())) < 2:
        return math.nan
    per_layer = selection.masks[VISION].sum(1).double()
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


def _numbers(selection: Selection) -> numpy.ndarray[Any, Any]:
    """Neurons of each domain in each module, [module, domain]."""
    return numpy.array([list(some.values()) for _, some in _per_module(selection)], float)


def _named(domain: str) -> str:
    return domain.replace("_", " ")


def _reaching(reached: int | None, number: int, what: str) -> str:
    """A sentence about those that cannot reach the logits; "" where all can, or that is not known."""
    if reached is None or reached == number:
        return ""
    return f"{number - reached:,} of the {what} lie in layers that cannot reach the logits."


def _agreement(selection: Selection) -> float:
    numbers = _numbers(selection)
    taus = [float(numpy.asarray(kendalltau(one, other))[0]) for one, other in combinations(numbers, 2)]
    # Equal numbers in every domain rank nothing.
    ranked = [tau for tau in taus if not math.isnan(tau)]
    return sum(ranked) / len(ranked) if ranked else math.nan
