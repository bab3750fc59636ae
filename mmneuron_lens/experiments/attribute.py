"""Attribute: how much each neuron adds to the log-probability of right answers, by gradients (attribution patching).

A question is asked with its first answer behind it. Plain: activation times the gradient there, to first order by how
much the answer's log-probability falls without the neuron (Nanda 2023). With `steps`: integrated gradients along the
way from the same question about a grey picture of the same size (arXiv 2506.09047), of the language model alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from interventions import Graph, answer_log_probability, batch_field, gradient, reads, value_of
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.counts import BUCKETS, LEFT_OUT, REASONS
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.selection import in_order
from mmneuron_lens.batching.batches import Step, ids_of, one_domain, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode, shown
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Held, Keeper, Memory, Piece, add, by_group, gather
from mmneuron_lens.batching.left_out import LeftOut, raise_none_left
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.content import content_digest
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite

GREY = (127, 127, 127)
"""Every pixel of a baseline."""

BEHIND_THE_LINE = {"llm.mlp.act": "llm.mlp.post"}
"""Where integrated gradients are taken of a site's neurons: their effect goes through what the down projection gets."""


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def gradient_sums(
    value: Float[Tensor, "*where neuron"],
    gradient: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    alpha: float,
) -> dict[str, Tensor]:
    """Value times gradient, and |gradient|^alpha * |value|, summed over positions that count.

    - value: `[*where, neuron]`
    - gradient: of the same shape, `gradient(target)`
    - weight: int64 `[*where]`, 0 for padding
    - alpha: exponent of the gradient

    Returns `attribution` and `strength`, float64 `[neuron]`, and `positions`, int64 `[]`.
    """
    return _sums(value.double(), gradient.double(), weight, alpha)


@reads("llm.mlp.post", over="sum", weight=batch_field("weight"), baseline=value_of(source=True))
def path_gradient_sums(
    value: Float[Tensor, "*where neuron"],
    gradient: Float[Tensor, "*where neuron"],
    baseline: Float[Tensor, "*where neuron"],
    weight: Int[Tensor, "*where"],
    alpha: float,
) -> dict[str, Tensor]:
    """As `gradient_sums` with the change from a baseline in place of the value, for `lens.run_between`."""
    return _sums(value.double() - baseline.double(), gradient.double(), weight, alpha)


def _sums(value: Tensor, slope: Tensor, weight: Tensor, alpha: float) -> dict[str, Tensor]:
    padding = (weight == 0)[..., None]
    product = (value * slope).masked_fill_(padding, 0)
    strength = (slope.abs() ** alpha * value.abs()).masked_fill_(padding, 0)
    sums = {"attribution": product.flatten(0, -2).sum(0), "strength": strength.flatten(0, -2).sum(0)}
    return {**sums, "positions": (weight > 0).sum()}


def attribution_graph(lens: Lens, alpha: float = 1.0, steps: int = 0) -> Graph:
    """What is read: the sums of every `.act` site of a model, or where there is a line, of its language model."""
    of_answer = gradient(answer_log_probability)
    if steps:
        return Graph((path_gradient_sums.bind(gradient=of_answer, alpha=alpha).at(list(BEHIND_THE_LINE.values())),))
    return Graph((gradient_sums.bind(gradient=of_answer, alpha=alpha).at(_neurons(lens)),))


@dataclass(frozen=True)
class AttributionPlan:
    """What is attributed, before anything is: the steps, how they are asked, and every fact the result depends on.

    - parameters: alpha and steps, and with steps the rule and the baseline.
    """

    domain: str
    steps: tuple[Step, ...]
    facts: Mapping[str, Any]
    parameters: Mapping[str, Any]
    prompt: Prompt
    frames: Frames
    prompt_form: PromptForm


def plan_attributions(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    alpha: float = 1.0,
    steps: int = 0,
    corpus: str = "",
    problems: Problems | None = None,
) -> AttributionPlan:
    """Samples of one domain as steps of work.

    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - alpha: of the strength; what was published is not known to us, and 1 weighs gradient and activation alike.
    - steps: 0 takes the gradient at the activations; more, as many points between a grey picture and the sample's.
    - corpus: its name, for the provenance.
    - problems: where samples are named that have no answer, or whose image or text cannot be used; without it the first
      raises `InvalidValue`.

    Raises `InvalidValue` for samples of several domains or none, or an alpha or steps below 0.
    """
    if not alpha >= 0:
        raise InvalidValue(f"alpha is {alpha}; an exponent of the gradient is 0 or more.")
    if steps < 0:
        raise InvalidValue(f"steps is {steps}; 0 takes plain gradients, 5 integrates them over 5 points.")
    domain = one_domain(samples, "attributions")
    usable = askable(lens, with_answers(samples, problems), prompt, problems)
    asked, put = asked_as(lens, usable, prompt, frames, prompt_form)
    found = sized(asked, problems)
    parameters: dict[str, Any] = {"alpha": float(alpha), "steps": steps}
    if steps:
        parameters |= {"rule": "right", "baseline": f"a picture of the same size in grey {GREY[0]}"}
    source = {"name": corpus, "questions": len(found), "sha256": content_digest(one.sample for one in found)}
    facts = {"prompt": prompt, "batch size": batch_size, "frames": frames, **put, "corpus": source, "domain": domain}
    facts |= {"target": "log-probability of the first answer", "parameters": parameters}
    made = provenance(**lens.model.facts(), **facts)
    return AttributionPlan(domain, tuple(steps_of(found, batch_size)), made, parameters, prompt, frames, prompt_form)


def with_answers(samples: Sequence[Sample], problems: Problems | None = None) -> list[Sample]:
    """The samples that have an answer; the others are named in `problems`, or without it the first raises."""
    left = LeftOut.of(problems)
    for sample in samples:
        if not (sample.answers and sample.answers[0].strip()):
            left.add_sample(sample, "it has no answer whose log-probability could be attributed; give it one.")
    kept = [sample for sample in samples if not left.holds(sample)]
    if samples and not kept:
        raise_none_left(samples, left.reason(samples[0]))
    return kept


def attribute_steps(
    lens: Lens,
    plan: AttributionPlan,
    *,
    keeper: Keeper | None = None,
    workers: int = 0,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> list[Held]:
    """The pieces of the plan, each made unless it is kept: a forward and a backward a step, here or where the lens is.

    - keeper: where pieces are kept, so that what was killed goes on; memory unless given.
    - problems: where samples are named that can be neither decoded, encoded nor run.
    """
    left = LeftOut(problems)
    graph = attribution_graph(lens, plan.parameters["alpha"], plan.parameters["steps"])

    def run(step: Step, opened: Opener) -> Piece:
        put: Any = (plan.frames, plan.prompt_form)
        batch, kept = encode(lens, step.samples, plan.prompt, left, opened, *put, answered=True)
        if batch is None:
            return Piece(step.group, {})
        if steps := plan.parameters["steps"]:
            line = {"steps": steps, "rule": plan.parameters["rule"]}
            out = lens.run_between(graph, batch, _grey(lens, batch, kept, opened, plan.frames), **line)
        else:
            out = lens.run(graph, batch)
        tokens = int(batch.fields["llm"]["weight"].sum())
        return Piece(step.group, _piece(lens, out, len(kept)), ids_of(kept), tokens=tokens)

    return gather(
        plan.steps, run, add, keeper=Memory() if keeper is None else keeper, workers=workers, left=left,
        title=f"attributing answers of {plan.domain}", progress=progress,
    )  # fmt: skip


def attributions_of(held: Sequence[Held], plan: AttributionPlan) -> Attributions:
    """All pieces as one artifact, however they were cut. Needs no model.

    Raises `InvalidValue` with the first reason when no sample could be read.
    """
    filled = [piece for piece in by_group(held, add).values() if piece.tensors]
    reasons = {name: reason for one in held for name, reason in one.piece.reasons.items()}
    if not filled:
        first = f" The first: {next(iter(reasons.values()))}" if reasons else ""
        raise InvalidValue(f"no sample of {plan.domain} could be read; see the problems of its rows.{first}")
    whole = {name: tensor.new_zeros(BUCKETS, *tensor.shape) for name, tensor in filled[0].tensors.items()}
    for piece in filled:
        for name, tensor in piece.tensors.items():
            whole[name][piece.group] = tensor
    sites = in_order(name.partition("/")[2] for name in whole if name.startswith("attribution/"))
    named: dict[str, Any] = {
        name: {site: whole[f"{name}/{site}"] for site in sites} for name in ("tokens", "attribution", "strength")
    }
    missing = sorted({name for one in held for name in one.piece.left}, key=json.dumps)
    why = {REASONS: {name: reasons[name] for name in missing if name in reasons}} if reasons else {}
    shared = {name: value for name, value in plan.facts.items() if name not in ("domain", "parameters")}
    return Attributions(
        model=plan.facts["model id"], domain=plan.domain, questions=whole["questions"], **named,
        parameters=dict(plan.parameters), samples=int(whole["questions"].sum()),
        provenance={**shared, LEFT_OUT: missing, **why},
    )  # fmt: skip


def _neurons(lens: Lens) -> list[str]:
    return [site for site in lens.sites if site.endswith(".act")]


def _piece(lens: Lens, out: Any, questions: int) -> dict[str, Tensor]:
    """What a run came to: `attribution/SITE` and `strength/SITE` float64 [layer, neuron], `tokens/SITE` and
    `questions` int64 []; by the site whose neurons are counted.
    """
    made = {"questions": torch.tensor(questions, device="cpu")}
    for (_, site), sums in out.items():
        own = next((act for act, post in BEHIND_THE_LINE.items() if post == site), site)
        layered = lens.architecture.place(site).layers is not None
        for name in ("attribution", "strength"):
            tensor = sums[name] if layered else sums[name][None]
            refuse_not_finite(site, tensor, lens.dtype, layered=True)
            made[f"{name}/{own}"] = tensor.cpu().contiguous()
        # Every layer of a site has the same positions.
        made[f"tokens/{own}"] = sums["positions"].reshape(-1)[0].cpu()
    return made


def _grey(lens: Lens, batch: Batch, samples: Sequence[Sample], opened: Opener, frames: Frames) -> Batch:
    """The same questions and answers about grey pictures of the same sizes."""
    pictures = []
    for sample in samples:
        seen, _ = shown(lens, sample, opened(sample, None) or [], frames)
        pictures.append([Image.new("RGB", picture.size, GREY) for picture in seen])
    return lens.encode(pictures, [str(text) for text in batch.given[1]], batch.answers)
