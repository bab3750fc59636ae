"""Identify: from counts to the domain-specific neurons and their controls, each made unless it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from mmneuron_lens.neurons.halves import method_overlap
from mmneuron_lens.neurons.observed import Observed
from mmneuron_lens.neurons.selection import PUBLISHED, select
from mmneuron_lens.neurons.selectors.registry import selector_named
from mmneuron_lens.neurons.silent import silent_neurons
from mmneuron_lens.runs.folder import RunError, counted, key_of
from mmneuron_lens.runs.keys import StoreConflict
from mmneuron_lens.runs.observed import observed_in
from mmneuron_lens.runs.store import Store, StoreBusy

WIDER = 0.05
"""Table 6 repeats the selection at 5 %."""


@dataclass(frozen=True)
class Controls:
    """What the selection proves; all are None, and `missing` says why, for too small a corpus.

    - discovery: whether chance explains the number of neurons; of the published method alone, a cut-off of entropies.
    - overlap: whether other data give the same ones; None for a method that looks at no data.
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

    def __repr__(self) -> str:
        chosen = sum(map(self.selection.selected, self.selection.masks))
        every = sum(one.numel() for one in self.selection.entropy.values())
        controls = f"no controls ({self.controls.missing})" if self.controls.missing else "controls"
        domains = ", ".join(self.selection.domains)
        return f"Identified({self.selection.model}: {chosen:,} of {every:,} neurons, of {domains}; {controls})"

    def silent(self, site: str) -> Bool[Tensor, "layer neuron"]:
        """Neurons of a site that were active on no token of any domain (Figure 9)."""
        return silent_neurons(list(self.counts), site)


def find(
    given: Sequence[Counts] | Observed,
    *,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: dict[str, tuple[str, ...]] | None = None,
    method: str = PUBLISHED,
    parameters: Mapping[str, Any] | None = None,
    wider: float = WIDER,
    permutations: int = 20,
    seed: int = 0,
    store: Store | None = None,
    cited: Mapping[str, str] | None = None,
    measured: Mapping[str, Mapping[str, str]] | None = None,
    progress: Progress = quietly,
) -> Identified:
    """The selection from counts of two or more domains, again at `wider`, and its controls.

    - given: the counts, or what was measured beside them.
    - fraction, percentile, kinds, method, parameters: of `select`.
    - permutations: of the false discovery rate, with `seed`.
    - store: where each is kept; nowhere unless given. cited: the sha256 of each file of counts, then; measured: those
      of what else a method needs, by what it is.

    Raises as `select` does, and `StoreConflict` for a store that holds another selection.
    """
    store = store or Store(None)
    if method != PUBLISHED:
        seen = given if isinstance(given, Observed) else Observed(tuple(given))
        rule = {"fraction": fraction, "percentile": percentile, "kinds": kinds}
        facts = {"counts": dict(cited or {}), **(measured or {}), **rule, "kinds": kinds or {}, "seed": seed}
        return _by_method(seen, method, dict(parameters or {}), rule, wider, facts, store)
    counts = list(given.counts if isinstance(given, Observed) else given)
    model = counts[0].model if counts else ""
    rule = {"counts": dict(cited or {}), "percentile": percentile, "kinds": kinds or {}}
    chance = {**rule, "fraction": fraction, "seed": seed}

    def selected(kind: str, share: float) -> Selection:
        key = key_of(kind, model, facts={**rule, "fraction": share})
        what = f"{model}: selecting {100 * share:g} % of the neurons"
        make = partial(select, counts, share, percentile, kinds, method, **(parameters or {}))
        return store.get_or_make(key, lambda _: make(), Selection, what=what)

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


def _by_method(
    seen: Observed,
    method: str,
    parameters: dict[str, Any],
    rule: dict[str, Any],
    wider: float,
    facts: Mapping[str, Any],
    store: Store,
) -> Identified:
    """What another method than the published one selects, and the controls that mean something for it."""
    model, known = seen.counts[0].model if seen.counts else "", selector_named(method)
    facts = {**facts, "method": method, "parameters": {**known.defaults, **parameters}, **known.described}

    def selected(kind: str, share: float) -> Selection:
        key = key_of(kind, method, model, facts={**facts, "fraction": share})
        what = f"{model}: selecting {100 * share:g} % of the neurons by {method}"
        make = partial(select, seen, method=method, **{**rule, "fraction": share}, **parameters)
        return store.get_or_make(key, lambda _: make(), Selection, what=what)

    selection = selected("selections", rule["fraction"])
    missing, overlap, effects = "", None, None
    try:
        if known.needs:
            overlap = store.get_or_make(
                key_of("controls", model, method, "halves_overlap", facts=facts),
                lambda _: method_overlap(seen, method, seed=facts["seed"], **rule, **parameters),
                HalvesOverlap,
            )
        effects = store.get_or_make(
            key_of("controls", model, method, "effect_sizes", facts=facts),
            lambda _: effect_sizes(seen.counts, selection, seed=facts["seed"]),
            EffectSizes,
        )
    except InvalidValue as error:
        if isinstance(error, StoreConflict | StoreBusy | ArtifactError):
            raise
        missing = f"The controls were not run: {error}"
    controls = Controls(None, overlap, effects, missing)
    return Identified(seen.counts, selection, selected("selections_wider", wider), controls)


def select_stage(
    run: str | Path,
    store: Store,
    *,
    model: str | None = None,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Sequence[str] = (),
    method: str = PUBLISHED,
    parameters: Mapping[str, Any] | None = None,
    permutations: int = 20,
    seed: int = 0,
    progress: Progress = quietly,
) -> list[Identified]:
    """What is found in the counts of every model in a run, or of one; raises as `find`.

    - store: where it is written: the run's own folder, or another.
    - kinds: only these kinds of token, at each site that has any of them.
    - method, parameters: of `select`; what it needs beside counts must be in the run, see `observed_in`.
    """
    found: list[Identified] = []
    for files in counted(run):
        counts = list(files.values())
        if model is None or counts[0].model == model:
            seen, measured = observed_in(run, counts, method)
            found.append(
                find(
                    seen,
                    method=method,
                    parameters=parameters,
                    measured=measured,
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
    if not found:
        there = ", ".join(next(iter(files.values())).model for files in counted(run))
        raise RunError(f"{run} has no counts of {model}; choose from {there}.")
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
