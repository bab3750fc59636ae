"""The same graphs through a running NDIF server, HTTP, queue and all: equal to a local run exactly, at float32."""

from __future__ import annotations

import os

import nnsight
import pytest
import torch
from conftest import mixed_batch, pictures
from drawn_corpus import write_corpus
from equality import assert_equal, assert_same_results
from faults import jobs_sent

from interventions import (
    Graph,
    answer_log_probability,
    attribution,
    batch_field,
    count_active,
    count_active_by_kind,
    gradient,
    integrated_gradients,
    keep,
    knock_out_attention,
    logit_lens,
    patch_activations,
    per_layer,
    reads,
    top_activations,
    value_of,
    zero_neurons,
)
from mmneuron_lens import Lens
from mmneuron_lens.batching.gather import WHOLE, Memory
from mmneuron_lens.batching.remote import chunks_of
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.experiments.count import plan_count
from mmneuron_lens.runs.api import identify
from mmneuron_lens.runtime.jobs.watch import Limits
from mmneuron_lens.runtime.remote import RemoteFailed

URL = os.environ.get("MMNEURON_NDIF_URL", "").rstrip("/")
pytestmark = pytest.mark.skipif(
    not URL,
    reason="MMNEURON_NDIF_URL is not set: start `mmneuron ndif up --model embedded/llava-next "
    "--model embedded/instructblip --cpu` and set it to the URL that it prints",
)

NAMES = ("llava-next", "instructblip")
GENERATION = {"num_beams": 5, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """The model here, and the same folder without weights."""
    local = Lens.embedded(request.param)
    return local, Lens.weightless(local.model.repo)


@reads("llm.attention.q", over="list")
def with_other(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return other.norm(dim=-1)


def mask(lens) -> torch.Tensor:
    config = lens.module.config.get_text_config()
    return torch.arange(config.num_hidden_layers * config.intermediate_size).reshape(
        config.num_hidden_layers, config.intermediate_size
    ) % 3 == 0  # fmt: skip


def both(pair, graph, *, sources=False, batches=2, **settings):
    local, client = pair
    some = [mixed_batch(client)] * batches
    given = [mixed_batch(client)] * batches if sources else None
    kind = "generate" if "max_new_tokens" in settings else "run"
    one = getattr(local, kind)(graph, some, sources=given, **settings)
    assert_same_results(one, getattr(client, kind)(graph, some, sources=given, remote=URL, **settings))
    return one


def test_counts(pair):
    out = both(pair, count_active_by_kind.at("*.act"))
    assert out["count_active_by_kind", "llm.mlp.act"].sum() > 0


def test_zeroed_neurons_change_the_logits(pair):
    out = both(pair, zero_neurons.bind(neurons=per_layer(mask(pair[0]))) | count_active, logits=True)
    plain = both(pair, count_active, logits=True)
    assert not torch.equal(out.logits[0], plain.logits[0])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return load_corpus(write_corpus(tmp_path_factory.mktemp("corpus"), images=6))


def test_a_sharded_identification_finds_the_neurons_that_a_local_one_finds(pair, corpus, tmp_path):
    local, client = pair
    one = identify(local, corpus, batch_size=2, permutations=2)
    jobs = {"limits": Limits(in_flight=4, poll_seconds=0.1, seconds=240.0)}
    there = Lens(client.model.repo, remote=URL)
    with jobs_sent() as sent:
        other = identify(there, corpus, batch_size=2, permutations=2, out=tmp_path, jobs=jobs)
    # Every domain is several jobs, each sent once.
    plans = [plan_count(client, some, batch_size=2) for some in corpus.by_domain().values()]
    pieces = [len(chunks_of(plan.steps, WHOLE, Memory())) for plan in plans]
    assert min(pieces) > 1
    assert len(sent) == sum(pieces)
    for here, there in zip(one.counts, other.counts, strict=True):
        assert (here.domain, here.samples) == (there.domain, there.samples)
        assert sum(int(active.sum()) for active in here.active.values()) > 0
        assert_equal(here.active, there.active)
        assert_equal(here.tokens, there.tokens)
    for name in ("domains", "masks", "entropy", "probability", "tokens", "threshold", "requested", "parameters"):
        assert_equal(getattr(one.selection, name), getattr(other.selection, name), name)
        assert_equal(getattr(one.wider, name), getattr(other.wider, name), name)
    assert any(one.selection.selected(site) for site in one.selection.masks)


def test_numbers_flags_and_text_come_back_beside_tensors(pair):
    @reads("llm.mlp.act", over="list")
    def described(act):
        return {"wide": act.shape[-1] > 1, "largest": act.amax(), "note": "gate"}

    out = both(pair, described)
    assert set(out["described", "llm.mlp.act"][0]["wide"]) == {True}


def test_the_logit_lens(pair):
    both(pair, logit_lens | logit_lens.at("llm.embedding").named("embedding"))


def test_generation_with_five_beams(pair):
    graph = zero_neurons.bind(neurons=per_layer(mask(pair[0]))) | count_active.at(steps="all")
    assert len(both(pair, graph, **GENERATION).text) == 6


def test_rewiring(pair):
    both(pair, patch_activations.at(layers=1, positions=-1) | keep.named("after"), sources=True, logits=True)


def test_gradients_and_other_sites_values(pair):
    local, client = pair
    images, questions, answers = pictures((40, 56), (64, 30)), ["what?", "what is it?"], ["yes", "no"]
    of_answer = gradient(answer_log_probability)
    graph = attribution.bind(gradient=of_answer) | with_other.bind(other=value_of("llm.residual"))
    batch = client.encode(images, questions, answers)
    if os.environ.get("MMNEURON_NDIF_SANDBOX"):
        # Values cross processes there, and what autograd knows of them does not.
        with pytest.raises(RemoteFailed, match=r"does not depend on llm\.mlp\.post: .* in NDIF's sandbox"):
            client.run(graph, batch, remote=URL)
        return
    assert_same_results(local.run(graph, batch), client.run(graph, batch, remote=URL))
    baseline = client.encode([image.transpose(0) for image in images], questions, answers)
    through = integrated_gradients.bind(gradient=of_answer)
    here, there = (
        lens.run_between(through, batch, baseline, steps=2, **where)
        for lens, where in ((local, {}), (client, {"remote": URL}))
    )
    assert_same_results(here, there)


def test_several_graphs_in_one_job(pair):
    local, client = pair
    neurons = mask(local)
    graphs = [Graph(), zero_neurons.bind(neurons=per_layer(neurons)) | top_activations, count_active]
    batch = mixed_batch(client)
    here, there = local.run(graphs, batch), client.run(graphs, batch, remote=URL)
    for one, other in zip(here, there, strict=True):
        assert_same_results(one, other)


def test_attention_knockout(pair):
    kind = mixed_batch(pair[1]).fields["llm"]["kind"]
    both(pair, knock_out_attention.bind(queries=kind[..., 1], keys=kind[..., 0]), logits=True)


def test_a_result_too_big_for_the_socket(pair):
    graph = keep.at(["llm.mlp.act", "llm.residual"])
    out = both(pair, graph, batches=40)
    size = sum(value.numel() * 4 for values in out.values() for value in values)
    assert size > 8 * 2**20


def test_a_fault_there_is_the_users_line_and_message(pair, monkeypatch):
    from mmneuron_lens.runtime import remote

    @reads("llm.mlp.act", over="list", weight=batch_field("weight"))
    def broken(act, weight):
        return act[..., :3] @ torch.ones(5)  # the line

    monkeypatch.setattr(remote, "check_plans", lambda *given: None)
    with pytest.raises(RemoteFailed) as caught:
        pair[1].run(broken, mixed_batch(pair[1]), remote=URL)
    said = str(caught.value)
    assert said.startswith(f"{URL}: RuntimeError: size mismatch")
    assert said.endswith(": return act[..., :3] @ torch.ones(5) # the line)")
    assert f" (in broken, {__file__}, line " in said
    assert "\n" not in said
    assert "Traceback" in caught.value.traceback


def test_a_model_that_is_not_served_is_refused_with_what_is(pair, tmp_path):
    local, _ = pair
    local.module.save_pretrained(tmp_path)
    local.processor.save_pretrained(tmp_path)
    client = Lens.weightless(tmp_path)
    with pytest.raises(LookupError, match=r"does not serve .*; it serves .*instructblip.*mmneuron ndif up --model"):
        client.run(count_active, mixed_batch(client), remote=URL)


def test_the_key_is_in_no_payload(pair, monkeypatch):
    from mmneuron_lens.runtime import backend

    key = "0123-secret-4567"
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", key)
    sent = []
    genuine = backend.refuse_unshippable
    monkeypatch.setattr(backend, "refuse_unshippable", lambda payload: (sent.append(payload), genuine(payload)))
    out = pair[1].run(count_active, mixed_batch(pair[1]), remote=URL)
    assert len(sent) == 1
    assert key.encode() not in sent[0]
    assert key not in repr(out)


def test_images_go_up_as_their_own_files(pair, tmp_path, monkeypatch):
    from mmneuron_lens.runtime import remote

    files = []
    for number, picture in enumerate(pictures(*[(200, 300)] * 50)):
        files.append(tmp_path / f"{number}.jpg")
        picture.save(files[-1], quality=85)
    sent = []
    genuine = remote.backend_of

    def counting(*given, **settings):
        backend = genuine(*given, **settings)
        serialize = backend._serialize
        backend._serialize = lambda tracer: (sent.append(serialize(tracer)), sent[-1])[1]
        return backend

    monkeypatch.setattr(remote, "backend_of", counting)
    client = pair[1]
    batches = [client.encode(files[at : at + 10], ["what is it?"] * 10) for at in range(0, 50, 10)]
    client.run(count_active, batches, remote=URL)
    assert len(sent[0]) <= 1.1 * sum(file.stat().st_size for file in files)
