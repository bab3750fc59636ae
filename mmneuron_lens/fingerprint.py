"""Sampled: which weights a model has, here or on a server, told by a few values of each."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from mmneuron_lens.lens import Lens
from mmneuron_lens.wire.describe import describe


def sampled_weights(lens: Lens) -> str | None:
    """The hash of the model's weights, or of its server's; None where they cannot be seen."""
    if lens.served is not None:
        weights = lens.served["weights"]
    else:
        weights = None if lens.remote else describe(lens.nnsight)["weights"]
    return None if weights is None else digest_of(weights)


def digest_of(weights: list[Any]) -> str:
    """The sha256 of every weight's name, shape, dtype and first 64 values, as `wire.describe` tells them.

    It tells apart models that were changed in memory, and those too large to hash whole.
    """
    digest = hashlib.sha256()
    for name, shape, dtype, some in weights:
        digest.update(f"{name} {tuple(shape)} {dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
