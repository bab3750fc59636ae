"""Silent neurons: active on no token of any domain (appendix D, Figure 9)."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts, refuse_differences


def silent_neurons(
    counts: list[Counts], site: str, kinds: tuple[str, ...] | None = None
) -> Bool[Tensor, "layer neuron"]:
    """True where a neuron's count is zero over all domains together; `.sum(1)` is the number in each layer.

    Raises `ValueError` for an empty list or counts that were not made in the same way, `KeyError` for an unknown site.
    """
    if not counts:
        raise InvalidValue("no counts to look for silent neurons in; give the counts of every domain.")
    refuse_differences(counts, action="compare")
    silent = counts[0].total(site, kinds)[0] == 0
    for one in counts[1:]:
        silent &= one.total(site, kinds)[0] == 0
    return silent
