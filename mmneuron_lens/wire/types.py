"""Types of what these functions hand to one another. They are read by people and type checkers; none of them travels.

Import them for annotations alone, which are left out of what is sent: a server has neither this file nor jaxtyping.
"""

from __future__ import annotations

from typing import TypedDict


class WeightFacts(TypedDict):
    """What tells one weight from another, in plain values.

    sampled: the bits of 64 values, evenly spaced from the first to the last, as integers. checksum: an exact integer
    over all bytes, the same on every kind of device. Both are None where the weight cannot be seen (the meta device).
    """

    name: str
    shape: list[int]
    dtype: str
    sampled: list[int] | None
    checksum: int | None


class Served(TypedDict):
    """What an NDIF server says of a model: its kind of device, "server" where a sandbox hides it, and its weights."""

    device: str
    weights: list[WeightFacts]
