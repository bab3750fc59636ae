"""The results in a run's folder, read without the model: counts, selections, controls, by model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.effect_sizes import EffectSizes
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.runs.folder import counted, file_of, files_in, refuse_misplaced
from mmneuron_lens.runs.identify import Controls


def counts_by_model(run: Path) -> dict[str, list[Counts]]:
    """Counts of a run, one a domain; none where it has none. Raises as `counted`."""
    if not any((run / "counts").glob("**/*.safetensors")):
        return {}
    return {files[0].model: files for files in (list(one.values()) for one in counted(run))}


def selections_by_model(run: Path) -> dict[str, Selection]:
    """The selections of a run, by the published rule. Raises `RunError` for a file too many."""
    found: dict[str, Selection] = {}
    for file in files_in(run / "selection"):
        one = Selection.load(file)
        refuse_misplaced(run, file, "selection", one.model)
        found[one.model] = one
    return found


def controls_of(run: Path, model: str) -> Controls:
    """The controls of a model's selection; those that are not there are None, which `missing` says."""

    def read(name: str, load: Callable[[Path], Any]) -> Any:
        file = file_of(run, "controls", model, name)
        return load(file) if file.is_file() else None

    discovery = read("false_discovery", FalseDiscovery.load)
    overlap = read("halves_overlap", HalvesOverlap.load)
    effects = read("effect_sizes", EffectSizes.load)
    whole = None not in (discovery, overlap, effects)
    return Controls(discovery, overlap, effects, "" if whole else "The controls, or some of them, are not in the run.")
