"""Comparison in a run: the neurons of several methods tried beside random ones, made unless it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmneuron_lens.neurons.selectors  # noqa: F401  (registers the methods)
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.comparison import DRAWN, NeuronComparison
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.format import content_hash
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.frames import told_by_domain
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import DOMAINS, Sample
from mmneuron_lens.experiments.ablate import generation_settings
from mmneuron_lens.experiments.compare import compare, digest_of
from mmneuron_lens.experiments.planted import planted_comparison
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.compared import FRACTIONS, STRENGTHS, NeuronSet, chosen_sets, with_draws, with_strengths
from mmneuron_lens.neurons.observed import Observed, observed
from mmneuron_lens.neurons.overlap import half_overlaps, halved, overlaps
from mmneuron_lens.neurons.selectors.registry import Scores, selector_named
from mmneuron_lens.runs.attributions import attributions_stage
from mmneuron_lens.runs.folder import RunError, counted, file_of, key_of
from mmneuron_lens.runs.moments import moments_stage
from mmneuron_lens.runs.observed import BESIDE
from mmneuron_lens.runs.store import Store

STAGES: dict[str, Any] = {"moments": moments_stage, "attributions": attributions_stage}
"""What makes what methods may need beside counts."""

Parameters = Mapping[str, Mapping[str, Any]]
"""By method, parameters over its published ones."""


def compare_stage(
    lens: Lens,
    seen: Observed,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    store: Store,
    *,
    methods: Sequence[str] = ("dape",),
    parameters: Parameters | None = None,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 5,
    seed: int = 0,
    others: Sequence[float] | None = None,
    accuracy: Sequence[float] = (),
    amplify: Sequence[float] = (),
    strengths: Sequence[float] = STRENGTHS,
    cited: Mapping[str, str] | None = None,
    batch_size: int = 32,
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    problems: Problems | None = None,
    progress: Progress = quietly,
    **generation: Any,
) -> NeuronComparison:
    """The comparison of several methods on one model.

    - seen: what was observed of its neurons, with what the methods need.
    - samples_by_domain: questions that no neuron was chosen by; of `seen`'s domains.
    - methods: names of the registry; "random" stands for the draws, which are there in any case.
    - fractions, draws, seed: see `neurons.compared`. others, accuracy: see `experiments.compare.asked_under`.
    - amplify, strengths: fractions at which neurons are turned up too, and how far.
    - cited: the sha256 of each domain's file of counts, where these are saved.

    Raises as `compared_methods`, `chosen_sets` and `compare` do.
    """
    named = compared_methods(methods)
    chosen = {name: dict((parameters or {}).get(name, {})) for name in named}
    if strange := {*(parameters or {})} - {*named}:
        raise InvalidValue(f"parameters are of {sorted(strange)}, and {', '.join(named)} are compared; name the same.")
    for name, values in (("accuracy", accuracy), ("amplify", amplify), ("others", others or ())):
        if missing := [one for one in values if one not in fractions]:
            raise InvalidValue(f"{name} is asked for at {missing}, and fractions are {[*fractions]}; add it there.")
    own = chosen_sets(scores_of(seen, chosen), seen.domains, fractions)
    sets = with_strengths(with_draws(own, draws, seed), strengths, amplify) if amplify else with_draws(own, draws, seed)
    settings = generation_settings(generation)
    put: dict[str, Any] = {"frames": frames, "prompt_form": prompt_form}
    told: dict[str, Any] = {
        "methods": {name: {**selector_named(name).defaults, **given} for name, given in chosen.items()},
        **{"fractions": [*fractions], "draws": draws, "seed": seed, "others": None if others is None else [*others]},
        **{"accuracy": [*accuracy], "amplify": [*amplify], "strengths": [*strengths] if amplify else []},
        **({"generation": settings} if accuracy else {}),
        **({"counts": dict(cited)} if cited else {}),
    }
    facts = {
        **lens.model.facts(),
        **told,
        "neurons": neurons_digest(sets),
        "questions": {domain: content_digest(samples) for domain, samples in samples_by_domain.items()},
        "batch size": batch_size,
        **told_by_domain(lens, samples_by_domain, prompt="evaluation", **put),
    }
    return store.get_or_make(
        key_of("comparison", lens.name, facts=facts),
        lambda keeper: compare(
            lens, sets, samples_by_domain, methods=named, domains=seen.domains, others=others, accuracy=accuracy,
            batch_size=batch_size, overlaps=[*overlaps(own), *_halves(seen, chosen, fractions, own, seed)],
            parameters=told, keeper=keeper, problems=problems, progress=progress, **put, **settings,
        ),
        NeuronComparison,
        what=f"{lens.name}: comparing the neurons of {', '.join(named)} with random ones",
    )  # fmt: skip


def planted_stage(
    lens: Lens,
    samples: Sequence[Sample],
    store: Store,
    *,
    problems: Problems | None = None,
    progress: Progress = quietly,
    **settings: Any,
) -> NeuronComparison:
    """The comparison of neurons whose weights are written in a copy of the model, kept as planted/MODEL.

    - samples, settings: of `experiments.planted.planted_comparison`.
    """
    facts = {**lens.model.facts(), "questions": content_digest(samples), **settings}
    return store.get_or_make(
        key_of("planted", lens.name, facts=facts),
        lambda keeper: planted_comparison(
            lens, samples, keeper=keeper, problems=problems, progress=progress, **settings
        ),
        NeuronComparison,
        what=f"{lens.name}: comparing planted neurons with random ones",
    )


def compared_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods beside the random draws. Raises `InvalidValue` for none or one twice, `UnknownName` for another."""
    named = tuple(one for one in methods if one != DRAWN)
    if not named or len(set(named)) < len(named):
        raise InvalidValue(f"methods are {[*methods]}; give one or more beside random, each once.")
    for name in named:
        selector_named(name)
    return named


def comparable(store: Store, model: str, methods: Sequence[str]) -> list[str]:
    """The methods for which everything is there that they need beside counts; of the others is said what is missing."""
    found: list[str] = []
    for name in methods:
        needs = [kind for kind in (() if name == DRAWN else selector_named(name).needs) if kind in BESIDE]
        folders = [] if store.folder is None else [file_of(store.folder, kind, model).with_suffix("") for kind in needs]
        missing = needs if store.folder is None else [folder.parent.name for folder in folders if not folder.is_dir()]
        if missing:
            store.say(f"{model}: {name} is not compared, which needs {' and '.join(missing)}")
        else:
            found.append(name)
    return found


def scores_of(seen: Observed, methods: Parameters) -> dict[str, Scores]:
    """By method, with these parameters, its scores of what was observed."""
    return {name: selector_named(name).scores(seen, **given) for name, given in methods.items()}


def neurons_digest(sets: Sequence[NeuronSet]) -> str:
    """The sha256 of what is done to which neurons, under which conditions."""
    told = [f"{one.method} {one.domain} {one.fraction} {one.draw} {one.draws} {digest_of(one)}" for one in sets]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def observed_of(
    lens: Lens,
    counts: Sequence[Counts],
    methods: Sequence[str],
    store: Store,
    identification: Mapping[str, Sequence[Sample]] | None = None,
    **settings: Any,
) -> Observed:
    """The counts, domains in the order of every table, with what else the methods need: read, or made in the store.

    - identification: the questions that identify neurons; what is not there is made on these.
    - settings: batch_size, problems, progress, corpus.

    Raises `RunError` naming what is not there and cannot be made.
    """
    counts = sorted(counts, key=lambda one: DOMAINS.index(one.domain) if one.domain in DOMAINS else len(DOMAINS))
    needs = {need for method in compared_methods(methods) for need in selector_named(method).needs}
    found: dict[str, list[Any]] = {}
    for kind, artifact in BESIDE.items():
        if kind not in needs:
            continue
        domains = [one.domain for one in counts]
        files = {} if store.folder is None else {one: file_of(store.folder, kind, lens.name, one) for one in domains}
        if files and all(file.is_file() for file in files.values()):
            found[kind] = [artifact.load(file) for file in files.values()]
        elif identification is not None and all(domain in identification for domain in domains):
            asked = {domain: identification[domain] for domain in domains}
            found[kind] = [*STAGES[kind](lens, asked, store, **settings).values()]
        else:
            who = " and ".join(one for one in methods if one != DRAWN and kind in selector_named(one).needs)
            raise RunError(
                f"{who} needs {kind} of {lens.name}, which are not there; say with --skip-images how many images of "
                "each domain identified the neurons, and they are made on these, or leave it out."
            )
    return observed(counts, **found)


def compare_run(
    store: Store,
    run: str | Path,
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    methods: Sequence[str] = ("dape",),
    identification: Mapping[str, Sequence[Sample]] | None = None,
    corpus: str = "",
    batch_size: int = 32,
    problems: Problems | None = None,
    progress: Progress = quietly,
    **settings: Any,
) -> NeuronComparison:
    """The comparison on the counts of a run; settings are those of `compare_stage`.

    - store: the run's folder. corpus: the name of what the questions are of.

    Raises `RunError` where the run has no counts of the model, or of none of the questions' domains.
    """
    counts = counts_in(run, lens.name)
    domains = [one.domain for one in counts]
    asked = {domain: some for domain, some in samples_by_domain.items() if domain in domains}
    if not asked:
        there = ", ".join(samples_by_domain)
        raise RunError(f"questions are of {there}, and {run} counted {', '.join(domains)}; ask of those.")
    if left := [domain for domain in samples_by_domain if domain not in asked]:
        store.say(f"{', '.join(left)}: not among the domains that were counted ({', '.join(domains)}), so not asked")
    shared: dict[str, Any] = {"batch_size": batch_size, "problems": problems, "progress": progress}
    seen = observed_of(lens, counts, methods, store, identification, corpus=corpus, **shared)
    cited = {domain: content_hash(file_of(run, "counts", lens.name, domain)) for domain in domains}
    return compare_stage(lens, seen, asked, store, methods=methods, cited=cited, **shared, **settings)


def counts_in(run: str | Path, model: str) -> list[Counts]:
    """A run's counts of a model. Raises `RunError` naming the models that it has where it has not this one."""
    found = [list(files.values()) for files in counted(run)]
    for counts in found:
        if counts[0].model == model:
            return counts
    there = ", ".join(counts[0].model for counts in found)
    raise RunError(
        f"{run} has no counts of {model}, only of {there}; write them with `mmneuron count --model ... --out {run}`."
    )


def _halves(
    seen: Observed, chosen: Parameters, fractions: Sequence[float], own: Sequence[NeuronSet], seed: int
) -> list[dict[str, Any]]:
    """How far two halves of the data give each method the same neurons; none where a domain has too few images."""
    looking = {name: given for name, given in chosen.items() if selector_named(name).needs}
    if not looking:
        return []
    try:
        halves = halved(seen, seed)
        each = [chosen_sets(scores_of(half, looking), seen.domains, fractions) for half in halves]
    except InvalidValue:
        # A domain with images in one bucket, or a half without tokens of some kind.
        return []
    return half_overlaps(each[0], each[1])
