"""Fit the tuned lens: an affine map a layer, trained so that what it unembeds to is the model's final distribution.

Read: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens" (arXiv 2303.08112), its
abstract, and the code of the package tuned-lens (`nn/lenses.py`, `scripts/train_loop.py`, `scripts/ingredients.py`):

- lens(h) = unembed(norm(h + D h + b)), D and b from zero, the final norm and unembedding fixed: A = 1 + D here. Weight
  decay of 1e-3 draws D and b to zero, so A to the identity.
- Loss: KL(final || lens), mean over positions, of the distribution at the same position.
- SGD with Nesterov momentum 0.9, learning rate 1 times (1 - momentum), falling linearly to zero over 250 steps; the
  norm of the gradient at most 1; no map for the last layer, of which the lens is the model.

Settled here: a step is one batch, where the package takes 2^18 tokens; the norm of the gradient is held at 1 layer by
layer, so that no layer's map depends on the others'; padding does not count, and `kinds` says which positions do; the
final distribution is that of the last residual stream through the same norm and unembedding, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue
from mmneuron_lens.artifacts.format import provenance
from mmneuron_lens.artifacts.tuned_lens import TunedLens
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.experiments.residual_stream import (
    frozen,
    positions_counted,
    refuse_below,
    residual_stream,
    unembedding,
)
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.arguments import batches_of
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.finite import refuse_not_finite

Map = tuple[Tensor, Tensor]
"""What is added to the identity, `[hidden, hidden]`, and the bias, `[hidden]`; float32."""

MOMENTUM = 0.9


def fit_tuned_lens(
    lens: Lens,
    batches: Iterable[Batch] | Batch,
    *,
    held_out: Iterable[Batch] | Batch,
    steps: int = 250,
    learning_rate: float = 1.0,
    weight_decay: float = 1e-3,
    kinds: Sequence[str] | None = None,
    chunk: int = 256,
    progress: Progress = quietly,
) -> TunedLens:
    """Affine maps of the embedding and every layer but the last, trained to the final distribution.

    - batches: of `lens.encode`, one a step, from the first again when they end; what can be gone through once alone (a
      generator) must have as many as `steps`
    - held_out: batches of other prompts, by which the maps are judged and never trained
    - steps, learning_rate, weight_decay: of SGD with Nesterov momentum; see above
    - kinds: of the positions that count, "image" and "text"; all if None
    - chunk: positions whose logits exist at a time, a few times `chunk x vocabulary` in float32
    - progress: wraps the batches that are gone through, such as in a bar; nothing is shown unless given

    A step takes a forward pass, and the unembedding forward and backward at every layer and position. Memory does not
    grow with batches or steps: maps, momentum and gradients, `3 * layers * hidden * (hidden + 1)` float32.

    Returns the maps and the mean KL over held-out positions by layer, beside the logit lens's. Raises `InvalidValue`
    for fewer batches than steps where they cannot be gone through again, a batch that is trained and held out, packed
    rows, or a number that cannot be; `UnknownName` for a kind that no prompt of a batch has, `NotFinite` for a loss
    that is infinite or NaN.
    """
    refuse_below(1, steps=steps, chunk=chunk)
    _refuse_rates(learning_rate=learning_rate, weight_decay=weight_decay)
    batches, judged = batches_of(batches), _listed(held_out)
    if isinstance(batches, list) and any(one is other for one in batches for other in judged):
        raise InvalidValue("a batch is both trained on and held out; hold out others.")
    with frozen(lens.module):
        maps, positions = _trained(lens, batches, steps, learning_rate, weight_decay, kinds, chunk, progress)
        ours, plain, count = _judged(lens, judged, maps, kinds, chunk)
    weights = [map_[0] + torch.eye(len(map_[1]), device=map_[0].device) for map_ in maps]
    asked = {"kinds": None if kinds is None else list(kinds), "learning rate": float(learning_rate)}
    asked |= {"weight decay": float(weight_decay), "momentum": MOMENTUM, "optimiser": "SGD, Nesterov"}
    return TunedLens(
        model=lens.name,
        fingerprint=lens.model.fingerprint,
        weight=torch.stack([one.cpu() for one in weights[1:]]),
        bias=torch.stack([map_[1].cpu() for map_ in maps[1:]]),
        embedding_weight=weights[0].cpu(),
        embedding_bias=maps[0][1].cpu(),
        held_out=ours,
        held_out_logit_lens=plain,
        steps=steps,
        positions=positions,
        held_out_positions=count,
        parameters=asked,
        provenance=provenance(**lens.model.facts()),
    )


def _trained(
    lens: Lens,
    batches: Iterable[Batch],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    kinds: Sequence[str] | None,
    chunk: int,
    progress: Progress,
) -> tuple[list[Map], int]:
    """The map of the embedding and of every layer, the last's being zero, and how many positions were seen."""
    unembed, maps, positions = unembedding(lens), list[Map](), 0
    optimiser: torch.optim.Optimizer | None = None
    coming = _again(batches, steps)
    for step in progress(range(steps), "fitting the tuned lens"):
        chosen = _chosen(lens, next(coming), kinds)
        if not maps:
            maps = [_zero(hidden) for hidden in chosen]
            trained = [one for map_ in maps[:-1] for one in map_]
            optimiser = torch.optim.SGD(
                trained, lr=learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay
            )
        assert optimiser is not None
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - MOMENTUM) * (1 - step / steps)
        optimiser.zero_grad()
        _backward(chosen, maps, unembed, chunk)
        for number, map_ in enumerate(maps[:-1]):
            norm = torch.nn.utils.clip_grad_norm_(map_, 1.0)
            site = "llm.residual" if number else "llm.embedding"
            refuse_not_finite(site, norm, lens.dtype, layered=False)
        optimiser.step()
        positions += len(chosen[0])
    return [(one.detach(), other.detach()) for one, other in maps], positions


def _backward(
    chosen: Sequence[Float[Tensor, "position hidden"]],
    maps: Sequence[Map],
    unembed: Callable[[Tensor], Tensor],
    chunk: int,
) -> None:
    """Adds up the gradients of the mean KL of every layer but the last."""
    count = len(chosen[0])
    for start in range(0, count, chunk):
        here = slice(start, start + chunk)
        final = _log_probabilities(chosen[-1][here], None, unembed)
        for hidden, map_ in zip(chosen[:-1], maps[:-1], strict=True):
            with torch.enable_grad():
                loss = _divergence(final, _log_probabilities(hidden[here], map_, unembed)).sum() / count
            loss.backward()


def _judged(
    lens: Lens, batches: Iterable[Batch], maps: Sequence[Map], kinds: Sequence[str] | None, chunk: int
) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"], int]:
    """The mean KL over all positions of these batches by layer, through the maps and without; float64."""
    unembed, count = unembedding(lens), 0
    totals = torch.zeros(2, len(maps), dtype=torch.float64, device="cpu")
    for batch in batches:
        chosen = _chosen(lens, batch, kinds)
        count += len(chosen[0])
        for start in range(0, len(chosen[0]), chunk):
            here = slice(start, start + chunk)
            final = _log_probabilities(chosen[-1][here], None, unembed)
            for layer, (hidden, map_) in enumerate(zip(chosen, maps, strict=True)):
                for row, one in enumerate((map_, None)):
                    apart = _divergence(final, _log_probabilities(hidden[here], one, unembed))
                    totals[row, layer] += apart.double().sum().cpu()
    refuse_not_finite("llm.residual", totals[0], lens.dtype, layered=False)
    refuse_not_finite("llm.residual", totals[1], lens.dtype, layered=False)
    # Rounding may carry a divergence of nothing below zero.
    ours, plain = (totals / count).clamp(min=0)
    return ours, plain, count


def _chosen(lens: Lens, batch: Batch, kinds: Sequence[str] | None) -> list[Float[Tensor, "position hidden"]]:
    """What the embedding and every layer hold at the positions that count."""
    counted = positions_counted(batch, kinds)
    return [value[counted.to(value.device)] for value in residual_stream(lens, batch)]


@torch.no_grad()
def _zero(hidden: Float[Tensor, "position hidden"]) -> Map:
    size = hidden.shape[-1]
    made = (torch.zeros(size, size, device=hidden.device), torch.zeros(size, device=hidden.device))
    return made[0].requires_grad_(), made[1].requires_grad_()


def _log_probabilities(
    hidden: Float[Tensor, "position hidden"], map_: Map | None, unembed: Callable[[Tensor], Tensor]
) -> Float[Tensor, "position vocabulary"]:
    if map_ is not None:
        whole = hidden.float()
        hidden = (whole + whole @ map_[0].T + map_[1]).to(hidden.dtype)
    return unembed(hidden).float().log_softmax(-1)


def _divergence(
    final: Float[Tensor, "position vocabulary"], other: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, " position"]:
    """KL(final || other) in nats, both as logarithms of probabilities."""
    return torch.nn.functional.kl_div(other, final.to(other.device), reduction="none", log_target=True).sum(-1)


def _again(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """The batches, and the same again as long as they can be gone through anew."""
    once, done = isinstance(batches, Iterator), 0
    while True:
        for batch in batches:
            done += 1
            yield batch
        if once:
            raise InvalidValue(f"the batches ended after {done} of {steps} steps; give a list of them, or more.")


def _listed(batches: Iterable[Batch] | Batch) -> list[Batch]:
    return list(batches_of(batches, "a held-out batch"))


def _refuse_rates(**numbers: float) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise InvalidType(f"{name} is a number, not {number!r}.")
        if not 0 <= number < float("inf"):
            raise InvalidValue(f"{name} is {number}; it is a number from 0 on.")
