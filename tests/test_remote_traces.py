"""`lens[site][layer].value` in a trace that runs in another process, where this package is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures
from drawn_corpus import write_corpus
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling.huggingface import _ID_CACHE
from test_site_values import changed

from interventions import keep, moments, writes
from mmneuron_lens import Lens
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.compare import compare
from mmneuron_lens.neurons.compared import chosen_sets, with_draws, with_strengths
from mmneuron_lens.runtime import remote

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = ("llava_next", "instructblip", "blip2", "qwen2_vl", "qwen2_5_vl", "gemma3")
URL = "https://elsewhere"


class Elsewhere:
    """The process of `bare_server.py`."""

    def __init__(self, scratch: Path) -> None:
        self.payload, self.result, self.log = scratch / "payload", scratch / "result", scratch / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", Path(__file__).parent / "bare_server.py", *NAMES],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=scratch,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )
        assert self.line() == "ready", self.log.read_text()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, name: str, payload: bytes) -> Any:
        self.payload.write_bytes(payload)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{NAMES.index(name)} {self.payload} {self.result}\n")
        self.process.stdin.flush()
        answer = self.line()
        if answer != "ok":
            raise RemoteError(answer)
        return torch.load(self.result, weights_only=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    server, lenses = Elsewhere(tmp_path_factory.mktemp("elsewhere")), {}
    for name in NAMES:
        module, processor = getattr(tiny_models if hasattr(tiny_models, name) else newer_models, name)()
        module.name_or_path = name
        # A name that no hub is asked about.
        _ID_CACHE[name] = name
        lenses[name] = Lens.wrap(module, processor)
    yield SimpleNamespace(server=server, lenses=lenses)
    server.process.communicate()


@pytest.fixture
def lenses(place, monkeypatch):
    genuine = remote.backend_of

    def backend_of(model: Any, where: Any, **settings: Any) -> Any:
        made = genuine(model, where, **settings)

        class Sent(type(made)):
            def __call__(self, tracer: Any = None) -> Any:
                self.found = place.server.run(model.nnsight.repo_id, self._serialize(tracer))
                self._push(self.found, tracer)
                return self.found

        made.__class__ = Sent
        made.compress = False
        return made

    monkeypatch.setattr(remote, "backend_of", backend_of)
    monkeypatch.setattr(remote, "refuse_unserved", lambda host, key: None)
    return place.lenses


@writes("*")
def change(value):
    return changed(value)


@pytest.mark.parametrize("name", NAMES)
def test_values_written_values_and_gradients_are_those_of_a_trace_here(name, lenses):
    lens = lenses[name]
    batch = lens.encode(pictures((40, 56), (64, 30)), ["Is it red?", "why"])
    expected = lens.run(keep.at(["vision.mlp.act", "llm.mlp.act", "llm.attention.z"]), batch)
    with lens.trace(batch, remote=URL):
        vision = lens["vision.mlp.act"][1].value.save()
        heads = lens["llm.attention.z"][1].value.save()
        act = lens["llm.mlp.act"][-1].value.save()
        with lens["llm.logits"].value[:, -1, 7].sum().backward():
            gradient = act.grad.save()
    assert torch.equal(vision, expected["keep", "vision.mlp.act"][0][1])
    assert torch.equal(heads, expected["keep", "llm.attention.z"][0][1])
    assert torch.equal(act, expected["keep", "llm.mlp.act"][0][-1])
    with lens.trace(batch):
        here = lens["llm.mlp.act"][-1].value
        with lens["llm.logits"].value[:, -1, 7].sum().backward():
            same = here.grad.save()
    lens.module.zero_grad()
    assert same.any()
    torch.testing.assert_close(gradient, same)
    graph = change.at("vision.attention.v", layers=0) | change.at("llm.attention.q", layers=1)
    written = lens.run(graph, batch, logits=True).logits[0]
    queries = lens["llm.attention.q"][1]
    with lens.trace(batch, remote=URL):
        value = lens["vision.attention.v"][0].value
        value *= 0.5
        value += 0.25
        queries.value = queries.value * 0.5 + 0.25
        logits = lens["llm.logits"].value.save()
    torch.testing.assert_close(logits, written)


def test_what_is_wrong_there_is_said_in_a_line(lenses):
    lens = lenses["llava_next"]
    batch = lens.encode(pictures((40, 56)), ["why"])
    said = r'lens\["llm.mlp.act"\]\[1\].value is a tensor \[1, \d+, 48\], not \[3\]'
    with pytest.raises(RemoteError, match=said), lens.trace(batch, remote=URL):
        lens["llm.mlp.act"][1].value = torch.zeros(3)
    with pytest.raises(RemoteError, match=r"lens.apply works here only"), lens.trace(batch, remote=URL):
        lens.apply(change)
    with pytest.raises(RemoteError, match=r"No site 'llm.mlp.acts'"), lens.trace(batch, remote=URL):
        _ = lens["llm.mlp.acts"]


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_moments_read_there_are_those_read_here(name, lenses):
    """What they call travels with them, and their fold joins batches there."""
    lens = lenses[name]
    batches = [lens.encode(pictures((40, 56), (64, 30)), ["Is it red?", "why"]), lens.encode(pictures((32, 32)), ["x"])]
    graph = moments.at([site for site in lens.sites if site.endswith((".act", ".post"))])
    here, there = lens.run(graph, batches), lens.run(graph, batches, remote=URL)
    assert set(here) == set(there)
    for key, found in here.items():
        for part, value in found.items():
            assert torch.equal(there[key][part], value), (key, part)


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_comparison_of_neurons_is_the_same_as_here(name, lenses, place, monkeypatch, tmp_path):
    """How far the state moves, the answers behind the prompts, and generations, all in the other process."""
    lens = lenses[name]
    corpus = by_domain(read_folder(write_corpus(tmp_path, images=1))[0])
    asked, domains = {domain: some[:2] for domain, some in corpus.items()}, tuple(corpus)
    neurons = lens.architecture.place("llm.mlp.act").sizes["neuron"]
    noise = torch.Generator().manual_seed(0)
    scores = {"drawn": {"llm.mlp.act": torch.rand(3, neurons, len(domains), dtype=torch.float64, generator=noise)}}
    sets = with_strengths(with_draws(chosen_sets(scores, domains, (0.2,)), 1), (1.0,), (0.2,))
    settings = {"methods": ("drawn",), "domains": domains, "accuracy": (0.2,), "max_new_tokens": 2}
    here = compare(lens, sets, asked, **settings)
    sent = []
    genuine = place.server.run
    monkeypatch.setattr(place.server, "run", lambda *given: sent.append(given[0]) or genuine(*given))
    monkeypatch.setattr(lens, "_remote", URL)
    there = compare(lens, sets, asked, **settings)
    # A job with the answers, and one that generates, for each batch.
    assert len(sent) == 2 * len(domains)
    assert float(here.change.nan_to_num().abs().max()) > 1e-3
    for field in ("before", "change", "deviation", "right"):
        assert torch.equal(getattr(here, field).nan_to_num(9), getattr(there, field).nan_to_num(9)), field
