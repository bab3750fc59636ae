"""LAPE's masks in a run: the neurons of a file as a selection of the run's model, and a selection as such a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.lape_masks import METHOD, read_masks, write_masks
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs.folder import RunError, counted, key_of, selection_file
from mmneuron_lens.runs.identify import kinds_by_site
from mmneuron_lens.runs.store import Store


def masks_stage(
    run: str | Path,
    masks: Path,
    store: Store,
    *,
    written: Path | None = None,
    model: str | None = None,
    fraction: float = 0.01,
    percentile: float = 0.95,
    kinds: Sequence[str] = (),
) -> list[Path]:
    """Keeps the neurons of a file as the run's selection by "masks", of its one model or the one named.

    - written: where they are written again as such a file; nowhere unless given.
    - percentile, kinds: of the probabilities kept beside them; `fraction` says nothing of neurons that are given.

    Returns the files. Raises as `read_masks`, and `InvalidValue` for a run of several models of which none is named.
    """
    files = [some for some in counted(run) if model in (None, next(iter(some.values())).model)]
    if len(files) != 1:
        there = ", ".join(next(iter(some.values())).model for some in counted(run))
        raise InvalidValue(f"{masks} is of one model, and {run} has {there}; name one with --model.")
    counts = list(files[0].values())
    like = select(counts, fraction, percentile, kinds_by_site(counts[0], kinds))
    cited = {one.domain: content_hash(file) for file, one in files[0].items()}
    read = read_masks(masks, like)
    facts = {"counts": cited, "masks": read.parameters["file sha256"], "kinds": list(kinds)}
    key = key_of("selections", METHOD, like.model, facts={**facts, "percentile": percentile})
    what = f"{like.model}: the neurons of {masks}"
    found = store.get_or_make(key, lambda _: read, Selection, what=what)
    if written is not None:
        write_masks(found, written)
    out = [] if store.folder is None else [selection_file(store.folder, found.model, METHOD)]
    return [*out, *([] if written is None else [written])]


def write_masks_of(selections: Sequence[Selection], path: Path) -> None:
    """Writes the one selection's masks; raises `RunError` for several, since such a file names no model."""
    if len(selections) != 1:
        there = ", ".join(one.model for one in selections) or "none"
        raise RunError(f"{path} is to hold the neurons of one model, and selected are those of {there}; name --model.")
    write_masks(selections[0], path)
