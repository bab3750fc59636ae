"""Jobs survive: whatever breaks on the way, the counts are those of an undisturbed run on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus
from failing_there import fails_there
from fake_ndif import FakeNdif, served_model
from mmneuron_lens.experiments.identify import count_domain
from mmneuron_lens.runtime.command import jobs_app
from mmneuron_lens.runtime.jobs.identity import digest
from mmneuron_lens.runtime.jobs.returned import read_returned, write_returned
from typer.testing import CliRunner

from interventions import Graph, batch_field, count_active, keep, reads
from mmneuron_lens import Lens
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.runtime.jobs import Clock, JobFailed, JobsBusy, JobStore, JobsUnfinished, Limits, Shard, run_shards
from mmneuron_lens.runtime.jobs.server import is_servers_trouble


class Hand(Clock):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny model in a folder, as the server and as the client see it, a corpus, and its counts here."""
    folder = tmp_path_factory.mktemp("served")
    made = tiny_lens("llava_next")
    made.module.save_pretrained(folder / "tiny")
    made.processor.save_pretrained(folder / "tiny")
    samples, _ = read_folder(write_corpus(folder / "corpus", ("common",)))
    here = Lens(folder / "tiny")
    client = Lens.weightless(folder / "tiny")
    # Its folder is its name; the client has to be first to say so.
    client.nnsight.to_model_key()
    model = served_model(folder / "tiny")
    return model, client, samples, count_domain(here, samples, batch_size=2), here


def count(served, server, folder: Path, limits: Limits | None = None, **settings):
    _, client, samples, *_ = served
    limits = limits or Limits(in_flight=3, grace_seconds=30.0, poll_seconds=10.0)
    return count_domain(
        client, samples, batch_size=2, remote=server.url, jobs=folder, limits=limits, clock=Hand(), **settings
    )


def same(one, other) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


def store_in(folder: Path) -> JobStore:
    (file,) = folder.glob("*/run.json")
    return JobStore(file.parent)


def test_counts_on_a_server_equal_counts_here_and_nothing_is_asked_twice(served, tmp_path):
    with FakeNdif(served[0]) as server:
        first = count(served, server, tmp_path)
        sent, asked = list(server.submitted), server.requests
        again = count(served, server, tmp_path)
    assert same(first, served[3])
    assert same(again, served[3])
    assert (server.submitted, server.requests) == (sent, asked)
    assert len(sent) == len(store_in(tmp_path).run["shards"]) > 3
    assert first.provenance["device"] == "server"


FAULTS = {
    "a connection dropped while sending": {1: "drop", 4: "drop"},
    "a connection dropped while asking": {6: "drop", 7: "drop", 9: "drop"},
    "an internal error": {2: 500, 5: 500, 8: 500},
    "a server that reconnects": dict.fromkeys(range(3, 12), 503),
}


@pytest.mark.parametrize("name", FAULTS)
def test_troubles_on_the_way_cost_no_job(served, tmp_path, name):
    with FakeNdif(served[0]) as server:
        server.faults = FAULTS[name]
        assert same(count(served, server, tmp_path), served[3])
    # None is lost, so each shard is sent once.
    assert len(server.submitted) == len(store_in(tmp_path).run["shards"])


def test_a_restarted_server_that_forgot_is_sent_only_what_is_missing(served, tmp_path):
    with FakeNdif(served[0]) as server:
        server.faults = {8: lambda handler: server.forget() or "drop"}
        assert same(count(served, server, tmp_path), served[3])
    shards = store_in(tmp_path).run["shards"]
    assert len(shards) < len(server.submitted) <= len(shards) + 3
    assert len(server.ran) <= len(shards) + 3


def test_an_unknown_job_is_given_time_before_it_counts_as_lost(served, tmp_path):
    hidden = {}

    with FakeNdif(served[0]) as server:

        def hide(handler):
            hidden.update(server.jobs)
            server.jobs.clear()

        server.faults = {4: hide, 12: lambda handler: server.jobs.update(hidden)}
        # A store that comes back within the grace: nothing is lost.
        assert same(
            count(served, server, tmp_path, Limits(in_flight=3, grace_seconds=1000.0, poll_seconds=10.0)), served[3]
        )
    assert len(server.submitted) == len(store_in(tmp_path).run["shards"])


def test_a_result_that_is_gone_is_computed_again(served, tmp_path):
    with FakeNdif(served[0], rounds=0) as server:
        # Requests 1 to 3 send, 4 asks for the first job, 5 would fetch its result.
        server.faults = {5: lambda handler: server.results.clear()}
        assert same(count(served, server, tmp_path), served[3])
    assert len(server.submitted) == len(store_in(tmp_path).run["shards"]) + 1


SERVERS = (
    "Replica was evicted while processing your request. Sorry for the inconvenience. Please try again later.",
    "Your job was cancelled or preempted by the server.",
    "Traceback (most recent call last):\nbotocore.exceptions.EndpointConnectionError: Could not connect\n",
    "Traceback (most recent call last):\nConnectionRefusedError: [Errno 111] Connection refused\n",
)


@pytest.mark.parametrize("message", SERVERS)
def test_a_job_that_fell_victim_to_the_server_is_sent_again(served, tmp_path, message):
    assert is_servers_trouble(message)
    with FakeNdif(served[0]) as server:
        server.errors = [message, message]
        assert same(count(served, server, tmp_path), served[3])
    assert len(server.submitted) == len(store_in(tmp_path).run["shards"]) + 2


def test_a_shard_that_is_lost_again_and_again_ends_the_run(served, tmp_path):
    with FakeNdif(served[0]) as server:
        server.errors = [SERVERS[0]] * 50
        with pytest.raises(JobFailed, match=r"was lost 2 times, the last time because Replica was evicted.*; look at"):
            count(served, server, tmp_path, Limits(in_flight=1, attempts=2))
        server.errors = []
        # The same call starts afresh with it.
        assert same(count(served, server, tmp_path), served[3])


def test_a_job_that_raises_is_not_sent_again_and_shows_the_users_message(served, tmp_path):
    client = served[1]
    batch = client.encode([served[2][0].images[0]], ["why"])
    with FakeNdif(served[0]) as server:
        shard = Shard("one", lambda: ([batch], {}))
        with pytest.raises(JobFailed, match=r"no such neuron") as caught:
            run_shards(client.model, Graph((fails_there,)), [shard], remote=server.url, jobs=tmp_path, clock=Hand())
    assert len(server.submitted) == 1
    assert "\n" not in str(caught.value)
    assert store_in(tmp_path).record(store_in(tmp_path).run["shards"][0]).state == "failed"


def test_a_slow_job_is_waited_for_and_a_silent_one_is_sent_again(served, tmp_path):
    with FakeNdif(served[0], rounds=5) as server:
        assert same(count(served, server, tmp_path / "slow", Limits(poll_seconds=10.0)), served[3])
        slow = len(server.submitted)
        assert slow == len(store_in(tmp_path / "slow").run["shards"])
        server.rounds = 10**9
        with pytest.raises(JobFailed, match=r"was lost 2 times, the last time because RUNNING for 60 seconds"):
            count(served, server, tmp_path / "silent", Limits(job_seconds=60.0, attempts=2, poll_seconds=30.0))


def test_time_runs_out_in_one_line_and_the_same_call_goes_on(served, tmp_path):
    with FakeNdif(served[0], rounds=10**9) as server:
        with pytest.raises(
            JobsUnfinished, match=r"not done after 20 seconds; jobs that were sent go on at http.*resume"
        ):
            count(served, server, tmp_path, Limits(in_flight=99, seconds=20.0, poll_seconds=10.0))
        sent = len(server.submitted)
        server.rounds = 0
        assert same(count(served, server, tmp_path), served[3])
        assert len(server.submitted) == sent


def test_a_server_that_stays_away(served, tmp_path):
    with FakeNdif(served[0]) as server:
        server.faults = dict.fromkeys(range(3, 10**4), "drop")
        with pytest.raises(JobsUnfinished, match=r"was unreachable for 100 seconds \(.*\)\. Run this again"):
            count(served, server, tmp_path, Limits(outage_seconds=100.0, poll_seconds=10.0))
        server.faults = {}
        assert same(count(served, server, tmp_path), served[3])
    assert len(server.submitted) == len(store_in(tmp_path).run["shards"])


def test_a_large_result_arrives(served, tmp_path):
    client = served[1]
    batch = client.encode([served[2][0].images[0]] * 2, ["why", "is it red?"])
    graph = keep.at("llm.mlp.act") | count_active
    with FakeNdif(served[0]) as server:
        shard = Shard("large", lambda: ([batch] * 90, {"note": 1}))
        ((values, facts),) = run_shards(client.model, graph, [shard], remote=server.url, jobs=tmp_path, clock=Hand())
        assert max(map(len, server.results.values())) > 0
    local = served[4].run(graph, [batch] * 90)
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.stat().st_size > 8 * 2**20
    assert facts == {"note": 1}
    kept = values["keep", "llm.mlp.act"]
    assert len(kept) == 90
    assert all(torch.equal(one, other) for one, other in zip(kept, local["keep", "llm.mlp.act"], strict=True))
    assert torch.equal(values["count_active", "llm.mlp.act"], local["count_active", "llm.mlp.act"])


@reads("llm.mlp.act", over="list")
def described(act):
    return {
        "wide": act.shape[-1] > 1,
        "mean": act.mean(),
        "note": "gate",
        "nothing": None,
        "sizes": [act.shape[-1], {"half": act.shape[-1] / 2}],
        "aliased": (act[..., :2], True),
    }


@reads("llm.mlp.act", over="sum", weight=batch_field("weight"))
def tallied(act, weight):
    return {"tokens": weight.sum(), "calls": 1, "wide": act.shape[-1] > 1}


def test_a_read_may_return_numbers_flags_and_text_beside_tensors(served, tmp_path):
    client, here = served[1], served[4]
    batch = client.encode([served[2][0].images[0]], ["why"])
    graph = described | tallied
    with FakeNdif(served[0]) as server:
        shard = Shard("plain", lambda: ([batch] * 2, {}))
        ((values, _),) = run_shards(client.model, graph, [shard], remote=server.url, jobs=tmp_path, clock=Hand())
    layers = here.architecture.place("llm.mlp.act").layers
    local = here.run(graph, [batch] * 2)
    for found in (values, local):
        first, second = found["described", "llm.mlp.act"]
        assert first["wide"] == [True] * layers
        assert first["note"] == ["gate"] * layers
        assert first["nothing"] == [None] * layers
        assert first["sizes"] == [[48] * layers, {"half": [24.0] * layers}]
        assert first["aliased"][1] == [True] * layers
        assert first["mean"].shape == (layers,)
        assert second["note"] == first["note"]
        # Two batches, one call each; layer by layer, as tensors are.
        assert found["tallied", "llm.mlp.act"]["calls"] == [2] * layers
        assert found["tallied", "llm.mlp.act"]["wide"] == [2] * layers
        one = local["described", "llm.mlp.act"][0]
        assert torch.equal(first["mean"], one["mean"])
        assert torch.equal(first["aliased"][0], one["aliased"][0])


CLIENT = """
import sys
sys.path.insert(0, {tests!r})
import mmneuron_lens, torch
from test_jobs import CLIENTS_LIMITS
from mmneuron_lens import Lens
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.identify import count_domain
samples, _ = read_folder({corpus!r})
lens = Lens.weightless({model!r})
count_domain(lens, samples, batch_size=2, remote={url!r}, jobs={jobs!r}, limits=CLIENTS_LIMITS)
"""
CLIENTS_LIMITS = Limits(in_flight=3, grace_seconds=5.0, poll_seconds=0.01)


def test_a_killed_client_started_again_loses_nothing(served, tmp_path):
    tests, corpus = str(Path(__file__).parent), str(served[2][0].images[0].parent.parent)
    facts = {"tests": tests, "corpus": corpus, "model": served[4].model.repo, "jobs": str(tmp_path)}
    with FakeNdif(served[0]) as server:
        code = CLIENT.format(url=server.url, **facts)
        client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        # Three are sent, three are asked about twice and fetched; then the client dies in the middle of a request.
        server.faults = {10: lambda handler: os.kill(client.pid, signal.SIGKILL) or "drop"}
        assert client.wait() == -signal.SIGKILL
        store = store_in(tmp_path)
        done = [key for key in store.run["shards"] if store.is_done(key)]
        flying = [store.record(key).job for key in store.run["shards"] if key not in done and store.record(key).job]
        assert set(flying) <= set(server.submitted)
        server.faults = {}
        assert same(count(served, server, tmp_path), served[3])
    # The one in the making, at most, was sent without being remembered.
    assert len(server.submitted) <= len(store.run["shards"]) + 1
    assert set(flying) <= set(server.ran)


def test_two_clients_do_not_share_a_run(served, tmp_path):
    with FakeNdif(served[0]) as server:
        count(served, server, tmp_path)
        with store_in(tmp_path).alone(), pytest.raises(JobsBusy, match="another process is at work on these jobs"):
            count(served, server, tmp_path)


def test_an_unserved_model_is_refused_before_anything_is_sent(served, tmp_path):
    with FakeNdif(served[0]) as server:
        server.key = server.key.replace("tiny", "other")
        with pytest.raises(LookupError, match="does not serve"):
            count(served, server, tmp_path)
        assert server.submitted == []
    with pytest.raises(ConnectionError, match="No NDIF server answers"):
        count(served, server, tmp_path)


def test_bad_images_are_named_also_when_another_process_counted_them(served, tmp_path):
    folder = write_corpus(tmp_path / "corpus", ("common",))
    file = folder / "images" / "common2.png"
    file.write_bytes(file.read_bytes()[:-2000])
    model, client, _, _, here = served
    with FakeNdif(model) as server:
        for _ in range(2):
            samples, problems = read_folder(folder)
            counts = count_domain(
                client, samples, remote=server.url, jobs=tmp_path / "jobs", clock=Hand(), problems=problems
            )
            assert (counts.samples, len(problems)) == (8, 2)
    samples, problems = read_folder(folder)
    assert same(counts, count_domain(here, samples, problems=problems))


def test_the_key_of_a_server_is_nowhere_on_disk(served, tmp_path, monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "secret-0123456789")
    with FakeNdif(served[0]) as server:
        count(served, server, tmp_path)
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not any(b"secret-0123456789" in content for content in written)


def test_what_a_job_returns_survives_the_disk(tmp_path):
    tree = {
        "values": {("a", "llm.mlp.act"): {"x": torch.arange(3)}, ("b", "s"): (torch.ones(2), torch.tensor(3.0))},
        "answers": [torch.tensor([1, 2])],
        "logits": [],
    }
    write_returned(tmp_path / "one.safetensors", tree, {"counted": ["1"]})
    found, facts = read_returned(tmp_path / "one.safetensors")
    assert facts == {"counted": ["1"]}
    assert list(found["values"]) == [("a", "llm.mlp.act"), ("b", "s")]
    assert torch.equal(found["values"]["a", "llm.mlp.act"]["x"], torch.arange(3))
    assert isinstance(found["values"]["b", "s"], tuple)
    assert found["logits"] == []
    with pytest.raises(TypeError, match=r"returned\['values'\] is a set; a read returns tensors"):
        write_returned(tmp_path / "two.safetensors", {"values": {1}}, {})


def test_the_identity_of_a_job_is_what_it_computes():
    def add(value):
        return value + 1

    def add_too(value):
        return value + 1

    def take(value):
        return value - 1

    assert digest(add) == digest(add_too) != digest(take)
    assert digest({"a": torch.ones(2)}) == digest({"a": torch.ones(2)}) != digest({"a": torch.ones(2).long()})
    assert digest([1, 23]) != digest([12, 3])
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(frozenset((1, 2, 3))) == digest(frozenset((3, 2, 1)))
    with pytest.raises(TypeError, match="is not plain data"):
        digest(object())


def command(*words: str):
    return CliRunner().invoke(jobs_app, list(words))


def test_the_command_lists_watches_cancels_and_resumes(served, tmp_path):
    with FakeNdif(served[0], rounds=10**9) as server:
        with pytest.raises(JobsUnfinished):
            count(served, server, tmp_path, Limits(in_flight=2, seconds=15.0, poll_seconds=10.0))
        store = store_in(tmp_path)
        name, shards = store.folder.name, len(store.run["shards"])
        listed = command("list", "--folder", str(tmp_path)).output
        assert f"{name}  counting common at {server.url}: {shards} shards, 2 submitted, {shards - 2} waiting" in listed
        watched = command("watch", name[:5], "--once", "--folder", str(tmp_path)).output
        assert watched.count("RUNNING") == 2
        server.rounds = 0
        resumed = command("resume", str(store.folder)).output
        assert f"2 done, {shards - 2} waiting" in resumed
        assert "run the same call again, and only what is missing is sent" in resumed
        assert f"{shards - 2} cancelled, 2 done" in command("cancel", str(store.folder)).output
        assert same(count(served, server, tmp_path), served[3])
        assert len(server.submitted) == shards
        assert "All results are on disk" in command("resume", str(store.folder)).output
        missing = command("watch", "zzz", "--folder", str(tmp_path))
        assert missing.exit_code == 1
        assert "no run named 'zzz'" in missing.output
        assert json.loads((store.folder / "run.json").read_text())["again"] == []
    assert "No jobs under" in command("list", "--folder", str(tmp_path / "none")).output
