"""How the selection changes with tokens: agreement of two disjoint parts of the data, as the parts grow.

A user who sees the agreement level off knows that more tokens will not change the selection much. It takes whole
buckets, so it needs no second pass over the corpora.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import in_order, module_of
from mmneuron_lens.neurons.controls import filled_cells, probability_of_cells
from mmneuron_lens.neurons.module_selection import select_module
from mmneuron_lens.neurons.selection import select


@dataclass(frozen=True)
class Stability:
    """Per site: rows of (buckets in each part, tokens in each part of a domain, Jaccard overlap of every draw).

    Tokens are the mean over draws, parts and domains. Draws share buckets, so their spread is that of the split and
    not a confidence interval of independent repetitions.
    """

    model: str
    rows: dict[str, tuple[tuple[int, float, tuple[float, ...]], ...]]

    def frame(self) -> pl.DataFrame:
        """model, module, site, buckets, tokens, jaccard (mean), low and high (the middle 95 % of draws)."""
        made: list[dict[str, Any]] = []
        for site in in_order(self.rows):
            for buckets, tokens, draws in self.rows[site]:
                values = torch.tensor(draws, dtype=torch.float64, device="cpu")
                shares = torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu")
                low, high = torch.quantile(values, shares).tolist()
                place = {"model": self.model, "module": module_of(site), "site": site}
                sizes = {"buckets": buckets, "tokens": round(tokens)}
                made.append({**place, **sizes, "jaccard": float(values.mean()), "low": low, "high": high})
        return pl.DataFrame(made)


def stability(
    counts: list[Counts], fraction: float = 0.01, percentile: float = 0.95, draws: int = 20, seed: int = 0
) -> Stability:
    """Jaccard overlap of the selections from two disjoint parts of each domain, of 1, 2, 4, ... buckets each.

    The largest parts are the halves of the domain with the fewest filled buckets. Two empty selections agree by 1.
    By chance alone the overlap is about f / (2 - f), 0.005 at 1 %.

    Raises `ValueError` as `select` does, or when a domain has tokens in fewer than two buckets.
    """
    selection = select(counts, fraction, percentile)
    by_domain = {one.domain: one for one in counts}
    ordered = [by_domain[domain] for domain in selection.domains]
    rows = {}
    for site in selection.masks:
        active, tokens, labels = filled_cells(ordered, site, selection.parameters["kinds"][site])
        filled = torch.bincount(labels, minlength=len(ordered))
        if int(filled.min()) < 2:
            domain = selection.domains[int(filled.argmin())]
            raise InvalidValue(
                f"{domain} has tokens in {int(filled.min())} bucket at {site}; two parts need two, count more images."
            )
        shape = (*selection.entropy[site].shape, len(ordered))
        generator = torch.Generator().manual_seed(seed)
        made = []
        for size in _sizes(int(filled.min()) // 2):
            overlaps, seen = [], []
            for _ in range(draws):
                chosen = []
                for part in _parts(labels, size, generator):
                    probability = probability_of_cells(active[part], tokens[part], labels[part], shape)
                    chosen.append(select_module(probability, fraction, percentile).mask.any(dim=-1))
                    seen.append(float(tokens[part].sum()) / len(ordered))
                either = int((chosen[0] | chosen[1]).sum())
                overlaps.append(int((chosen[0] & chosen[1]).sum()) / either if either else 1.0)
            made.append((size, sum(seen) / len(seen), tuple(overlaps)))
        rows[site] = tuple(made)
    return Stability(selection.model, rows)


def _sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest."""
    return sorted({*(2**power for power in range(largest.bit_length()) if 2**power <= largest), largest})


def _parts(labels: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the cells of two disjoint parts, of so many buckets of every domain."""
    first, second = [], []
    for number in labels.unique():
        cells = (labels == number).nonzero().squeeze(1)
        drawn = cells[torch.randperm(len(cells), generator=generator, device="cpu")]
        first.append(drawn[:size])
        second.append(drawn[size : 2 * size])
    return torch.cat(first), torch.cat(second)
