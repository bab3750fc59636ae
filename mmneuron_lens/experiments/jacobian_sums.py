"""Sums of Jacobians over prompts: their mean, and how far the mean may be from that of all prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.errors import InvalidValue


@dataclass
class JacobianSums:
    """Running sums in float64, whose size does not depend on how much is added.

    With n_r positions in prompt r, J_r its mean Jacobian: for each output dimension i the sums of n_r J_r[i],
    n_r |J_r[i]|^2, n_r and n_r^2. From these come the mean and its standard error.
    """

    layers: int
    size: int
    prompts: int = 0
    positions: int = 0
    _total: Tensor = field(init=False, repr=False)
    _squares: Tensor = field(init=False, repr=False)
    _weight: Tensor = field(init=False, repr=False)
    _weight_squared: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device="cpu")

        self._total = zeros(self.layers + 1, self.size, self.size)
        self._squares = zeros(self.layers + 1, self.size)
        self._weight, self._weight_squared = zeros(self.size), zeros(self.size)

    def add(
        self,
        outputs: Int[Tensor, " output"],
        by_row: Float[Tensor, "layer output row hidden"],
        counts: Int[Tensor, " row"],
    ) -> None:
        """Adds the gradients of some output dimensions.

        - outputs: which
        - by_row: summed over the positions of each prompt
        - counts: how many positions these are
        """
        number = counts.double().cpu()
        self._total[:, outputs] += by_row.sum(2)
        self._squares[:, outputs] += (by_row.square().sum(-1) / number.clamp(min=1)).sum(-1)
        self._weight[outputs] += number.sum()
        self._weight_squared[outputs] += number.square().sum()

    def mean(self, samples: int | None) -> tuple[Float[Tensor, "layer output hidden"], Float[Tensor, " layer"]]:
        """The mean, and its standard error as a share of it in the Frobenius norm, NaN where one prompt cannot tell.

        The variance of a mean of prompts that weigh n_r, with n' = (sum n_r)^2 / sum n_r^2 of equal weight: summed over
        entries, (E|J_r|^2 - |E J_r|^2) / (n' - 1).

        - samples: output dimensions a batch, for the error

        Raises `InvalidValue` when there is an output dimension that nothing was added for.
        """
        missing = int((self._weight == 0).sum())
        if missing:
            raise InvalidValue(
                f"{missing} of {self.size} output dimensions had no turn in these batches with samples={samples}; give "
                "more batches, or more samples."
            )
        mean = self._total / self._weight[:, None]
        size = mean.square().sum(-1)
        alike = self._weight.square() / self._weight_squared
        spread = (self._squares / self._weight - size).clamp(min=0) / (alike - 1)
        error = (spread.sum(-1) / size.sum(-1)).sqrt()
        return mean, error if bool((alike > 1 + 1e-9).all()) else torch.full_like(error, torch.nan)
