"""Neuron totals of the published checkpoints (section 4.1.1), from their configurations, on the meta device."""

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
            layers = [child for child in module.get_submodule(parent).children() if isinstance(child, torch.nn.Linear)]
            assert architecture.place(site).sizes["neuron"] in {layer.out_features for layer in layers}
