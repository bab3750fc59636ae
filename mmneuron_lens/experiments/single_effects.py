"""Single effects: what each of some neurons does to the right answers of a domain, alone, beside random neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions import SITES, Graph, answer_log_probability
from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.artifacts.selection import in_order, neurons_off
from mmneuron_lens.batching.answer_tokens import unanswerable
from mmneuron_lens.batching.batches import Step, ids_of, one_domain, sized, steps_of
from mmneuron_lens.batching.chat import PromptForm
from mmneuron_lens.batching.control_tokens import askable
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import asked_as
from mmneuron_lens.batching.gather import Keeper, Memory, Piece, by_group, concatenate, gather
from mmneuron_lens.batching.left_out import LeftOut
from mmneuron_lens.batching.prefetch import Opener
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.frames import Frames
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.finite import refuse_not_finite

Neuron = tuple[str, int, int]
"""Site, layer (0 at a site without layers) and index."""

BEFORE_LANGUAGE = ("vision.", "projector.", "qformer.")
"""How sites begin whose changes make a copy of the vision tower's pass necessary."""


def measure_effects(
    lens: Lens,
    samples: Sequence[Sample],
    neurons: Mapping[str, Bool[Tensor, "layer neuron"]],
    *,
    never: Mapping[str, Bool[Tensor, "layer neuron"]] | None = None,
    random_neurons: int = 20,
    seed: int = 0,
    batch_size: int = 16,
    prompt: Prompt = "evaluation",
    frames: Frames = "fit",
    prompt_form: PromptForm = "auto",
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> NeuronEffects:
    """The change of the right answers' log-probability with each neuron held at zero alone, question by question.

    - samples: questions of one domain, each with an answer; the first one is read.
    - neurons: by site, those that are measured; one row at a site without layers.
    - never: which are not drawn at random besides, such as all that a selection has.
    - random_neurons: so many of each site, drawn with the seed without replacement, or as many as there are.
    - prompt, frames, prompt_form: how questions are asked; see `batching.encoding.encode`.
    - keeper: where the batches that are done are kept; memory unless given.
    - problems: where questions are named that have no answer, or cannot be read; without it the first raises.

    Raises `InvalidValue` for no neuron, or samples of several domains or none that can be read.
    """
    domain, left = one_domain(samples, "effects"), LeftOut.of(problems)
    chosen, drawn = _members(neurons, never or {}, random_neurons, seed)
    if not chosen:
        raise InvalidValue("no neuron to switch off; give a mask with some.")
    for sample in samples:
        if why := unanswerable(sample):
            left.add_sample(sample, why)
    usable = askable(lens, [one for one in samples if not unanswerable(one)], prompt, problems)
    asked, put = asked_as(lens, usable, prompt, frames, prompt_form)
    graphs = [_off(one, neurons) for one in (*chosen, *drawn)]
    places = [one[0].startswith(BEFORE_LANGUAGE) for one in (*chosen, *drawn)]

    def run(step: Step, opened: Opener) -> Piece:
        batch, kept = encode(lens, step.samples, prompt, left, opened, frames, prompt_form, answered=True)
        if batch is None:
            return Piece(step.group, {})
        found = torch.zeros(1 + len(graphs), batch.rows, dtype=torch.float64, device="cpu")
        # Those before the language model apart: each of them needs a tower of its own, the others share one.
        for before in (False, True):
            mine = [place for place, one in enumerate(places) if one == before]
            some = [graphs[place] | answer_log_probability for place in mine]
            some = some if before else [Graph((answer_log_probability,)), *some]
            rows = [one + 1 for one in mine] if before else [0, *(one + 1 for one in mine)]
            for row, out in zip(rows, lens.run(some, batch) if some else [], strict=True):
                found[row] = out["answer_log_probability", "llm.logits"][0].double().cpu()
        refuse_not_finite("llm.logits", found, lens.dtype, layered=False)
        return Piece(step.group, {"found": found}, ids_of(kept))

    steps = steps_of(sized(asked, problems), batch_size, buckets=False)
    title = f"single neurons off, {domain}"
    held = gather(steps, run, concatenate, keeper=keeper or Memory(), left=left, title=title, progress=progress)
    total = by_group(held, concatenate)[0]
    order = sorted(range(len(total.seen)), key=total.seen.__getitem__)
    found: Float[Tensor, "graph question"] = total.tensors["found"][:, order]
    sites = tuple(in_order({site for site, _, _ in (*chosen, *drawn)}))
    return NeuronEffects(
        lens.name,
        domain,
        sites,
        tuple(total.seen[place] for place in order),
        torch.tensor([(sites.index(site), *where) for site, *where in (*chosen, *drawn)], device="cpu"),
        torch.tensor([False] * len(chosen) + [True] * len(drawn), device="cpu"),
        found[1:] - found[:1],
        found[0],
        {"prompt": prompt, "batch size": batch_size, "random neurons": random_neurons, "seed": seed, **put},
        provenance(**lens.model.facts()),
    )


def _members(
    neurons: Mapping[str, Tensor], never: Mapping[str, Tensor], random_neurons: int, seed: int
) -> tuple[list[Neuron], list[Neuron]]:
    """The neurons of the masks, and as many as asked of each of their sites drawn from the others."""
    chosen: list[Neuron] = []
    drawn: list[Neuron] = []
    generator = torch.Generator("cpu").manual_seed(seed)
    for site in in_order(neurons):
        mask = neurons[site]
        own: list[Any] = mask.nonzero().tolist()
        chosen += [(site, layer, neuron) for layer, neuron in own]
        taken = mask | never[site] if site in never else mask
        free = (~taken).nonzero()
        places = torch.randperm(len(free), generator=generator, device="cpu")[: random_neurons if own else 0]
        some: list[Any] = free[places].tolist()
        drawn += [(site, layer, neuron) for layer, neuron in some]
    return chosen, drawn


def _off(one: Neuron, neurons: Mapping[str, Tensor]) -> Graph:
    site, layer, neuron = one
    mask = torch.zeros_like(neurons[site])
    mask[layer, neuron] = True
    return neurons_off({site: mask}, () if SITES[site].per_layer else (site,))
