"""An intervention that fails on a server alone, in a file of its own as a notebook's cell would be."""

from __future__ import annotations

import torch

from interventions import reads


@reads("llm.mlp.act", over="sum")
def fails_there(act):
    # Fake tensors of the check pass; the real ones of a server do not.
    if type(act) is torch.Tensor:
        raise ZeroDivisionError("no such neuron")
    return act.flatten(0, -2).sum(0)
