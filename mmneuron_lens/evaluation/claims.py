"""Claims: the paper's eight statements as numbers with intervals, from a run's artifacts; needs no model.

Intervals of counts, selections and entropies resample the 16 buckets of images with replacement and repeat the whole
procedure; those of answers and deviations resample questions. All are percentile intervals at 95 %. "holds" and "does
not hold" mean that the whole interval is on one side; between them it is "not decided".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy
import torch
from scipy.stats import kendalltau
from torch import Tensor

from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM, Answer, exact_match
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.deviations import Deviations
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.selection import Selection, module_of
from mmneuron_lens.evaluation.accuracy import Marking, right_by_condition
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.report.paper_page import Claim, Finding, Verdict

RESAMPLES = 200
LEVELS = (2.5, 97.5)

MUCH = 5.0
"""Per cent of the norm: the paper says "large" of 8 to 50 % (all modules off, Table 3); here, anything above this."""


@dataclass(frozen=True)
class Evidence:
    """What a run knows of one model; what is empty was not run."""

    selection: Selection
    counts: Sequence[Counts] = ()
    entropies: Sequence[Entropies] = ()
    answers: Sequence[Answer] = ()
    marking: Marking = exact_match
    deviations: Sequence[Deviations] = ()

    @property
    def model(self) -> str:
        return self.selection.model


STATEMENTS = (
    ("1", "Domain-specific neurons per layer of the language model have two turning points: three stages."),
    ("2", "Document neurons of the vision encoder lie in shallower layers than those of other domains."),
    ("3", "Fewer than 1 % of a module’s neurons are specific to any one domain."),
    ("4a", "The next-token distribution of image tokens has more entropy than that of text tokens at every layer."),
    ("4b", "The entropy falls in the middle layers."),
    ("4c", "The entropy rises slightly at the end."),
    ("5", "At the output, the most likely next token of an image token stays under 40 %."),
    ("6", "Switching domain-specific neurons off moves the last hidden state much and accuracy little."),
    ("7", "The ranking of domains by number of neurons differs between modules."),
    ("8", "Some neurons of the vision encoder are silent for every input."),
)


def claims(evidence: Sequence[Evidence], resamples: int = RESAMPLES, seed: int = 0) -> tuple[Claim, ...]:
    """All statements, each with what was found on every model."""
    drawn = [resampled_selections(one, resamples, seed) for one in evidence]
    tests: dict[str, Callable[[Evidence, list[Selection]], Finding]] = {
        "1": turning_points,
        "2": document_depth,
        "3": largest_share,
        "4a": lambda one, _: image_above_text(one, resamples, seed),
        "4b": lambda one, _: middle_fall(one, resamples, seed),
        "4c": lambda one, _: final_rise(one, resamples, seed),
        "5": lambda one, _: image_confidence(one, resamples, seed),
        "6": lambda one, _: much_and_little(one),
        "7": ranking_agreement,
        "8": lambda one, _: silent_in_vision(one, resamples, seed),
    }
    return tuple(
        Claim(number, statement, tuple(tests[number](one, some) for one, some in zip(evidence, drawn, strict=True)))
        for number, statement in STATEMENTS
    )


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
    low, high = _interval([_turns(some) for some in drawn])
    verdict = _verdict(low, high, lambda number: number == 2, exact=True)
    return Finding(one.model, statistic, float(value), low, high, verdict, note=note)


def document_depth(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 2: mean layer of document neurons minus that of all other domains' neurons, in layers."""
    statistic = "mean layer of document neurons minus that of the other domains’ in the vision encoder"
    value = _depth(one.selection)
    if math.isnan(value):
        return Finding(one.model, "no document neurons in the vision encoder", None, None, None, "not run")
    low, high = _interval([_depth(some) for some in drawn])
    return Finding(one.model, statistic, value, low, high, _verdict(low, high, lambda number: number < 0), "layers")


def largest_share(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 3: the largest share of a module's neurons that belong to one domain, in per cent."""
    fraction = one.selection.parameters["fraction"]
    low, high = _interval([_largest(some) for some in drawn])
    note = f"The rule selects at most {100 * fraction:g} % of each module, so no data could exceed it."
    verdict = _verdict(low, high, lambda number: number < 1)
    statistic = "largest share of one module’s neurons that belong to one domain"
    return Finding(one.model, statistic, _largest(one.selection), low, high, verdict, "%", note)


def image_above_text(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 4a: entropy of image tokens minus text tokens, mean over domains, at the layer where it is smallest."""

    def smallest(curve: Tensor) -> float:
        return float((curve[:, 0] - curve[:, 1]).min())

    statistic = "smallest difference over layers, image minus text tokens, mean over domains"
    finding = _of_entropy(one, statistic, smallest, lambda number: number > 0, resamples, seed)
    if finding.value is None:
        return finding
    curve = _curve(one.entropies)
    layer = int((curve[:, 0] - curve[:, 1]).argmin())
    where = f"layer {layer}" if layer else "the embedding"
    above = int((curve[:, 0] > curve[:, 1]).sum())
    note = f"Smallest at {where}; image tokens are above at {above} of {len(curve)} layers."
    return replace(finding, note=note)


def middle_fall(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 4b: the lowest entropy of the inner layers minus that of the embedding, mean over domains and kinds."""

    def fall(curve: Tensor) -> float:
        both = curve.mean(1)
        return float(both[1:-1].min() - both[0])

    statistic = "lowest entropy of an inner layer minus that of the embedding"
    return _of_entropy(one, statistic, fall, lambda number: number < 0, resamples, seed)


def final_rise(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 4c: entropy of the last layer minus the lowest before it, mean over domains and kinds."""

    def rise(curve: Tensor) -> float:
        both = curve.mean(1)
        return float(both[-1] - both[1:-1].min())

    statistic = "entropy of the last layer minus the lowest of the inner layers"
    return _of_entropy(one, statistic, rise, lambda number: number > 0, resamples, seed)


def image_confidence(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 5: mean probability of an image token's most likely next token at the output, in per cent."""
    if not one.entropies:
        return _not_run(one, "the layers were not read")
    place = one.entropies[0].kinds.index("image")

    def mean(drawn: Sequence[Tensor | None]) -> float:
        sums, tokens = 0.0, 0.0
        for entropies, buckets in zip(one.entropies, drawn, strict=True):
            chosen = slice(None) if buckets is None else buckets
            sums += float(entropies.confidence[chosen, place].sum())
            tokens += float(entropies.tokens[chosen, place].sum())
        # Few images leave buckets empty; a draw of empty ones alone says nothing.
        return 100 * sums / tokens if tokens else math.nan

    value = mean([None] * len(one.entropies))
    low, high = _interval([mean(drawn) for drawn in _draws(one.entropies, resamples, seed)])
    below = sum(int(some.below[:, place].sum()) for some in one.entropies)
    tokens = sum(int(some.tokens[:, place].sum()) for some in one.entropies)
    note = f"{100 * below / tokens:.1f} % of image tokens are under 40 %."
    statistic = "mean probability of an image token’s most likely next token"
    verdict = _verdict(low, high, lambda number: number < 40)
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)


def much_and_little(one: Evidence) -> Finding:
    """Claim 6: deviation in per cent, all modules off, mean over domains: above `MUCH`, and more than accuracy changes.

    The change is that of a domain's accuracy in points, whatever its sign; questions are resampled in each domain.
    """
    if not one.deviations or not one.answers:
        return _not_run(one, "no neurons were switched off")
    right = right_by_condition(one.answers, one.marking)
    moved, changed, drawn = [], [], []
    generator = numpy.random.default_rng(0)
    for some in one.deviations:
        deviation = dict(zip(some.samples, (100 * some.of(ALL, DOMAIN)).tolist(), strict=True))
        before, after = right["None", NONE, "", some.domain], right[ALL, DOMAIN, some.domain, some.domain]
        asked = [name for name in before if name in after]
        difference = 100 * numpy.array([float(after[name]) - float(before[name]) for name in asked])
        values = numpy.array(list(deviation.values()))
        moved.append(float(values.mean()))
        changed.append(abs(float(difference.mean())))
        places = generator.integers(0, len(values), (1000, len(values)))
        drawn.append(values[places].mean(1))
    low, high = _interval(list(numpy.mean(drawn, axis=0)))
    value, change = float(numpy.mean(moved)), float(numpy.mean(changed))
    random = [some.of(ALL, RANDOM).mean() for some in one.deviations if (ALL, f"{RANDOM} 1") in some.conditions]
    note = f"Accuracy changes by {change:.1f} points. Taken to be much: above {MUCH:g} %, and more than the points."
    note += f" As many random neurons move the state by {100 * float(numpy.mean(random)):.1f} %." if random else ""
    statistic = "deviation of the last hidden state, all modules off, mean over domains"
    verdict = _verdict(low, high, lambda number: number > max(MUCH, change))
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)


def ranking_agreement(one: Evidence, drawn: Sequence[Selection]) -> Finding:
    """Claim 7: Kendall's tau between the modules' rankings of domains, mean over pairs of modules; 1 is the same."""
    value = _agreement(one.selection)
    low, high = _interval([_agreement(some) for some in drawn])
    if math.isnan(value):
        return Finding(one.model, "no two modules rank the domains", None, None, None, "not run")
    verdict = _verdict(low, high, lambda number: number < 1 - 1e-9)
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
        return _not_run(one, "neurons were not counted")
    site = "vision.mlp.act"
    value = int(silent_neurons(list(one.counts), site).sum())
    generator = torch.Generator().manual_seed(seed)
    active_by_bucket = [counts.active[site].sum(2) for counts in one.counts]
    drawn = []
    for _ in range(resamples):
        active = torch.zeros_like(active_by_bucket[0][0])
        for some in active_by_bucket:
            active += some[torch.randint(0, len(some), (len(some),), generator=generator)].sum(0)
        drawn.append(float((active == 0).sum()))
    excess = sum(drawn) / max(len(drawn), 1) - value
    low, high = _interval([max(0.0, one - excess) for one in drawn])
    tokens = sum(int(counts.tokens[site].sum()) for counts in one.counts)
    total = one.counts[0].active[site].shape[1] * one.counts[0].active[site].shape[-1]
    rate = 3e6 / tokens
    note = f"Of {total:,} neurons, over {tokens:,} tokens: each is active on fewer than {rate:.1f} tokens in a million."
    verdict: Verdict = "holds" if value > 0 else "does not hold"
    return Finding(one.model, "neurons active on no token", float(value), low, high, verdict, "neurons", note)


def _of_entropy(
    one: Evidence, statistic: str, measure: Callable[[Tensor], float], holds: Callable[[float], bool],
    resamples: int, seed: int,
) -> Finding:  # fmt: skip
    if not one.entropies:
        return _not_run(one, "the layers were not read")
    value = measure(_curve(one.entropies))
    drawn = [measure(_curve(one.entropies, buckets)) for buckets in _draws(one.entropies, resamples, seed)]
    low, high = _interval(drawn)
    return Finding(one.model, statistic, value, low, high, _verdict(low, high, holds), "nats")


def _curve(entropies: Sequence[Entropies], buckets: Sequence[Tensor | None] | None = None) -> Tensor:
    """Mean over domains, [layer, kind], image first."""
    chosen = buckets or [None] * len(entropies)
    curves = [one.mean(some) for one, some in zip(entropies, chosen, strict=True)]
    order = [entropies[0].kinds.index(kind) for kind in ("image", "text")]
    return torch.stack(curves).nanmean(0)[:, order]


def _draws(entropies: Sequence[Entropies], resamples: int, seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(one.tokens) for one in entropies]
    return [[torch.randint(0, size, (size,), generator=generator) for size in sizes] for _ in range(resamples)]


def _resampled(counts: Counts, generator: torch.Generator) -> Counts:
    size = len(next(iter(counts.tokens.values())))
    drawn = torch.randint(0, size, (size,), generator=generator)
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
    layers = torch.arange(len(per_layer)).double()
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


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    kept = [value for value in values if not math.isnan(value)]
    if len(kept) < 2:
        return None, None
    low, high = numpy.percentile(kept, LEVELS, method="inverted_cdf")
    return float(low), float(high)


def _verdict(low: float | None, high: float | None, holds: Callable[[float], bool], exact: bool = False) -> Verdict:
    """Whether both ends agree; for a whole number, every value between them must."""
    if low is None or high is None:
        return "not decided"
    if exact and low != high:
        return "not decided" if holds(low) or holds(high) or low < 2 < high else "does not hold"
    if holds(low) and holds(high):
        return "holds"
    return "not decided" if holds(low) or holds(high) else "does not hold"


def _not_run(one: Evidence, why: str) -> Finding:
    return Finding(one.model, why, None, None, None, "not run")
