"""Fit the Jacobian lens: the mean Jacobian from every layer's residual stream to the last's, by autograd.

Read: the abstract, README and docstrings of anthropics/jacobian-lens (Gurnee, Sofroniew, Lindsey et al., "Verbalizable
Representations Form a Global Workspace in Language Models", 2026), and descriptions of it by those who wrote it anew:

- J_l = E[dh_final / dh_l]; h_final is the residual stream after the last layer, before the final norm.
- For each output dimension, one backward pass of a one-hot at every valid target position at once. The gradient at a
  position is the sum over this and later target positions; the mean over positions is the lens (`targets="later"`).
  Its own docstring says that each position to itself (`targets="same"`) works as a lens too.
- The first 16 positions of a prompt do not count, as sources and as targets: they draw attention and are unlike others.

Settled here: every position counts once, where the reference takes the mean of a prompt first, which differs for
prompts of different lengths; the last position of a prompt counts, since a question is answered there; a prompt is what
the processor makes of image and text, and `kinds` says which of its positions are sources; the embedding has a matrix
too; a subset of output dimensions a batch, and the standard error over prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.experiments.jacobian_sums import JacobianSums
from mmneuron_lens.experiments.residual_stream import positions_counted, refuse_below, residual_stream
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.arguments import batches_of
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite

Targets = Literal["later", "same"]


def fit_jacobian_lens(
    lens: Lens,
    batches: Iterable[Batch] | Batch,
    *,
    targets: Targets = "later",
    kinds: Sequence[str] | None = None,
    skip: int = 16,
    positions: int | None = None,
    samples: int | None = None,
    chunk: int = 1,
    seed: int = 0,
    progress: Progress = quietly,
) -> JacobianLens:
    """The mean Jacobian from the embedding and every layer to the last layer, over the positions of these batches.

    - batches: of `lens.encode`; rows are prompts. The reference suggests about 1000, and says that 100 come close.
    - targets: "later", the sum over this and all later positions, as published; "same", each position to itself, which
      takes a backward pass for every position besides
    - kinds: of the positions that the mean is over, "image" and "text"; all if None. Targets are of all kinds.
    - skip: how many real positions at the start of each prompt do not count
    - positions: at most so many of each prompt, drawn at random; all if None
    - samples: output dimensions, drawn at random, that a batch is used for; all if None, which is exact. Over the
      batches every dimension has the same number of turns, give or take one.
    - chunk: output dimensions in one backward pass, by `vmap`: faster for a few short prompts at a time, and with so
      many times the memory of gradients
    - seed: of what is drawn
    - progress: wraps the batches that are gone through, such as in a bar; nothing is shown unless given

    A batch takes a forward pass and `hidden` (or `samples`) backward passes without gradients of weights. Memory does
    not grow with batches: two sums of `(layers + 1) * hidden * hidden` float64 at most, in main memory.

    Returns the matrices with their standard errors over prompts. Raises `InvalidValue` for a prompt that `skip` leaves
    nothing of, packed rows, a number that cannot be, or fewer batches than it takes to come by every output dimension;
    `UnknownName` for a kind that no prompt of a batch has, `NotFinite` for gradients that are infinite or NaN.
    """
    if targets not in ("later", "same"):
        raise InvalidValue(f"targets is {targets!r}; choose from later, same.")
    refuse_below(0, skip=skip, seed=seed)
    refuse_below(1, positions=positions, samples=samples, chunk=chunk)
    size = lens.architecture.place("llm.residual").sizes["hidden"]
    generator = torch.Generator("cpu").manual_seed(seed)
    turns, sums = (
        _turns(size, samples, generator),
        JacobianSums(lens.architecture.place("llm.residual").layers or 1, size),
    )
    for batch in progress(cast("Sequence[Batch]", batches_of(batches)), "fitting the Jacobian lens"):
        stream = residual_stream(lens, batch, gradients=True)
        sources = _drawn(positions_counted(batch, kinds, skip), positions, generator)
        seen = positions_counted(batch, None, skip)
        passes = [(seen, sources)] if targets == "later" else [(one, one) for one in _one_by_one(sources)]
        for outputs in next(turns).split(chunk):
            sums.add(outputs, _by_row(stream, outputs, passes), sources.sum(1))
        sums.prompts += int(sources.any(1).sum())
        sums.positions += int(sources.sum())
    whole, error = sums.mean(samples)
    refuse_not_finite("llm.embedding", whole[0], lens.dtype, layered=False)
    refuse_not_finite("llm.residual", whole[1:], lens.dtype, layered=True)
    facts = lens.model.facts()
    asked = {"targets": targets, "kinds": None if kinds is None else list(kinds), "skip": skip, "seed": seed}
    return JacobianLens(
        model=lens.name,
        fingerprint=lens.model.fingerprint,
        jacobian=whole[1:].float(),
        embedding=whole[0].float(),
        error=error,
        prompts=sums.prompts,
        positions=sums.positions,
        parameters={**asked, "positions": positions, "samples": samples},
        provenance=provenance(**facts),
    )


def _by_row(
    stream: Sequence[Float[Tensor, "row token hidden"]],
    outputs: Int[Tensor, " output"],
    passes: Sequence[tuple[Bool[Tensor, "row token"], Bool[Tensor, "row token"]]],
) -> Float[Tensor, "layer output row hidden"]:
    """The gradients of these output dimensions, summed over the source positions of each row, float64."""
    last, total = stream[-1], None
    for targets, sources in passes:
        asked = torch.zeros(len(outputs), *last.shape, dtype=last.dtype, device=last.device)
        for number, output in enumerate(outputs.tolist()):
            asked[number, ..., output] = targets.to(last)
        batched = len(outputs) > 1
        found = torch.autograd.grad(
            last, list(stream), asked if batched else asked[0], retain_graph=True, is_grads_batched=batched
        )
        # What padding holds counts nowhere.
        kept = [
            one.masked_fill(~sources[..., None].to(one.device), 0).sum(-2, dtype=torch.float64).cpu() for one in found
        ]
        summed = torch.stack(kept) if batched else torch.stack(kept)[:, None]
        total = summed if total is None else total + summed
    assert total is not None
    return total


def _turns(size: int, samples: int | None, generator: torch.Generator) -> Iterator[Int[Tensor, " output"]]:
    """The output dimensions of one batch after another: all of them, or the next of a shuffled round."""
    if samples is None or samples >= size:
        while True:
            yield torch.arange(size, device="cpu")
    left = torch.empty(0, dtype=torch.int64, device="cpu")
    while True:
        # No dimension twice in a batch: what the next round begins with is drawn from the others.
        if len(left) < samples:
            order = torch.randperm(size, generator=generator, device="cpu")
            again = torch.isin(order, left)
            left = torch.cat([left, order[~again], order[again]])
        turn, left = left[:samples], left[samples:]
        yield turn


def _drawn(
    sources: Bool[Tensor, "row token"], positions: int | None, generator: torch.Generator
) -> Bool[Tensor, "row token"]:
    """At most so many positions of each row, drawn without replacement."""
    if positions is None:
        return sources
    drawn = torch.rand(sources.shape, generator=generator, device="cpu").to(sources.device)
    order = drawn.masked_fill(~sources, 2).argsort(1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return sources & (rank < positions)


def _one_by_one(sources: Bool[Tensor, "row token"]) -> list[Bool[Tensor, "row token"]]:
    """Masks of one position a row at most; rows do not meet in a forward, so each is a pass of all rows at once."""
    number = sources.cumsum(1)
    return [sources & (number == one) for one in range(1, int(number.max()) + 1)]
