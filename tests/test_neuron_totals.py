"""Neuron totals of published checkpoints, from their configurations, on the meta device.

Those of the paper are in its section 4.1.1; of the others `source` says where their sizes stand. The totals are layers
times neurons of a layer, written down by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from interventions import NEURON_SITES
from mmneuron_lens.architectures import architecture_of
from mmneuron_lens.architectures.checking import check_places

PUBLISHED = json.loads((Path(__file__).parent / "published_configs.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_of_the_published_checkpoints(name):
    entry = PUBLISHED[name]
    config = AutoConfig.for_model(**entry["config"])
    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(config)
    architecture = architecture_of(config)
    check_places(architecture, module)
    found = {site: architecture.neurons(site) for site in NEURON_SITES if site in architecture.sites}
    assert found == entry["neurons"]
    assert sum(found.values()) == entry["total"]
    # The tables' sizes against what the modules really hold.
    for site in found:
        for _, path in architecture.place(site).paths():
            parent, _, _ = path.rpartition(".")
            made, taken = widths_beside(module.get_submodule(parent))
            # A Q-Former has what takes its neurons in a module of its own.
            assert architecture.place(site).sizes["neuron"] in (made if site.startswith("qformer") else made & taken)


def widths_beside(parent: torch.nn.Module) -> tuple[set[int], set[int]]:
    """How wide what the linear layers beside an activation make is, and what they take."""
    linear = {name: child for name, child in parent.named_children() if isinstance(child, torch.nn.Linear)}
    # Gate and up in one layer, of which the activation sees the gate.
    made = {one.out_features // (2 if name == "gate_up_proj" else 1) for name, one in linear.items()}
    return made, {one.in_features for one in linear.values()}
