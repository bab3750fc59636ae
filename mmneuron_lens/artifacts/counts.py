"""How often each neuron was active in one domain: exact integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
import torch
from jaxtyping import Int64
from torch import Tensor

from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_unless
from mmneuron_lens.artifacts.reachability import Reachability
from mmneuron_lens.artifacts.table_html import table_html

BUCKETS = 16
"""Every image falls into one of so many buckets, so that controls, halves and intervals need no second pass."""

LEFT_OUT = "left out"
"""Provenance: the ids of samples that could not be decoded, encoded or run, sorted."""

REASONS = "reasons"
"""Provenance: why each of these was left out, by its id; absent where none was."""

FRAMES_SHOWN = "frames shown"
"""Provenance: of samples of several images, by number of images that the model was shown, how many samples."""

CORPUS_FIELDS = ("corpus", LEFT_OUT, REASONS, FRAMES_SHOWN)
"""Provenance in which the counts of several domains may differ; in everything else they must agree."""


def bucket_of(image_bytes_hash: str | bytes) -> int:
    """The bucket of a sample, from the sha256 (hexadecimal, or the 32 raw bytes) of its first image's file bytes."""
    digest = image_bytes_hash.hex() if isinstance(image_bytes_hash, bytes) else image_bytes_hash
    try:
        if len(digest) != 64:
            raise ValueError
        return int(digest, 16) % BUCKETS
    except ValueError:
        raise InvalidValue(
            f"{image_bytes_hash[:80]!r} is no sha256; give hashlib.sha256(image_bytes).hexdigest() of the first image."
        ) from None


@dataclass(frozen=True, eq=False, repr=False)
class Counts(Artifact):
    """The counts of one model in one domain, by site.

    - `active[site]`: int64 [bucket, layer, kind, neuron], how many tokens had an activation above zero (M of eq. 4).
    - `tokens[site]`: int64 [bucket, kind], how many tokens there were (N of eq. 4); padding is never counted.
    - `kinds[site]`: the names along the kind axis, such as ("image", "text").
    - `samples`: questions seen. `provenance`: model id, revision, dtype, prompt, batch size, method, corpus, and which
      layers cannot reach the logits: they are counted like all others, see `reachability`.

    Raises `ValueError` naming the site and the value when the parts do not fit together.
    """

    kind: ClassVar[str] = "counts"

    model: str
    domain: str
    active: dict[str, Tensor]
    tokens: dict[str, Tensor]
    kinds: dict[str, tuple[str, ...]]
    samples: int
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not (self.active.keys() == self.tokens.keys() == self.kinds.keys()):
            sites = {name: sorted(getattr(self, name)) for name in ("active", "tokens", "kinds")}
            raise InvalidValue(
                f"Counts of {self.domain!r} name different sites: {sites}; give all three for each site."
            )
        object.__setattr__(self, "active", {site: self.active[site] for site in sorted(self.active)})
        object.__setattr__(self, "tokens", {site: self.tokens[site] for site in sorted(self.tokens)})
        object.__setattr__(self, "kinds", {site: tuple(self.kinds[site]) for site in sorted(self.kinds)})
        for site in self.active:
            self._check(site)

    def _check(self, site: str) -> None:
        active, tokens, kinds = self.active[site], self.tokens[site], self.kinds[site]
        if active.dtype != torch.int64 or tokens.dtype != torch.int64:
            raise InvalidValue(
                f"{site}: counts are {active.dtype} and tokens {tokens.dtype}; both must be torch.int64."
            )
        if len(set(kinds)) != len(kinds):
            raise InvalidValue(f"{site}: kinds {kinds} repeat a name; give each once.")
        if active.ndim != 4 or (active.shape[0], active.shape[2]) != (BUCKETS, len(kinds)):
            raise InvalidValue(
                f"{site}: counts have shape {tuple(active.shape)}; expected [bucket {BUCKETS}, layer, "
                f"kind {len(kinds)}, neuron]."
            )
        if tokens.shape != (BUCKETS, len(kinds)):
            raise InvalidValue(
                f"{site}: tokens have shape {tuple(tokens.shape)}; expected [bucket {BUCKETS}, kind {len(kinds)}]."
            )
        if active.numel() and (int(active.min()) < 0 or bool((active > tokens[:, None, :, None]).any())):
            raise InvalidValue(f"{site}: a count is negative or above the number of tokens; count the same positions.")

    @property
    def reachability(self) -> Reachability:
        """Which layers can reach the logits, as the model's architecture said when they were counted."""
        return Reachability.of(self.provenance)

    def per_bucket(
        self, site: str, kinds: tuple[str, ...] | None = None
    ) -> tuple[Int64[Tensor, "bucket layer neuron"], Int64[Tensor, " bucket"]]:
        """Counts and tokens of a site, summed over the named kinds (all of them if None).

        Raises `KeyError` naming the choices for an unknown site or kind.
        """
        if site not in self.active:
            raise UnknownName(f"no counts at site {site!r}; choose from {', '.join(self.active)}.")
        known = self.kinds[site]
        unknown = [kind for kind in kinds or () if kind not in known]
        if unknown or kinds == ():
            raise UnknownName(
                f"{site}: no kind {', '.join(map(repr, unknown)) or '()'}; choose from {', '.join(known)}."
            )
        index = [known.index(kind) for kind in dict.fromkeys(kinds or known)]
        return self.active[site][:, :, index].sum(2), self.tokens[site][:, index].sum(1)

    def total(self, site: str, kinds: tuple[str, ...] | None = None) -> tuple[Int64[Tensor, "layer neuron"], int]:
        """M and N of eq. 4 at a site, over all buckets and the named kinds (all of them if None, as the paper does).

        Raises as `per_bucket`.
        """
        active, tokens = self.per_bucket(site, kinds)
        return active.sum(0), int(tokens.sum())

    def check(self) -> None:
        refuse_unless(self.samples >= 0, "samples", f"is {self.samples}, and cannot be below 0")
        refuse_unless(bool(self.active), "kinds", "names no site")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        # Counts that all fit are int32 on disk; nothing is lost.
        tensors = {f"active/{site}": as_stored(active) for site, active in self.active.items()}
        tensors |= {f"tokens/{site}": tokens for site, tokens in self.tokens.items()}
        metadata = {"model": self.model, "domain": self.domain, "kinds": self.kinds, "samples": self.samples}
        return tensors, {**metadata, "provenance": self.provenance}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Counts:
        return cls(
            model=metadata["model"],
            domain=metadata["domain"],
            active={site: as_kept(tensors[f"active/{site}"]) for site in metadata["kinds"]},
            tokens={site: tensors[f"tokens/{site}"] for site in metadata["kinds"]},
            kinds={site: tuple(kinds) for site, kinds in metadata["kinds"].items()},
            samples=metadata["samples"],
            provenance=metadata["provenance"],
        )

    def to_frame(self) -> pl.DataFrame:
        """A row per site and kind of token: model, domain, site, layers, neurons (of a layer), kind, tokens,
        unreachable_layers (those that cannot reach the logits; null where that is not known).
        """
        unreachable = {site: ", ".join(map(str, self.reachability.layers(site))) for site in self.active}
        known = self.reachability.known
        return pl.DataFrame(
            [
                {"model": self.model, "domain": self.domain, "site": site, "layers": active.shape[1]}
                | {"neurons": active.shape[3], "kind": kind, "tokens": int(self.tokens[site][:, number].sum())}
                | {"unreachable_layers": unreachable[site] if known else None}
                for site, active in self.active.items()
                for number, kind in enumerate(self.kinds[site])
            ],
            schema_overrides={"unreachable_layers": pl.String},
        )

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def refuse_differences(counts: Sequence[Counts], action: str) -> None:
    """Raises `InvalidValue` naming what differs between counts of several domains, apart from `CORPUS_FIELDS`."""
    for other in counts[1:]:
        _refuse_difference(counts[0], other, action)


def _refuse_difference(first: Counts, other: Counts, action: str) -> None:
    differences: list[str] = []
    for name in ("model", "kinds"):
        if getattr(first, name) != getattr(other, name):
            differences.append(f"{name} is {getattr(first, name)!r} and {getattr(other, name)!r}")
    for site in first.active.keys() & other.active.keys():
        if first.active[site].shape != other.active[site].shape:
            shapes = tuple(first.active[site].shape), tuple(other.active[site].shape)
            differences.append(f"the shape at {site} is {shapes[0]} and {shapes[1]}")
    for name in sorted((first.provenance.keys() | other.provenance.keys()) - set(CORPUS_FIELDS)):
        values = first.provenance.get(name), other.provenance.get(name)
        if values[0] != values[1]:
            differences.append(f"provenance {name} is {values[0]!r} and {values[1]!r}")
    if differences:
        raise InvalidValue(f"cannot {action} counts: {'; '.join(differences)}; count both in the same way.")


def as_kept(counts: Tensor) -> Tensor:
    """As `as_stored` was given them; other types stay, and are refused."""
    return counts.long() if counts.dtype == torch.int32 else counts


def as_stored(counts: Tensor) -> Tensor:
    """As int32 where all of them fit; nothing is lost."""
    fits = not counts.numel() or int(counts.max()) <= torch.iinfo(torch.int32).max
    return counts.int() if fits and counts.dtype == torch.int64 else counts
