"""What a run's folder has for a method: counts, and beside them the moments and attributions that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmneuron_lens.neurons.selection  # noqa: F401  (registers the methods)
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.observed import Observed, observed
from mmneuron_lens.neurons.selectors.registry import HOW, selector_named
from mmneuron_lens.runs.attributions import attributions_stage
from mmneuron_lens.runs.folder import RunError, counted, file_of, files_in
from mmneuron_lens.runs.store import Store

BESIDE: dict[str, type[Any]] = {"moments": Moments, "attributions": Attributions}
"""What methods may need beside counts, and where a run keeps it: KIND/MODEL/DOMAIN.safetensors."""

COMMANDS = {
    "moments": "mmneuron count --moments --model {model} --corpus ... --out {run}",
    "attributions": "mmneuron select {run} --method {method} --model {model} --corpus ...",
}


def observed_on(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    counts: Sequence[Counts],
    store: Store,
    method: str,
    *,
    moments: Sequence[Moments] = (),
    **asked: Any,
) -> tuple[Observed, dict[str, dict[str, str]]]:
    """As `observed_in`, with attributions made on these samples where a method needs them and the store has none.

    - moments: of the same domains, where the store keeps none.
    - asked: settings of `attributions_stage`.

    Raises `InvalidValue` where a method needs moments and there are none.
    """
    needs = selector_named(method).needs
    made = attributions_stage(lens, samples_by_domain, store, **asked) if "attributions" in needs else {}
    if store.folder is None:
        if "moments" in needs and not moments:
            raise InvalidValue(f"{method} needs moments, and there are none; {HOW['moments']}.")
        return observed(counts, moments, list(made.values())), {}
    return observed_in(store.folder, counts, method)


def observed_in(run: str | Path, counts: Sequence[Counts], method: str) -> tuple[Observed, dict[str, dict[str, str]]]:
    """One model's counts with what else a method needs, and the sha256 of each file of that, by what it is and domain.

    Raises `RunError` naming the first that is not there, and the command that makes it.
    """
    found: dict[str, list[Any]] = {}
    cited: dict[str, dict[str, str]] = {}
    for kind in selector_named(method).needs:
        if kind not in BESIDE:
            continue
        for one in counts:
            file = file_of(run, kind, one.model, one.domain)
            if not file.is_file():
                command = COMMANDS[kind].format(model=one.model, run=run, method=method)
                raise RunError(
                    f"{method} needs {kind}, and {run} has none of {one.model} in {one.domain}; make them: `{command}`"
                )
            found.setdefault(kind, []).append(BESIDE[kind].load(file))
            cited.setdefault(kind, {})[one.domain] = content_hash(file)
    return observed(counts, **found), cited


def all_observed_in(run: str | Path, model: str, domains: Sequence[str]) -> Observed:
    """Everything that a run has of a model: counts, and moments and attributions where it has those of every domain.

    - domains: whose counts are taken.
    """
    files = files_in(file_of(run, "counts", model).with_suffix(""))
    counts = [one for one in map(Counts.load, files) if one.domain in domains]
    found: dict[str, list[Any]] = {}
    for kind, codec in BESIDE.items():
        beside = [file_of(run, kind, model, one.domain) for one in counts]
        found[kind] = list(map(codec.load, beside)) if all(file.is_file() for file in beside) else []
    return observed(counts, **found)


def attributed_run(
    run: str | Path,
    model: str | None,
    corpus: Corpus,
    store: Store,
    *,
    method: str,
    how: Mapping[str, Any],
    **asked: Any,
) -> None:
    """Takes the attributions of a run's model on a corpus, in the domains that it was counted in.

    - how: what `Lens` takes besides the model. asked: settings of `attributions_stage`.

    Raises `InvalidValue` without a model, or for a method that needs no attributions, `RunError` for a model without
    counts or a domain without questions.
    """
    if "attributions" not in selector_named(method).needs:
        raise InvalidValue(f"{method} needs no attributions, so no corpus; leave --corpus out.")
    if model is None:
        raise InvalidValue("--corpus is asked of a model; name it with --model.")
    domains = [one.domain for files in counted(run) for one in files.values() if one.model == model]
    if not domains:
        raise RunError(f"{run} has no counts of {model}; write them with `mmneuron count --model {model}`.")
    samples = corpus.by_domain()
    if without := [domain for domain in domains if domain not in samples]:
        raise RunError(f"{corpus.name} has no questions of {', '.join(without)}, which {run} has counts of; add some.")
    some = {domain: samples[domain] for domain in domains}
    attributions_stage(Lens(model, **how), some, store, corpus=corpus.name, problems=corpus.problems, **asked)
