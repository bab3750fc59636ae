"""A run's folder: where each value lies, and which models and domains are there.

counts/MODEL/DOMAIN.safetensors     selection/MODEL.safetensors     selection_wider/MODEL.safetensors
controls/MODEL/*.safetensors        answers/MODEL.jsonl             official_scores/MODEL.jsonl
deviations/MODEL/DOMAIN.safetensors, entropies/ and traces/NUMBER/ alike; embeddings/MODEL.safetensors; means/
tables/*.csv    figures/*.png    index.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.file_names import file_name
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.experiments.conditions import tensors_digest
from mmneuron_lens.runs.keys import Key


class RunError(InvalidValue):
    """A run's folder lacks what a stage needs; the message says which stage writes it."""


def key_of(kind: str, *names: str, facts: Mapping[str, Any], suffix: str = ".safetensors") -> Key:
    """The key of a value of some kind ("counts", "traces/1"), of a model, and perhaps a domain or a name."""
    return Key("/".join([kind, *map(file_name, names)]) + suffix, facts)


def file_of(run: str | Path, kind: str, *names: str, suffix: str = ".safetensors") -> Path:
    """Where a value lies, or would."""
    return Path(run) / key_of(kind, *names, facts={}, suffix=suffix).path


def selection_facts(selection: Selection, selection_id: str) -> dict[str, Any]:
    """What identifies a selection in a key: its neurons, and the sha256 of its file where that is cited."""
    neurons = {"domains": list(selection.domains), "sha256": tensors_digest(selection.masks)}
    return {"selection": selection_id, "neurons": neurons}


def counts_files(run: str | Path) -> list[list[Path]]:
    """The files of finished counts, model by model. Raises `RunError` when there are none."""
    folders = sorted(path for path in (Path(run) / "counts").glob("*") if path.is_dir())
    found = [sorted(folder.glob("*.safetensors")) for folder in folders]
    found = [files for files in found if files]
    if not found:
        raise RunError(f"{run} holds no counts; write them with `mmneuron count --model ... --corpus ... --out {run}`.")
    return found


def selected_models(run: str | Path) -> list[str]:
    """The models that a run has a selection of."""
    return [Selection.load(file).model for file in sorted((Path(run) / "selection").glob("*.safetensors"))]


def counted(run: str | Path) -> list[list[Counts]]:
    """The counts of every model in a run; raises as `counts_files`."""
    return [[Counts.load(file) for file in files] for files in counts_files(run)]
