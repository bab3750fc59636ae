"""Drawn hostile answers: each is refused in one line, or changes nothing; no code runs, in bounded bytes and time."""

from __future__ import annotations

import functools
import json
import random
import resource
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpcore
import pytest
import torch
from conftest import mixed_batch, tiny_lens
from hostile_answers import JOB, KEY, LEVELS, URL, Clock, Exchange, Stream, http, marker_in

from interventions import count_checked, count_positions
from interventions.errors import LONGEST, MMNeuronError, NotFinite
from mmneuron_lens.batching.gather import Piece
from mmneuron_lens.experiments.count_checks import positions_in, refuse_impossible
from mmneuron_lens.runtime import backend, serving, transport
from mmneuron_lens.runtime.compile import compile_graph, results_over
from mmneuron_lens.runtime.finite import refuse_tally
from mmneuron_lens.runtime.forms import forms_of
from mmneuron_lens.runtime.remote import in_one_line
from mmneuron_lens.runtime.returned import checked_returned

GRAPH, SITE = count_checked | count_positions.at(layers=0), "llm.mlp.act"
LONG = 2 * transport.WHOLE_RESULT
"""Seconds after which every exchange has ended."""


@functools.cache
def asked_once() -> Asked:
    return Asked()


class Asked:
    """What was asked: the checks that an answer has to pass, and the answer that passes."""

    def __init__(self) -> None:
        lens = tiny_lens("llava_next")
        batch = mixed_batch(lens)
        plans = compile_graph(GRAPH, lens.architecture, typed=True, attention=lens.model.attentions)
        self.overs = results_over(GRAPH, lens.architecture)
        self.forms = forms_of(plans, batch, lens.architecture, lens.module, lens.dtype)
        self.positions = positions_in([batch])
        self.values = dict(lens.run(GRAPH, batch))
        self.result = {"returned": {"values": self.values, "answers": [], "logits": []}}

    def checked(self, found: Any, host: str) -> dict[str, torch.Tensor]:
        values = checked_returned(found.get("returned"), self.overs, 1, host, self.forms)["values"]
        counts = values["count_checked", SITE]
        tensors = {f"active/{SITE}": counts["active"], f"tokens/{SITE}": values["count_positions", SITE][0]}
        refuse_impossible(Piece(1, tensors, (), (), {}, 0), self.positions, host)
        refuse_tally(SITE, counts["not finite"], torch.float32)
        return tensors


def exchanged(asked: Asked, one: Exchange, clock: Clock, patch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """All that a client does with a job, from the first question to the checked result."""
    patch.setattr(httpcore.SyncBackend, "connect_tcp", lambda self, *place, **more: Stream(one.answer, clock))
    model: Any = SimpleNamespace(nnsight=SimpleNamespace(to_model_key=lambda: KEY))
    serving._differences.cache_clear()
    client = backend.backend_of(model, URL, wait=clock.wait, now=clock.now)
    client.display.enabled = False
    client._serialize, client._push = lambda tracer: b"job", lambda found, tracer: None
    with in_one_line(client):
        serving.refuse_unserved(client.asked, client.model_key)
        client()
        return asked.checked(client.found, client.host)


def assert_in_a_line(error: MMNeuronError, where: str) -> None:
    said = str(error)
    assert said.isprintable(), where
    assert len(said) <= LONGEST + 4, where
    assert "127.0.0.1" in said or isinstance(error, NotFinite), f"{where}: {said}"


def use(folder: Path, count: int, seed: int) -> dict[str, Counter[str]]:
    """By level, how many drawn exchanges changed nothing ("used"), and were refused in a line ("named")."""
    import httpx._transports.default as httpx_transport

    asked, draw, marker = asked_once(), random.Random(seed), marker_in(folder)
    honest = asked.checked(asked.result, URL)
    came = {level: Counter[str]() for level in LEVELS}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # A server may say that a model is cold, or its torch another: that is warned of.
        warnings.filterwarnings("ignore", "owner/model is cold|http://127.0.0.1:9 runs ")
        # Made once: it reads every certificate that is trusted.
        patch.setattr(httpx_transport, "create_ssl_context", functools.cache(httpx_transport.create_ssl_context))
        patch.setattr(transport, "PAGE", 2**18)
        patch.setattr(transport, "RESULT", 2**22)
        for number in range(count):
            clock = Clock()
            patch.setattr(transport.time, "monotonic", clock.now)
            one = Exchange(asked.result, draw, marker, fails=draw.random() < 0.1)
            where = f"exchange {number} of seed {seed}: {one.level} at {one.where}"
            try:
                found = exchanged(asked, one, clock, patch)
            except MMNeuronError as error:
                assert_in_a_line(error, where)
                came[one.level]["named"] += 1
            except Exception as error:
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
            else:
                assert not one.fails, where
                assert found.keys() == honest.keys(), where
                assert all(found[name].dtype == honest[name].dtype for name in honest), where
                assert all(torch.equal(found[name], honest[name]) for name in honest), where
                came[one.level]["used"] += 1
            assert clock.now() < LONG, f"{where}: {clock.now():.0f} seconds"
            assert not Path(marker).exists(), where
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 2**10, f"{grown} KiB"
    return came


def test_an_honest_exchange_gives_its_result(monkeypatch, tmp_path):
    asked, clock = asked_once(), Clock()
    one = Exchange(asked.result, random.Random(0), marker_in(tmp_path))
    one.where = "nowhere"
    honest = asked.checked(asked.result, URL)
    found = exchanged(asked, one, clock, monkeypatch)
    assert all(torch.equal(found[name], honest[name]) for name in honest)


@pytest.mark.parametrize(("path", "name"), [("/request", "id"), (f"/response/{JOB}", "data")])
@pytest.mark.parametrize("strange", ["a\nb", f"{URL}/\x00", "\x1b[2J", "\ud800"])
def test_a_job_or_a_result_that_is_no_address_is_one_line(path, name, strange, monkeypatch, tmp_path):
    asked, clock = asked_once(), Clock()
    one = Exchange(asked.result, random.Random(0), marker_in(tmp_path))
    one.where, one.asked = path, 2
    status = "RECEIVED" if name == "id" else "COMPLETED"
    one.hostile = lambda content: iter([http(json.dumps({"id": JOB, "status": status, name: strange}).encode())])
    with pytest.raises(MMNeuronError) as caught:
        exchanged(asked, one, clock, monkeypatch)
    assert_in_a_line(caught.value, strange)


def test_hundreds_of_hostile_answers_are_refused_or_change_nothing(tmp_path):
    came = use(tmp_path, 300, 0)
    assert all(counted["named"] > 3 for counted in came.values()), came
    assert sum(counted["used"] for counted in came.values()) > 10
