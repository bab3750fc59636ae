"""A run's folder: where each value lies, and which models and domains are there.

counts/MODEL/DOMAIN.safetensors     selection/MODEL.safetensors     selection_wider/MODEL.safetensors
selections/METHOD/MODEL.safetensors, selections_wider/ alike: of other methods than the published one
moments/MODEL/DOMAIN.safetensors    attributions/MODEL/DOMAIN.safetensors
controls/MODEL/*.safetensors        answers/MODEL.jsonl             official_scores/MODEL.jsonl
deviations/MODEL/DOMAIN.safetensors, entropies/ and traces/NUMBER/ alike; embeddings/MODEL.safetensors; means/
flow/MODEL/DOMAIN.safetensors, entropies_jacobian/, traces_jacobian/ and neighbours/ alike
probes/MODEL.safetensors, jacobian/ and text_states/ alike
neurons.parquet    neurons.csv    tables/*.csv    figures/*.png    index.html
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
from mmneuron_lens.neurons.selection import PUBLISHED
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


def selection_file(run: str | Path, model: str, method: str = PUBLISHED) -> Path:
    """Where a run keeps the selection of a model by a method, or would."""
    return file_of(run, "selection", model) if method == PUBLISHED else file_of(run, "selections", method, model)


def files_in(folder: Path, ending: str = ".safetensors") -> list[Path]:
    """The files of artifacts in a folder, in order; hidden ones, as macOS leaves beside others, are none."""
    return sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("."))


def refuse_misplaced(run: str | Path, file: Path, kind: str, *names: str) -> None:
    """Raises `RunError` for a file that holds a value which lies elsewhere: a copy, or another model's.

    names: the model, and perhaps the domain, that the file says it is of.
    """
    own = file_of(run, kind, *names, suffix=file.suffix)
    if file != own:
        raise RunError(
            f"{file}: holds {kind} of {' in '.join(reversed(names))}, which lie in {own.relative_to(run)}; move it out "
            "of the folder, or delete it."
        )


def counted(run: str | Path) -> list[dict[Path, Counts]]:
    """The counts of a run by their files, model by model. Raises `RunError` when there are none, or a file too many."""
    folder = Path(run) / "counts"
    folders = sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))
    found = [{file: Counts.load(file) for file in files_in(one)} for one in (folder, *folders)]
    for file, counts in (pair for files in found for pair in files.items()):
        refuse_misplaced(run, file, "counts", counts.model, counts.domain)
    found = [files for files in found if files]
    if not found:
        raise RunError(f"{run} holds no counts; write them with `mmneuron count --model ... --corpus ... --out {run}`.")
    return found


def selected_models(run: str | Path) -> list[str]:
    """The models that a run has a selection of. Raises `RunError` for a file too many."""
    found = {file: Selection.load(file).model for file in files_in(Path(run) / "selection")}
    for file, model in found.items():
        refuse_misplaced(run, file, "selection", model)
    return list(found.values())
