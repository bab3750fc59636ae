"""Planted: neurons whose weights are written so that it is known whether they matter, for the comparison to find.

In a copy of the model, sets of neurons of the last layer are given input weights that make them active at every answer.
Half of the sets write the direction of the answers' words, so that they raise every right answer, some twice as
much as others; the other half, as active as they, write nothing. The final norm is turned down, so that the answers are
unsure and there is something to raise.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.errors import InvalidValue
from interventions.targets import answer_log_probability
from mmneuron_lens.artifacts.comparison import NeuronComparison
from mmneuron_lens.batching.answer_tokens import answer_tokens
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Keeper
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.evaluation.planted import IDLE, IMPORTANT, PLANTED, PlantedCheck
from mmneuron_lens.experiments.compare import compare
from mmneuron_lens.experiments.token_directions import down_projection, final_norm, refuse_norm_behind, unembedding
from mmneuron_lens.lens import Lens
from mmneuron_lens.neurons.compared import NeuronSet, with_draws
from mmneuron_lens.runtime.batch import Batch

SITE = "llm.mlp.act"

UNSURE = -3.0
"""Mean log-probability of the answers, in nats, that the final norm is turned down to before anything is planted."""

RAISED = 0.8
"""By how many nats all important neurons together raise the answers, at least."""

RIDGE = 0.03
"""Of the fit of input weights, a share of the squared length of what the MLP is given."""

GROUPS = 2
"""Parts of the sets that have random draws of their own."""

STEPS = 40
"""Tries of a scale, at most."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A copy of a model with planted neurons, and the sets that they are."""

    lens: Lens
    sets: tuple[NeuronSet, ...]


def plant(lens: Lens, samples: Sequence[Sample], *, sets: int = 20, size: int = 2, seed: int = 0) -> Planted:
    """A copy of a model in which `sets` sets of `size` neurons matter, and as many are as active and idle.

    - samples: questions with answers, to which they matter.
    - seed: of which neurons of the last layer are written.

    Raises `InvalidValue` where the layer has too few neurons, or for a model whose final norm is no RMS norm, whose MLP
    is not gated, or whose weights are elsewhere.
    """
    refuse_norm_behind(lens)
    layer = (lens.architecture.place("llm.mlp.post").layers or 0) - 1
    neurons = down_projection(lens, layer).shape[1]
    if 4 * sets * size > neurons:
        raise InvalidValue(
            f"{2 * sets} sets of {size} are more than half of the layer's {neurons} neurons; plant fewer, or smaller."
        )
    batch, _ = encode(lens, samples, "evaluation", answered=True)
    assert batch is not None
    module = copy.deepcopy(lens.module)
    made = Lens.wrap(module, lens.processor, lens.name)
    _turn_down(made, batch)
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(seed), device="cpu")
    important, idle = (order[start : start + sets * size].view(sets, size) for start in (0, sets * size))
    strengths = torch.linspace(0.8, 1.2, sets, device="cpu")
    _make_active(made, layer, batch, torch.cat([important, idle]), torch.cat([strengths, strengths]))
    _write(made, layer, important, idle, _answers_direction(made, samples), batch)
    shape = (lens.architecture.place(SITE).layers or 0, neurons)
    found = [
        NeuronSet(f"{kind} {number + 1}", PLANTED, size / (shape[0] * neurons), {SITE: _mask(shape, layer, some)})
        for kind, each in ((IMPORTANT, important), (IDLE, idle))
        for number, some in enumerate(each)
    ]
    # Again, so that it goes by the weights that were written.
    return Planted(Lens.wrap(module, lens.processor, lens.name), tuple(found))


def planted_comparison(
    lens: Lens,
    samples: Sequence[Sample],
    *,
    sets: int = 20,
    size: int = 2,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    keeper: Keeper | None = None,
    problems: Problems | None = None,
    progress: Progress = quietly,
) -> NeuronComparison:
    """The comparison of every planted set, as a method of its own, with as many random neurons of the copy's.

    - samples: questions with answers, of any domains. It is known that the neurons matter to these, by which the
      comparison is judged; nothing is said of others.
    - sets, size: see `plant`. draws, seed: of random neurons.

    Raises as `plant` and `compare` do.
    """
    planted = plant(lens, samples, sets=sets, size=size, seed=seed)
    asked = [replace(one, domain=PLANTED, id=f"{one.domain} {one.id}") for one in samples]
    # Of several kinds together, each beside draws of its own, so that one unlucky draw does not decide about all.
    each = [with_draws(planted.sets[start::GROUPS], draws, seed) for start in range(GROUPS)]
    return compare(
        planted.lens, _together(each), {PLANTED: asked},
        methods=[one.method for one in planted.sets], domains=(PLANTED,), batch_size=batch_size,
        parameters={"sets": sets, "size": size, "random draws": draws, "seed": seed},
        keeper=keeper, problems=problems, progress=progress,
    )  # fmt: skip


def _together(groups: Sequence[Sequence[NeuronSet]]) -> list[NeuronSet]:
    """The sets of several groups as one list, with the places of their draws in it."""
    made: list[NeuronSet] = []
    for group in groups:
        start = len(made)
        made += [replace(one, draws=tuple(start + place for place in one.draws)) for one in group]
    return made


def planted_check(lens: Lens, samples: Sequence[Sample], **settings: Any) -> PlantedCheck:
    """Whether the comparison finds neurons that are known to matter, and no others: `.recall`, `.false_alarms`.

    - samples: questions with answers, of any domains.
    - settings: of `planted_comparison`, such as `sets`, `draws` and `seed`.
    """
    return PlantedCheck(planted_comparison(lens, samples, **settings))


def _turn_down(made: Lens, batch: Batch) -> None:
    """The final norm turned down until the answers are as unsure as `UNSURE`."""
    norm = made.module.get_submodule(made.architecture.place("llm.norm").path)
    whole = final_norm(made).weight.to(norm.weight)
    shift, scale = whole - norm.weight.detach(), 1.0
    for _ in range(STEPS):
        if _mean(made, batch) <= UNSURE:
            return
        scale *= 0.8
        with torch.no_grad():
            norm.weight.copy_(whole * scale - shift)
    raise InvalidValue(f"{made.name}: its answers stay sure with the final norm turned down; plant in another.")


def _make_active(
    made: Lens, layer: int, batch: Batch, written: Int[Tensor, "set neuron"], strengths: Float[Tensor, " set"]
) -> None:
    """Gives the neurons of each set input weights with which they are active about as much at every answer.

    They are the smallest ones that give 1 for all that the MLP is given where an answer of these questions comes next.
    Some sets are more active than others.
    """
    path = dict(made.architecture.place("llm.mlp.post").paths())[layer].rpartition(".")[0]
    count = down_projection(made, layer).shape[1]
    before = [
        one
        for one in made.module.get_submodule(path).children()
        if isinstance(one, torch.nn.Linear) and one.out_features == count
    ]
    if not before:
        raise InvalidValue(f"{made.name}: {path} has no plain matrix before its neurons; plant in another model.")
    seen: list[Tensor] = []
    hook = before[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        _mean(made, batch)
    finally:
        hook.remove()
    given = seen[0].float()[(batch.fields["llm"]["answer"] >= 0).to(seen[0].device)]
    # A little short of 1 where that takes much smaller weights, which say more of other questions.
    inner = given @ given.T
    ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(inner), device=inner.device)
    along = given.T @ torch.linalg.solve(inner + ridge, torch.ones_like(inner[0]))
    with torch.no_grad():
        for neurons, strength in zip(written, strengths.tolist(), strict=True):
            for linear in before:
                linear.weight[neurons] = (2 * strength * along).to(linear.weight)
                if linear.bias is not None:
                    linear.bias[neurons] = 0


def _write(
    made: Lens,
    layer: int,
    important: Int[Tensor, "set neuron"],
    idle: Int[Tensor, "set neuron"],
    direction: Float[Tensor, " hidden"],
    batch: Batch,
) -> None:
    """Writes what neurons write: nothing, or the direction, so far that these raise the answers by `RAISED`."""
    down = down_projection(made, layer)
    down[:, torch.cat([important, idle]).flatten()] = 0
    before, length = _mean(made, batch), 0.01 * float(down.norm(dim=0).mean()) / float(direction.norm())
    for _ in range(STEPS):
        down[:, important.flatten()] = (length * direction).to(down)[:, None]
        if _mean(made, batch) - before >= RAISED:
            return
        length *= 1.5
    raise InvalidValue(f"{made.name}: its answers cannot be raised by {RAISED} nats; plant in another model.")


def _answers_direction(made: Lens, samples: Sequence[Sample]) -> Float[Tensor, " hidden"]:
    """What raises the words that answers begin with over all others."""
    words = sorted({answer_tokens(made, prompt_of(made, one, "evaluation"), one.answers[0])[0] for one in samples})
    rows = unembedding(made).float().cpu()
    return (rows[words].mean(0) - rows.mean(0)) * final_norm(made).weight


def _mean(made: Lens, batch: Batch) -> float:
    return float(made.run(answer_log_probability, batch)["answer_log_probability"][0].mean())


def _mask(shape: tuple[int, int], layer: int, neurons: Tensor) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool, device="cpu")
    mask[layer, neurons] = True
    return mask
