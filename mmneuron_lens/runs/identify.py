"""Identify: from counts to the domain-specific neurons and their controls, each made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.format import ArtifactError, content_hash
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.neurons.controls import false_discovery_rate, halves_overlap
from mmneuron_lens.neurons.effects import effect_sizes
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.runs.folder import counted, key_of
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.store import Store, StoreBusy

WIDER = 0.05
"""Table 6 repeats the selection at 5 %."""


@dataclass(frozen=True)
class Controls:
    """What the selection proves; all are None, and `missing` says why, for too small a corpus.

    - discovery: whether chance explains the number of neurons. overlap: whether other data give the same ones.
    - effects: how much more often they are active in their domain.
    """

    discovery: FalseDiscovery | None = None
    overlap: HalvesOverlap | None = None
    effects: EffectSizes | None = None
    missing: str = ""


@dataclass(frozen=True)
class Identified:
    """What is found in the counts of several domains; `wider` is the selection at `WIDER`.

    - moments: of the same domains, in their order; empty where none were taken.
    """

    counts: tuple[Counts, ...]
    selection: Selection
    wider: Selection
    controls: Controls
    moments: tuple[Moments, ...] = ()

    def silent(self, site: str) -> Bool[Tensor, "layer neuron"]:
        """Neurons of a site that were active on no token of any domain (Figure 9)."""
        return silent_neurons(list(self.counts), site)


def find(
    counts: Sequence[Counts],
    *,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: dict[str, tuple[str, ...]] | None = None,
    wider: float = WIDER,
    permutations: int = 20,
    seed: int = 0,
    store: Store | None = None,
    cited: Mapping[str, str] | None = None,
    progress: Progress = quietly,
) -> Identified:
    """The selection from counts of two or more domains, again at `wider`, and its controls.

    - fraction, percentile, kinds: of `select`.
    - permutations: of the false discovery rate, with `seed`.
    - store: where each is kept; nowhere unless given. cited: the sha256 of each file of counts, then.

    Raises as `select` does, and `StoreConflict` for a store that holds another selection.
    """
    store, counts = store or Store(None), list(counts)
    model = counts[0].model if counts else ""
    rule = {"counts": dict(cited or {}), "percentile": percentile, "kinds": kinds or {}}
    chance = {**rule, "fraction": fraction, "seed": seed}

    def selected(kind: str, share: float) -> Selection:
        key = key_of(kind, model, facts={**rule, "fraction": share})
        what = f"{model}: selecting {100 * share:g} % of the neurons"
        return store.get_or_make(key, lambda _: select(counts, share, percentile, kinds), Selection, what=what)

    selection = selected("selection", fraction)
    keys = {
        "halves_overlap": (key_of("controls", model, "halves_overlap", facts=chance), HalvesOverlap),
        "false_discovery": (
            key_of("controls", model, "false_discovery", facts={**chance, "permutations": permutations}),
            FalseDiscovery,
        ),
        "effect_sizes": (key_of("controls", model, "effect_sizes", facts=chance), EffectSizes),
    }
    try:
        overlap = store.get_or_make(
            keys["halves_overlap"][0],
            lambda _: halves_overlap(counts, fraction, percentile, kinds, seed=seed),
            HalvesOverlap,
        )
        name = f"shuffling domains of {model}"
        discovery = store.get_or_make(
            keys["false_discovery"][0],
            lambda _: false_discovery_rate(counts, selection, permutations, seed, lambda draws: progress(draws, name)),
            FalseDiscovery,
        )
        effects = store.get_or_make(
            keys["effect_sizes"][0], lambda _: effect_sizes(counts, selection, seed=seed), EffectSizes
        )
        controls = Controls(discovery, overlap, effects)
    except InvalidValue as error:
        if isinstance(error, StoreConflict | StoreBusy | ArtifactError):
            raise
        controls = Controls(missing=f"The controls were not run: {error}")
        for key, codec in keys.values():
            # Those of a selection that was replaced.
            store.discard_other(key, codec)
    return Identified(tuple(counts), selection, selected("selection_wider", wider), controls)


def select_stage(
    run: str | Path,
    store: Store,
    *,
    model: str | None = None,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Sequence[str] = (),
    permutations: int = 20,
    seed: int = 0,
    progress: Progress = quietly,
) -> list[Identified]:
    """What is found in the counts of every model in a run, or of one; raises as `find`.

    - store: where it is written: the run's own folder, or another.
    - kinds: only these kinds of token, at each site that has any of them.
    """
    found: list[Identified] = []
    for files in counted(run):
        counts = list(files.values())
        if model is None or counts[0].model == model:
            found.append(
                find(
                    counts,
                    fraction=fraction,
                    percentile=percentile,
                    kinds=kinds_by_site(counts[0], kinds),
                    permutations=permutations,
                    seed=seed,
                    store=store,
                    progress=progress,
                    cited={one.domain: content_hash(file) for file, one in files.items()},
                )
            )
    return found


def kinds_by_site(counts: Counts, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The named kinds of token at each site that has any of them; a site that has none keeps all of its own.

    Raises `InvalidValue` naming the choices for a kind that no site has.
    """
    choices = dict.fromkeys(kind for kinds in counts.kinds.values() for kind in kinds)
    for name in names:
        if name not in choices:
            raise InvalidValue(f"no kind of token {name!r} was counted; choose from {', '.join(choices)}.")
    chosen = {site: tuple(kind for kind in kinds if kind in names) for site, kinds in counts.kinds.items()}
    return {site: kinds for site, kinds in chosen.items() if kinds}
