"""Moments: how much, not only how often, each neuron was active in one domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from torch import Tensor

from interventions.errors import InvalidValue
from interventions.moments import ABOVE
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.counts import BUCKETS, as_kept, as_stored
from mmneuron_lens.artifacts.fitting import refuse_tensor, refuse_unless
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.table_html import table_html

THRESHOLD = ABOVE
"""What `above` counts beyond, 0.1; MANU calls a neuron active there."""

_NAMES = ("tokens", "positive", "above", "sums", "squares", "maximum")
_ROUNDING = 1e-3
"""How far rounding may carry sums beyond what squares, maxima and thresholds allow, as a share of these."""

_UNDERFLOW = 2e-38
"""What a square may lose in float32 beyond that."""


@dataclass(frozen=True, eq=False, repr=False)
class Moments(Artifact):
    """Sums over the tokens of one domain, by bucket of images and kind of token.

    By site: the neurons' own (`llm.mlp.act`, ...), and `llm.mlp.post`, `vision.mlp.post` where the MLP is gated; where
    it is not, post is act, and only act is there.

    - `tokens[site]`: int64 [bucket, kind]; `kinds[site]`: the names along the kind axis.
    - `positive[site]`, `above[site]`: int64 [bucket, layer, kind, neuron], on how many tokens the value exceeds 0, and
      `THRESHOLD`. At the neurons' own sites `positive` is what `Counts` holds.
    - `sums[site]`, `squares[site]`: float64 [bucket, layer, kind, neuron].
    - `maximum[site]`: float32 [bucket, layer, kind, neuron], NaN where there were no tokens.
    - `samples`, `provenance`: as of `Counts`.

    Moments of the same questions cut otherwise into batches, shards or jobs hold the same integers and maxima; sums and
    squares may differ in their last bits, by what rounding float32 sums of at most 256 tokens does.
    """

    kind: ClassVar[str] = "moments"
    undefined: ClassVar[tuple[str, ...]] = ("maximum/",)

    model: str
    domain: str
    tokens: dict[str, Tensor]
    positive: dict[str, Tensor]
    above: dict[str, Tensor]
    sums: dict[str, Tensor]
    squares: dict[str, Tensor]
    maximum: dict[str, Tensor]
    kinds: dict[str, tuple[str, ...]]
    samples: int
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def reachability(self) -> Reachability:
        """Which layers can reach the logits, as the model's architecture said when they were counted."""
        return Reachability.of(self.provenance)

    def site_of(self, site: str, value: str = "post") -> str:
        """The site that holds a value of a site's neurons: "post" where the MLP is gated, else the site itself.

        - site: whose neurons are counted, `llm.mlp.act`.
        - value: "act" for the activation, "post" for what the down projection is given.

        Raises `InvalidValue` for another value.
        """
        if value not in ("act", "post"):
            raise InvalidValue(f"value is {value!r:.40}; choose from act, post.")
        behind = f"{site.removesuffix('.act')}.post"
        return behind if value == "post" and behind in self.sums else site

    def check(self) -> None:
        refuse_unless(self.samples >= 0, "samples", f"is {self.samples}, and cannot be below 0")
        refuse_unless(bool(self.kinds), "kinds", "names no site")
        for name in _NAMES:
            held = getattr(self, name)
            refuse_unless(held.keys() == self.kinds.keys(), name, f"is of {sorted(held)}, not {sorted(self.kinds)}")
        for site, kinds in self.kinds.items():
            refuse_unless(len(set(kinds)) == len(kinds), f"kinds {site}", f"repeat a name: {kinds!r:.80}")
            refuse_unless(len(self.tokens[site]) == BUCKETS, f"tokens/{site}", f"is not of {BUCKETS} buckets")
            refuse_unless(self.tokens[site].shape[1:] == (len(kinds),), f"tokens/{site}", "is not of the kinds")
            check_moments(site, {name: getattr(self, name)[site] for name in _NAMES})

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Integers that all fit are int32 on disk; nothing is lost.
        tensors = {
            f"{name}/{site}": as_stored(value) if name in ("positive", "above") else value
            for name in _NAMES
            for site, value in getattr(self, name).items()
        }
        own = ("model", "domain", "kinds", "samples", "provenance")
        return tensors, {name: getattr(self, name) for name in own}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Moments:
        kinds = {site: tuple(some) for site, some in metadata["kinds"].items()}
        by_name: dict[str, Any] = {
            name: {
                site: as_kept(tensors[f"{name}/{site}"]) if name in ("positive", "above") else tensors[f"{name}/{site}"]
                for site in kinds
            }
            for name in _NAMES
        }
        return cls(**{**metadata, **by_name, "kinds": kinds})

    def to_frame(self) -> pl.DataFrame:
        """A row per site and kind of token, over all its neurons: model, domain, site, layers, neurons (of a layer),
        kind, tokens, positive and above (shares of values beyond 0 and `THRESHOLD`), mean, deviation, maximum; the last
        five are null where there were no tokens.
        """
        rows = [self._row(site, number) for site, kinds in self.kinds.items() for number in range(len(kinds))]
        return pl.DataFrame(rows, infer_schema_length=None)

    def _row(self, site: str, number: int) -> dict[str, Any]:
        _, layers, _, neurons = self.sums[site].shape
        tokens = int(self.tokens[site][:, number].sum())
        values = tokens * layers * neurons
        row: dict[str, Any] = {"model": self.model, "domain": self.domain, "site": site, "layers": layers}
        row |= {"neurons": neurons, "kind": self.kinds[site][number], "tokens": tokens}
        names = ("positive", "above", "sums", "squares")
        if not values:
            return row | dict.fromkeys(("positive", "above", "mean", "deviation", "maximum"))
        total = {name: float(getattr(self, name)[site][:, :, number].sum()) for name in names}
        mean = total["sums"] / values
        row |= {"positive": total["positive"] / values, "above": total["above"] / values, "mean": mean}
        largest = self.maximum[site][:, :, number].nan_to_num(-torch.inf).max()
        return row | {
            "deviation": max(0.0, total["squares"] / values - mean * mean) ** 0.5,
            "maximum": float(largest),
        }

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def check_moments(site: str, held: Mapping[str, Tensor]) -> None:
    """Raises `InvalidValue` where moments of a site have a wrong form, or cannot be those of any values.

    held: by name, `tokens` int64 [*bucket, kind], and the others [*bucket, layer, kind, neuron], as of `Moments`.
    """
    tokens, positive, maximum = held["tokens"], held["positive"], held["maximum"]
    *buckets, kinds = tokens.shape
    refuse_tensor(f"tokens/{site}", tokens, torch.int64, *buckets, kinds)
    refuse_unless(positive.ndim == len(buckets) + 3, f"positive/{site}", f"has {positive.ndim} axes")
    form = (*buckets, positive.shape[-3], kinds, positive.shape[-1])
    types = {"positive": torch.int64, "above": torch.int64, "sums": torch.float64, "squares": torch.float64}
    for name, dtype in (types | {"maximum": torch.float32}).items():
        refuse_tensor(f"{name}/{site}", held[name], dtype, *form)
    for name in ("sums", "squares"):
        refuse_unless(bool(held[name].isfinite().all()), f"{name}/{site}", "has infinite values or NaN")
    seen = tokens[..., None, :, None]
    refuse_unless(bool((tokens >= 0).all()), f"tokens/{site}", "has values below 0")
    fits = (held["above"] >= 0) & (held["above"] <= positive) & (positive <= seen)
    refuse_unless(bool(fits.all()), f"above/{site}", "and positive do not rise from 0 to the number of tokens")
    fits = torch.where(seen > 0, maximum.isfinite(), maximum.isnan())
    refuse_unless(
        bool(fits.all()), f"maximum/{site}", "has a value where there is no token, or none where there is one"
    )
    for name, threshold in (("positive", 0.0), ("above", THRESHOLD)):
        least, most = threshold * (1 - _ROUNDING), threshold * (1 + _ROUNDING)
        unseen = (held[name] == 0) & (maximum > most) | (held[name] > 0) & (maximum < least)
        refuse_unless(not bool(unseen.any()), f"maximum/{site}", f"and {name} do not say the same of {threshold:g}")
    refuse_unless(bool((held["squares"] >= 0).all()), f"squares/{site}", "has values below 0")
    squares, sums = held["squares"] * (1 + _ROUNDING) + seen * _UNDERFLOW, held["sums"]
    fits = (sums * sums <= squares * seen) & ~(maximum.double() ** 2 > squares)
    refuse_unless(bool(fits.all()), f"squares/{site}", "are below what sums and maximum allow")
