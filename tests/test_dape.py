"""Probabilities and entropies against numbers that can be checked by hand, and against scipy."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped
from scipy.stats import entropy as scipy_entropy

from mmneuron_lens.neurons.dape import activation_probability, dape


def test_probability_is_count_over_tokens_in_float64() -> None:
    probability = activation_probability(torch.tensor([[0, 1], [2, 3]]), 3)
    assert probability.dtype == torch.float64
    assert probability.tolist() == [[0.0, 1 / 3], [2 / 3, 1.0]]
    per_domain = activation_probability(torch.tensor([[1, 2], [1, 2]]), torch.tensor([[2], [4]]))
    assert per_domain.tolist() == [[0.5, 1.0], [0.25, 0.5]]


def test_large_counts_are_not_rounded_to_float32() -> None:
    assert activation_probability(torch.tensor([2**24 + 1]), 2**25).item() == (2**24 + 1) / 2**25


def test_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="over 0 tokens is undefined; count some tokens first"):
        activation_probability(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="over 0 tokens"):
        activation_probability(torch.zeros(2, 3).long(), torch.tensor([[5], [0]]))


def test_normalised_not_raw() -> None:
    """Eq. 7 as printed takes p itself; the procedure takes p'. For this neuron: 0.506 nats against 0.682."""
    probability = torch.tensor([0.2, 0.01, 0.01, 0.01, 0.01], dtype=torch.float64)
    raw = -(probability * probability.log()).sum().item()
    assert raw == pytest.approx(0.506, abs=5e-4)
    assert dape(probability).item() == pytest.approx(0.682, abs=5e-4)


def test_limits() -> None:
    one_domain = torch.tensor([0.0, 0.3, 0.0], dtype=torch.float64)
    assert dape(one_domain).item() == 0.0
    assert math.copysign(1, dape(one_domain).item()) == 1
    assert dape(torch.full((5,), 0.7, dtype=torch.float64)).item() == pytest.approx(math.log(5), abs=1e-15)
    assert math.isnan(dape(torch.zeros(5, dtype=torch.float64)).item())
    assert dape(torch.full((1,), 0.7, dtype=torch.float64)).item() == 0.0


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6).filter(any))
@settings(max_examples=200, deadline=None)
def test_equals_scipy_and_forgets_the_order_of_domains(counts: list[int]) -> None:
    probability = torch.tensor(counts, dtype=torch.float64) / 10**6
    value = dape(probability).item()
    assert value == pytest.approx(float(scipy_entropy(counts)), abs=1e-12)
    assert 0 <= value <= math.log(len(counts)) + 1e-12
    assert {dape(probability[list(order)]).item() for order in list(permutations(range(len(counts))))[:24]} == {value}


def test_leading_axes_are_kept() -> None:
    probability = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = dape(probability)
    assert values.shape == (2, 3, 4)
    assert values[1, 2, 3] == dape(probability[1, 2, 3])


def test_annotations_are_true() -> None:
    checked_dape = jaxtyped(typechecker=beartype)(dape)
    checked_probability = jaxtyped(typechecker=beartype)(activation_probability)
    checked_dape(torch.ones(2, 3, dtype=torch.float64))
    checked_probability(torch.ones(2, 3).long(), 4)
    checked_probability(torch.ones(2, 3).long(), torch.tensor([[4], [5]]))
    with pytest.raises(TypeCheckError):
        checked_dape(torch.ones(2, 3))
    with pytest.raises(TypeCheckError):
        checked_probability(torch.ones(2, 3), 4)
