"""Newer architectures executed by ndif's own code where our packages are absent: what comes back equals a local run."""

from __future__ import annotations

from types import SimpleNamespace

import newer_models
import pytest
import torch
from conftest import pictures
from equality import assert_same_results
from nnsight.modeling.huggingface import _ID_CACHE
from strict_client import NO_ENVIRONMENT, URL, StrictServer, environment_is_there

from interventions import count_active_by_kind, count_positions, keep, logit_lens, per_layer, zero_neurons
from mmneuron_lens import Lens

pytestmark = [
    pytest.mark.skipif(not environment_is_there(), reason=NO_ENVIRONMENT),
    # transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]

NAMES = tuple(newer_models.ARCHITECTURES)
COUNTS = count_active_by_kind.at("*.act") | count_positions.at("*.act")
BEAMS = {"num_beams": 5, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    server = StrictServer(NAMES, tmp_path_factory.mktemp("strict"))
    lenses = {}
    for name in NAMES:
        module, processor = getattr(newer_models, name)()
        module.name_or_path = name
        # A name that no hub is asked about.
        _ID_CACHE[name] = name
        lenses[name] = Lens.wrap(module, processor)
    yield SimpleNamespace(server=server, lenses=lenses)
    server.close()


@pytest.fixture(params=NAMES)
def lens(request, place, monkeypatch):
    place.server.attach(monkeypatch)
    return place.lenses[request.param]


def test_counts_packs_generations_and_lenses_equal_local_ones(lens):
    images = pictures((40, 56), (64, 30))
    batch = lens.encode(images, ["what is it?", "why"])
    packed = lens.pack([([images[0]], ["what?", "what is it?"]), ([images[1]], ["who?"])])
    masks = {}
    for site in ("vision.mlp.act", "llm.mlp.act"):
        place = lens.architecture.place(site)
        masks[site] = torch.arange(place.layers * place.sizes["neuron"]).reshape(place.layers, -1) % 3 == 0
    zeroing = zero_neurons.at(list(masks)).bind(neurons=per_layer(masks))
    for graph, one in (
        (COUNTS, batch),
        (COUNTS, packed),
        (zeroing | keep.at("vision.residual") | logit_lens.bind(top_k=2), batch),
    ):
        assert_same_results(lens.run(graph, one), lens.run(graph, one, remote=URL))
    assert_same_results(
        lens.generate(zeroing | COUNTS, batch, **BEAMS), lens.generate(zeroing | COUNTS, batch, remote=URL, **BEAMS)
    )
