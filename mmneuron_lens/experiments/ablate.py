"""Ablate: do a domain's neurons matter more to its questions than as many random ones (section 4.2.2)?

Questions are answered by generation under conditions: nothing off ("none"), the domain's selected neurons off
("domain"), and draws of as many random neurons off ("random 1", "random 2", ...). Answers are kept as JSON lines, and
every score is computed from them (`scoring`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from interventions import Graph, per_layer, zero_neurons
from mmneuron_lens.batch import Batch
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.answers import ALL, DOMAIN, NONE, RANDOM, Answer
from mmneuron_lens.experiments.asking import Progress, Prompt, batches, encode, quietly, sized
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.selection import Selection, random_like, sites_of

TOGETHER = 4
"""Batches that are encoded once and held while every condition answers them."""


@dataclass(frozen=True)
class Condition:
    """Which neurons are off: a graph, and the names it goes by in tables."""

    module: str
    condition: str
    neurons_of: str
    graph: Graph


def neurons_off(lens: Lens, masks: Mapping[str, Tensor]) -> Graph:
    """A graph that holds these neurons at zero at every position and step. masks: bool [layer, neuron] by site."""
    bound = {site: mask if lens.anatomy.place(site).layers is not None else mask[0] for site, mask in masks.items()}
    return Graph((zero_neurons.at(list(bound)).bind(neurons=per_layer(bound)),))


def conditions_of(
    lens: Lens,
    selection: Selection,
    domain: str,
    *,
    modules: Sequence[str] = (ALL,),
    random_draws: int = 3,
    seed: int = 0,
    match: Literal["module", "layer"] = "module",
) -> list[Condition]:
    """The conditions under which a domain's questions are answered, "none" first.

    modules: "All", or modules of the paper, each giving its own conditions. Draw k is `random_like` with the seed
    `1000 * seed + k`, matched in every site by `match`, never a neuron selected for any domain. Raises `KeyError`
    naming the choices for an unknown domain or module, `ValueError` where too few neurons are free.
    """
    made = [Condition("None", NONE, "", Graph())]
    for module in modules:
        chosen = None if module == ALL else module
        own = selection.neurons(domain, chosen)
        made.append(Condition(module, DOMAIN, domain, neurons_off(lens, own)))
        index = selection.domains.index(domain)
        for draw in range(1, random_draws + 1):
            masks = {
                site: random_like(selection.masks[site], 1000 * seed + draw, match)[..., index]
                for site in sites_of(selection.masks, chosen)
            }
            made.append(Condition(module, f"{RANDOM} {draw}", domain, neurons_off(lens, masks)))
    return made


def ablate(
    lens: Lens,
    selection: Selection,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    modules: Sequence[str] = (ALL,),
    random_draws: int = 3,
    seed: int = 0,
    match: Literal["module", "layer"] = "module",
    cross: bool = False,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    selection_id: str = "",
    problems: Problems | None = None,
    progress: Progress = quietly,
    **generation: Any,
) -> list[Answer]:
    """Every answer to every question under every condition, in the order of domains, conditions and ids.

    cross: answer the questions of each domain also with the neurons of each other domain off. selection_id: the
    `content_hash` of the saved selection, kept with every answer. generation: settings of
    `generate`, over greedy decoding of at most 16 new tokens. An image that cannot be read is named in `problems`.
    """
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, **generation}
    answers: list[Answer] = []
    for domain, samples in samples_by_domain.items():
        conditions = conditions_of(
            lens, selection, domain, modules=modules, random_draws=random_draws, seed=seed, match=match
        )
        if cross:
            conditions += [
                Condition(module, DOMAIN, other, neurons_off(lens, selection.neurons(other, _chosen(module))))
                for module in modules
                for other in selection.domains
                if other != domain
            ]
        facts = {"model": selection.model, "selection": selection_id, "domain": domain}
        answers += _answered(lens, facts, conditions, samples, batch_size, prompt, problems, progress, settings)
    return answers


def _answered(
    lens: Lens,
    facts: dict[str, str],
    conditions: list[Condition],
    samples: Sequence[Sample],
    batch_size: int,
    prompt: Prompt,
    problems: Problems | None,
    progress: Progress,
    settings: dict[str, Any],
) -> list[Answer]:
    made = batches(sized(samples, problems), batch_size, buckets=False)
    said: dict[tuple[int, str], str] = {}
    asked: dict[str, Sample] = {}
    groups = [made[start : start + TOGETHER] for start in range(0, len(made), TOGETHER)]
    for group in progress(groups, f"answering {facts['domain']} under {len(conditions)} conditions"):
        held: list[Batch] = []
        rows: list[Sample] = []
        for _, some in group:
            batch, kept = encode(lens, some, prompt, problems)
            held += [] if batch is None else [batch]
            rows += kept
        asked |= {sample.id: sample for sample in rows}
        for number, condition in enumerate(conditions if held else ()):
            out = lens.run(condition.graph, held, **settings)
            said |= {(number, sample.id): text for sample, text in zip(rows, out.text, strict=True)}
    return [
        Answer(
            **facts,
            module=condition.module,
            condition=condition.condition,
            neurons_of=condition.neurons_of,
            id=sample.id,
            question=sample.question,
            answers=sample.answers,
            answer=said[number, sample.id],
        )
        for number, condition in enumerate(conditions)
        for sample in samples
        if sample.id in asked
    ]


def _chosen(module: str) -> str | None:
    return None if module == ALL else module
