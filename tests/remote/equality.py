"""Equality of two results, exact, all the way down."""

from __future__ import annotations

import torch


def assert_equal(one, other, where="result") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        # A mean over a kind that has no position is not a number on both sides.
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, dict):
        assert set(one) == set(other), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}[{name!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


def assert_same_results(one, other) -> None:
    assert_equal(dict(one), dict(other))
    assert one.text == other.text
    assert_equal(one.tokens, other.tokens, "tokens")
    assert_equal(one.logits, other.logits, "logits")
