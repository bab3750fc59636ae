"""What the number of selected neurons proves: a null of permuted domain labels, and agreement between two halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.fitting import refuse_unless
from mmneuron_lens.artifacts.selection import in_order, sites_of


@dataclass(frozen=True, repr=False)
class FalseDiscovery(Artifact):
    """`selected[site]`: neurons selected; `null[site]`: how many each permutation puts under the same cut-off."""

    kind: ClassVar[str] = "false-discovery"

    model: str
    selected: dict[str, int]
    null: dict[str, tuple[int, ...]]
    provenance: dict[str, Any]

    def count(self, site: str | None = None) -> int:
        """Neurons selected at a site, in a module of the paper, or everywhere (None)."""
        return sum(self.selected[name] for name in sites_of(self.selected, site))

    def null_mean(self, site: str | None = None) -> float:
        """The mean over permutations of the neurons that chance puts under the cut-off; site: as of `count`."""
        sums = [sum(draws) for draws in zip(*(self.null[name] for name in sites_of(self.null, site)), strict=True)]
        return sum(sums) / len(sums)

    def rate(self, site: str | None = None) -> float:
        """False discovery rate: null mean / selected. May exceed 1; NaN when nothing was selected.

        - site: as of `count`.
        """
        return self.null_mean(site) / self.count(site) if self.count(site) else float("nan")

    def check(self) -> None:
        refuse_unless(self.selected.keys() == self.null.keys(), "selected", "names other sites than the permutations")
        refuse_unless(len({len(draws) for draws in self.null.values()}) < 2, "null", "differs in its permutations")
        for site, draws in self.null.items():
            refuse_unless(min(self.selected[site], *draws, 0) == 0, site, "has fewer than 0 neurons")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        document = {"model": self.model, "selected": self.selected, "provenance": self.provenance}
        return {site: _tensor(draws) for site, draws in self.null.items()}, document

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> FalseDiscovery:
        return cls(**metadata, null={site: tuple(cast(Any, tensors[site]).tolist()) for site in in_order(tensors)})


@dataclass(frozen=True, repr=False)
class HalvesOverlap(Artifact):
    """Per site and split: `shared[site]` neurons that both halves select, `either[site]` that at least one does."""

    kind: ClassVar[str] = "halves-overlap"

    model: str
    shared: dict[str, tuple[int, ...]]
    either: dict[str, tuple[int, ...]]
    provenance: dict[str, Any]

    def jaccard(self, site: str | None = None) -> tuple[float, ...]:
        """Shared / either for each split, of a site, a module of the paper, or all sites (None); NaN for 0 / 0."""
        names = sites_of(self.shared, site)
        shared = [sum(split) for split in zip(*(self.shared[name] for name in names), strict=True)]
        either = [sum(split) for split in zip(*(self.either[name] for name in names), strict=True)]
        return tuple(part / whole if whole else float("nan") for part, whole in zip(shared, either, strict=True))

    def mean(self, site: str | None = None) -> float:
        """The mean Jaccard overlap over the splits; site: as of `jaccard`."""
        values = self.jaccard(site)
        return sum(values) / len(values)

    def check(self) -> None:
        refuse_unless(self.shared.keys() == self.either.keys(), "shared", "names other sites than either")
        lengths = {len(splits) for values in (self.shared, self.either) for splits in values.values()}
        refuse_unless(len(lengths) < 2, "shared", "and either differ in their splits")
        for site, shared in self.shared.items():
            fits = all(0 <= part <= whole for part, whole in zip(shared, self.either[site], strict=True))
            refuse_unless(fits, f"shared/{site}", "has fewer than 0 neurons, or more than either half")

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"shared/{site}": _tensor(values) for site, values in self.shared.items()}
        tensors |= {f"either/{site}": _tensor(values) for site, values in self.either.items()}
        return tensors, {"model": self.model, "provenance": self.provenance}

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> HalvesOverlap:
        sites = in_order({name.split("/", 1)[1] for name in tensors})
        shared: dict[str, tuple[int, ...]] = {
            site: tuple(cast(Any, tensors[f"shared/{site}"]).tolist()) for site in sites
        }
        either: dict[str, tuple[int, ...]] = {
            site: tuple(cast(Any, tensors[f"either/{site}"]).tolist()) for site in sites
        }
        return cls(metadata["model"], shared, either, metadata["provenance"])


def _tensor(numbers: tuple[int, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")
