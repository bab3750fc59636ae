"""Claims about layers: the entropy of the next-token distribution, and how sure the output is.

Intervals resample the 16 buckets of images with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmneuron_lens.artifacts.digits import percent
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.evaluation.findings import Evidence, Finding, few, interval_of, not_run, verdict_of

KINDS = ("image", "text")


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
    return _of_entropy(one, statistic, fall, lambda number: number < 0, resamples, seed, layers=3)


def final_rise(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 4c: entropy of the last layer minus the lowest before it, mean over domains and kinds."""

    def rise(curve: Tensor) -> float:
        both = curve.mean(1)
        return float(both[-1] - both[1:-1].min())

    statistic = "entropy of the last layer minus the lowest of the inner layers"
    return _of_entropy(one, statistic, rise, lambda number: number > 0, resamples, seed, layers=3)


def image_confidence(one: Evidence, resamples: int, seed: int) -> Finding:
    """Claim 5: mean probability of an image token's most likely next token at the output, in per cent."""
    if lacking := _lacking(one, ("image",)):
        return not_run(one, lacking)
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
    low, high = interval_of([mean(drawn) for drawn in _draws(one.entropies, resamples, seed)])
    below = sum(int(some.below[:, place].sum()) for some in one.entropies)
    tokens = sum(int(some.tokens[:, place].sum()) for some in one.entropies)
    note = f"{percent(below / tokens)} of image tokens are under 40 %."
    statistic = "mean probability of an image token’s most likely next token"
    verdict = verdict_of(value, low, high, lambda number: number < 40)
    return Finding(one.model, statistic, value, low, high, verdict, "%", note)


def _of_entropy(
    one: Evidence, statistic: str, measure: Callable[[Tensor], float], holds: Callable[[float], bool],
    resamples: int, seed: int, layers: int = 1,
) -> Finding:  # fmt: skip
    if lacking := _lacking(one, KINDS, layers):
        return not_run(one, lacking)
    value = measure(_curve(one.entropies))
    drawn = [measure(_curve(one.entropies, buckets)) for buckets in _draws(one.entropies, resamples, seed)]
    low, high = interval_of(drawn)
    return Finding(one.model, statistic, value, low, high, verdict_of(value, low, high, holds), "nats")


def _lacking(one: Evidence, kinds: Sequence[str], layers: int = 1) -> str:
    """What these claims need and the evidence lacks; "" if nothing."""
    if not one.entropies:
        return "the layers were not read"
    if one.entropies[0].entropy.shape[1] < layers:
        return f"the language model has no layer between the embedding and the last of {layers - 1}"
    for kind in kinds:
        if not any(kind in some.kinds and some.tokens[:, some.kinds.index(kind)].any() for some in one.entropies):
            return f"no {kind} tokens were read"
    return ""


def _curve(entropies: Sequence[Entropies], buckets: Sequence[Tensor | None] | None = None) -> Tensor:
    """Mean over domains, [layer, kind], image first."""
    chosen = buckets or [None] * len(entropies)
    curves = [one.mean(some) for one, some in zip(entropies, chosen, strict=True)]
    order = [entropies[0].kinds.index(kind) for kind in KINDS]
    return torch.stack(curves).nanmean(0)[:, order]


def _draws(entropies: Sequence[Entropies], resamples: int, seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    if few([int((one.tokens.sum(1) > 0).sum()) for one in entropies]):
        return []
    sizes = [len(one.tokens) for one in entropies]
    return [
        [torch.randint(0, size, (size,), generator=generator, device="cpu") for size in sizes] for _ in range(resamples)
    ]
