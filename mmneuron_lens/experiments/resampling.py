"""Resampling: values of neurons at positions of other samples, and which of them each position of a batch is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions import batch_field, reads
from interventions.errors import InvalidValue
from interventions.sites import GROUP_KINDS
from mmneuron_lens.artifacts.short_repr import short_repr
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.arguments import batches_of
from mmneuron_lens.runtime.batch import Batch

_KINDS = GROUP_KINDS["llm"]


@reads("llm.mlp.post", over="list", drawn=batch_field("drawn"))
def values_at(post: Float[Tensor, "*where neuron"], drawn: Bool[Tensor, "*where"]) -> Float[Tensor, "position neuron"]:
    """The values at the positions that are marked, as one list.

    - post: `[*where, neuron]`
    - drawn: bool `[*where]`
    """
    return post[drawn]


@dataclass(frozen=True, eq=False)
class Bank:
    """Values of all neurons of the language model at positions of other samples.

    - values: `[layer, draw, neuron]`, for `resample_ablate_neurons.bind(bank=per_layer(bank.values), ...)`
    - kinds: int64 `[draw]`, the kind of each position in the order of `GROUP_KINDS["llm"]`
    """

    values: Tensor
    kinds: Tensor

    def draw(self, batch: Batch, seed: int = 0) -> Batch:
        """The batch with a field `draw`: for every position a row of the bank, of the position's own kind.

        - batch: of `lens.encode`, of any length
        - seed: the same batch, bank and seed give the same draws; give every batch a seed of its own

        Raises `InvalidValue` where the batch has a kind of position that the bank has none of.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        weight, kind = (batch.fields["llm"][name].cpu() for name in ("weight", "kind"))
        field = torch.zeros(weight.shape, dtype=torch.int64, device="cpu")
        for number, name in enumerate(_KINDS):
            here = kind[..., number] & (weight > 0)
            rows = (self.kinds == number).nonzero().squeeze(1)
            if not bool(here.any()):
                continue
            if not len(rows):
                raise InvalidValue(
                    f"This batch has {name} positions and the bank has none; make it of batches that have them."
                )
            drawn = torch.randint(len(rows), (int(here.sum()),), generator=generator, device="cpu")
            field[here] = rows[drawn]
        return batch.with_fields(draw=field.to(batch.inputs["input_ids"].device))

    def __repr__(self) -> str:
        return short_repr(self)


def bank_of(lens: Lens, batches: Iterable[Batch] | Batch, *, size: int = 64, seed: int = 0) -> Bank:
    """The values of all neurons of the language model at positions drawn from batches of other samples.

    - batches: of `lens.encode`; make them of other samples than those you ablate
    - size: how many positions of each batch and kind, at most; memory is layers x draws x neurons
    - seed: of the draws; positions are drawn without replacement, padding never

    Raises what `lens.run` does.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    values: list[Tensor] = []
    kinds: list[Tensor] = []
    for batch in batches_of(batches):
        weight, kind = (batch.fields["llm"][name].cpu() for name in ("weight", "kind"))
        real = kind & (weight > 0)[..., None]
        drawn = torch.stack([_some(real[..., one], size, generator) for one in range(len(_KINDS))], -1)
        marked = batch.with_fields(drawn=drawn.any(-1).to(batch.inputs["input_ids"].device))
        values.append(lens.run(values_at, marked)["values_at", "llm.mlp.post"][0].cpu())
        kinds.append(drawn.int().argmax(-1)[drawn.any(-1)])
    return Bank(torch.cat(values, dim=1), torch.cat(kinds))


def _some(marked: Bool[Tensor, "row token"], size: int, generator: torch.Generator) -> Bool[Tensor, "row token"]:
    """At most so many of the marked positions."""
    places: Int[Tensor, " position"] = marked.flatten().nonzero().squeeze(1)
    kept = places[torch.randperm(len(places), generator=generator, device="cpu")[:size]]
    found = torch.zeros(marked.numel(), dtype=torch.bool, device="cpu")
    found[kept] = True
    return found.view_as(marked)
