"""Ablate: do a domain's neurons matter more to its questions than as many random ones (section 4.2.2)?

Questions are answered by generation under conditions: nothing off ("none"), the domain's selected neurons off
("domain"), and draws of as many random neurons off ("random 1", "random 2", ...). Answers are kept as JSON lines, and
every score is computed from them (`scoring`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from interventions import Graph, mean_ablate_neurons, mean_activation, per_layer, scale_neurons, zero_neurons
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.answers import ALL, DOMAIN, NONE, RANDOM, Answer, AnswerLog
from mmneuron_lens.batching.batches import Progress, Prompt, batches, encode, quietly, sized
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.selection import Selection, in_order, module_of, random_like, sites_of
from mmneuron_lens.runtime.batch import Batch

PAPER_GENERATION: dict[str, Any] = {
    "num_beams": 5,
    "length_penalty": -1.0,
    "max_new_tokens": 512,
    "do_sample": False,
}
"""Section 4.1.3. Its temperature of 0.9 acts only when sampling, which beam search does not."""

TOGETHER = 4
"""Batches that are encoded once and held while every condition answers them."""


@dataclass(frozen=True)
class Condition:
    """Which neurons are off: a graph, and the names it goes by in tables."""

    module: str
    condition: str
    neurons_of: str
    graph: Graph


@dataclass(frozen=True, eq=False)
class Off:
    """How neurons are switched off: held at zero (the paper), held at their mean, or multiplied by a factor.

    means: for "mean", by site what `mean_activations` returns. Raises `ValueError` for another way, or without means.
    """

    how: Literal["zero", "mean", "scale"] = "zero"
    factor: float = 0.0
    means: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.how not in ("zero", "mean", "scale"):
            raise InvalidValue(f"no way {self.how!r} to switch neurons; choose from zero, mean, scale.")
        if self.how == "mean" and self.means is None:
            raise InvalidValue("mean ablation needs the means; give means=mean_activations(lens, samples_by_domain).")

    @property
    def described(self) -> str:
        """For parameters: "zero", "scale 2.0", or "mean" with the first of the sha256 of the means."""
        if self.how == "scale":
            return f"scale {float(self.factor)}"
        if self.means is None or self.how == "zero":
            return self.how
        digest = hashlib.sha256()
        for site in sorted(self.means):
            digest.update(site.encode() + self.means[site].double().cpu().contiguous().numpy().tobytes())
        return f"mean {digest.hexdigest()[:12]}"


def modules_of(selection: Selection) -> tuple[str, ...]:
    """The modules of the paper that a selection has, in the order of its tables."""
    return tuple(dict.fromkeys(map(module_of, in_order(selection.masks))))


def neurons_off(lens: Lens, masks: Mapping[str, Tensor], off: Off | None = None) -> Graph:
    """A graph that switches these neurons at every position and step. masks: bool [layer, neuron] by site."""
    off = off or Off()
    bound = {
        site: mask if lens.architecture.place(site).layers is not None else mask[0] for site, mask in masks.items()
    }
    if off.how == "scale":
        return Graph((scale_neurons.at(list(bound)).bind(neurons=per_layer(bound), factor=float(off.factor)),))
    if off.how == "mean":
        means = per_layer({site: (off.means or {})[site] for site in bound})
        return Graph((mean_ablate_neurons.at(list(bound)).bind(neurons=per_layer(bound), mean=means),))
    return Graph((zero_neurons.at(list(bound)).bind(neurons=per_layer(bound)),))


def mean_activations(
    lens: Lens,
    samples_by_domain: Mapping[str, Sequence[Sample]],
    *,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> dict[str, Tensor]:
    """The mean activation of every neuron over all positions of these questions: float64 [layer, neuron] by site.

    A site without layers has [neuron]. Domains weigh as many tokens as they have.
    """
    made = batches(sized([one for some in samples_by_domain.values() for one in some], problems), batch_size, False)
    encoded = (encode(lens, some, prompt, problems)[0] for _, some in progress(made, "averaging activations"))
    out = lens.run(mean_activation.at("*.act"), (batch for batch in encoded if batch is not None))
    return {site: value for (_, site), value in out.items()}


def conditions_of(
    lens: Lens,
    selection: Selection,
    domain: str,
    *,
    modules: Sequence[str] = (ALL,),
    random_draws: int = 3,
    seed: int = 0,
    match: Literal["module", "layer"] = "module",
    off: Off | None = None,
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
        made.append(Condition(module, DOMAIN, domain, neurons_off(lens, own, off)))
        index = selection.domains.index(domain)
        for draw in range(1, random_draws + 1):
            masks = {
                site: random_like(selection.masks[site], 1000 * seed + draw, match)[..., index]
                for site in sites_of(selection.masks, chosen)
            }
            made.append(Condition(module, f"{RANDOM} {draw}", domain, neurons_off(lens, masks, off)))
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
    off: Off | None = None,
    cross: bool = False,
    controls: Sequence[str] | None = None,
    log: AnswerLog | None = None,
    batch_size: int = 32,
    prompt: Prompt = "evaluation",
    selection_id: str = "",
    problems: Problems | None = None,
    progress: Progress = quietly,
    **generation: Any,
) -> list[Answer]:
    """Every answer to every question under every condition, in the order of domains, conditions and ids.

    cross: answer the questions of each domain also with the neurons of each other domain off. controls: those of
    `modules` that random draws and other domains are tried in, all of them unless given. off: how they are
    switched, zero unless given. log: answers that are there already are not generated again. selection_id: the
    `content_hash` of the saved selection, kept with every answer. generation: settings of `generate`, over greedy
    decoding of at most 16 new tokens. An image that cannot be read is named in `problems`.
    """
    settings = generation_settings(**generation)
    log = AnswerLog() if log is None else log
    answers: list[Answer] = []
    controlled = [module for module in modules if controls is None or module in controls]
    for domain, samples in samples_by_domain.items():
        conditions = [
            one
            for one in conditions_of(
                lens, selection, domain, modules=modules, random_draws=random_draws, seed=seed, match=match, off=off
            )
            if one.condition in (NONE, DOMAIN) or one.module in controlled
        ]
        if cross:
            conditions += [
                Condition(module, DOMAIN, other, neurons_off(lens, selection.neurons(other, _chosen(module)), off))
                for module in controlled
                for other in selection.domains
                if other != domain
            ]
        facts = {"model": selection.model, "selection": selection_id, "domain": domain}
        answers += _answered(lens, facts, conditions, samples, batch_size, prompt, problems, progress, settings, log)
    return answers


def generation_settings(**given: Any) -> dict[str, Any]:
    """What `ablate` generates with: greedy decoding of at most 16 new tokens, and what is given over it."""
    return {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, **given}


def questions_digest(samples_by_domain: Mapping[str, Sequence[Sample]]) -> str:
    """The sha256 of everything that is asked: ids, questions, options, accepted answers, and the images' bytes."""
    known: dict[Any, str] = {}
    digest = hashlib.sha256()
    for domain, samples in sorted(samples_by_domain.items()):
        for one in sorted(samples, key=lambda sample: sample.id):
            for image in one.images:
                if image not in known:
                    known[image] = hashlib.sha256(image.read_bytes()).hexdigest() if image.is_file() else ""
            images = [known[image] for image in one.images]
            digest.update(repr((domain, one.id, one.question, one.options, one.answers, images)).encode())
    return digest.hexdigest()


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
    log: AnswerLog,
) -> list[Answer]:
    made = batches(sized(samples, problems), batch_size, buckets=False)
    groups = [made[start : start + TOGETHER] for start in range(0, len(made), TOGETHER)]

    def key(condition: Condition, sample: Sample) -> tuple[str, str, str, str, str]:
        return condition.module, condition.condition, condition.neurons_of, facts["domain"], sample.id

    for group in progress(groups, f"answering {facts['domain']} under {len(conditions)} conditions"):
        asked = [sample for _, some in group for sample in some]
        open_ = [one for one in conditions if any(key(one, sample) not in log.answers for sample in asked)]
        held, rows = _encoded(lens, group, prompt, problems) if open_ else ([], [])
        for condition in open_ if held else ():
            out = lens.generate(condition.graph, held, **settings)
            log.add(
                Answer(
                    **facts,
                    module=condition.module,
                    condition=condition.condition,
                    neurons_of=condition.neurons_of,
                    id=sample.id,
                    question=sample.question,
                    answers=sample.answers,
                    answer=text,
                )
                for sample, text in zip(rows, out.text, strict=True)
            )
    return [
        log.answers[key(condition, sample)]
        for condition in conditions
        for sample in samples
        if key(condition, sample) in log.answers
    ]


def _encoded(
    lens: Lens, group: Sequence[tuple[int, list[Sample]]], prompt: Prompt, problems: Problems | None
) -> tuple[list[Batch], list[Sample]]:
    held: list[Batch] = []
    rows: list[Sample] = []
    for _, some in group:
        batch, kept = encode(lens, some, prompt, problems)
        held += [] if batch is None else [batch]
        rows += kept
    return held, rows


def _chosen(module: str) -> str | None:
    return None if module == ALL else module
