"""Jobs survive: whatever breaks on the way, the counts are those of an undisturbed run on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus
from failing_there import fails_there
from fake_ndif import FakeNdif, served_model
from typer.testing import CliRunner

from interventions import Graph, batch_field, count_active, keep, reads
from interventions.errors import InvalidValue
from mmneuron_lens import Counts, Lens, Sample
from mmneuron_lens.batching.gather import WHOLE, Held, Memory, Piece
from mmneuron_lens.batching.remote import chunks_of
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain, plan_count
from mmneuron_lens.runs.count import count_stage, counts_key
from mmneuron_lens.runs.jobs_command import jobs_app
from mmneuron_lens.runs.pieces import KeptPiece
from mmneuron_lens.runs.store import Store, StoreBusy
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.jobs.run import run_jobs
from mmneuron_lens.runtime.jobs.server import JobFailed, is_servers_trouble
from mmneuron_lens.runtime.jobs.watch import Clock, JobsUnfinished, Limits
from mmneuron_lens.wire.describe import describe


class Hand(Clock):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


class Served(NamedTuple):
    """A tiny model in a folder, as the server and as the client see it; a corpus, and its counts here."""

    model: Any
    client: Lens
    samples: list[Sample]
    counts: Counts
    here: Lens
    jobs: int


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
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
    jobs = len(chunks_of(plan_count(here, samples, batch_size=2).steps, WHOLE, Memory()))
    return Served(model, client, samples, count_domain(here, samples, batch_size=2), here, jobs)


def there(client: Lens, url: str, facts: Any = None) -> Lens:
    """As `Lens(folder, remote=url)`, the server not asked: `facts` is what it would say of device and weights."""
    lens = Lens._of(replace(client.model, served=facts))
    lens._remote = url
    return lens


def count(served: Served, server, folder: Path, limits: Limits | None = None, samples=None, facts=None, **settings):
    """The counts of a corpus through a server, kept in a run's folder."""
    limits = limits or Limits(in_flight=3, grace_seconds=30.0, poll_seconds=10.0)
    jobs = {"limits": limits, "clock": Hand()}
    lens, asked = there(served.client, server.url, facts), {"common": samples or served.samples}
    return count_stage(lens, asked, Store(folder), batch_size=2, jobs=jobs, **settings)["common"]


def same(one, other) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


def records_in(folder: Path) -> Records:
    (file,) = folder.rglob("run.json")
    return Records(file.parent)


def test_counts_on_a_server_equal_counts_here_and_nothing_is_asked_twice(served, tmp_path):
    with FakeNdif(served.model) as server:
        first = count(served, server, tmp_path)
        sent, asked = list(server.submitted), server.requests
        again = count(served, server, tmp_path)
    assert same(first, served.counts)
    assert same(again, served.counts)
    assert (server.submitted, server.requests) == (sent, asked)
    assert len(sent) == served.jobs > 3
    assert first.provenance["device"] == "server"


def test_what_a_server_counted_has_the_bytes_of_what_was_counted_here(served, tmp_path):
    with FakeNdif(served.model) as server:
        count(served, server, tmp_path / "there", facts=describe(served.model))
    count_stage(served.here, {"common": served.samples}, Store(tmp_path / "here"), batch_size=2)
    (one,), (other,) = ([*(tmp_path / side).rglob("*.safetensors")] for side in ("here", "there"))
    assert one.relative_to(tmp_path / "here") == other.relative_to(tmp_path / "there")
    assert one.read_bytes() == other.read_bytes()
    # Nothing of the jobs is left.
    assert {file.suffix for file in (tmp_path / "there").rglob("*") if file.is_file()} == {".lock", ".safetensors"}


FAULTS = {
    "a connection dropped while sending": {1: "drop", 4: "drop"},
    "a connection dropped while asking": {6: "drop", 7: "drop", 9: "drop"},
    "an internal error": {2: 500, 5: 500, 8: 500},
    "a server that reconnects": dict.fromkeys(range(3, 12), 503),
}


@pytest.mark.parametrize("name", FAULTS)
def test_troubles_on_the_way_cost_no_job(served, tmp_path, name):
    with FakeNdif(served.model) as server:
        server.faults = FAULTS[name]
        assert same(count(served, server, tmp_path), served.counts)
    # None is lost, so each job is sent once.
    assert len(server.submitted) == served.jobs


def test_a_restarted_server_that_forgot_is_sent_only_what_is_missing(served, tmp_path):
    with FakeNdif(served.model) as server:
        server.faults = {8: lambda handler: server.forget() or "drop"}
        assert same(count(served, server, tmp_path), served.counts)
    assert served.jobs < len(server.submitted) <= served.jobs + 3
    assert len(server.ran) <= served.jobs + 3


def test_an_unknown_job_is_given_time_before_it_counts_as_lost(served, tmp_path):
    hidden = {}

    with FakeNdif(served.model) as server:

        def hide(handler):
            hidden.update(server.jobs)
            server.jobs.clear()

        server.faults = {4: hide, 12: lambda handler: server.jobs.update(hidden)}
        # A store that comes back within the grace: nothing is lost.
        assert same(
            count(served, server, tmp_path, Limits(in_flight=3, grace_seconds=1000.0, poll_seconds=10.0)), served.counts
        )
    assert len(server.submitted) == served.jobs


def test_a_result_that_is_gone_is_computed_again(served, tmp_path):
    with FakeNdif(served.model, rounds=0) as server:
        # Requests 1 to 3 send, 4 asks for the first job, 5 would fetch its result.
        server.faults = {5: lambda handler: server.results.clear()}
        assert same(count(served, server, tmp_path), served.counts)
    assert len(server.submitted) == served.jobs + 1


SERVERS = (
    "Replica was evicted while processing your request. Sorry for the inconvenience. Please try again later.",
    "Your job was cancelled or preempted by the server.",
    "Traceback (most recent call last):\nbotocore.exceptions.EndpointConnectionError: Could not connect\n",
    "Traceback (most recent call last):\nConnectionRefusedError: [Errno 111] Connection refused\n",
)


@pytest.mark.parametrize("message", SERVERS)
def test_a_job_that_fell_victim_to_the_server_is_sent_again(served, tmp_path, message):
    assert is_servers_trouble(message)
    with FakeNdif(served.model) as server:
        server.errors = [message, message]
        assert same(count(served, server, tmp_path), served.counts)
    assert len(server.submitted) == served.jobs + 2


def test_a_job_that_is_lost_again_and_again_ends_the_run(served, tmp_path):
    with FakeNdif(served.model) as server:
        server.errors = [SERVERS[0]] * 50
        with pytest.raises(JobFailed, match=r"was lost 2 times, the last time because Replica was evicted.*; look at"):
            count(served, server, tmp_path, Limits(in_flight=1, attempts=2))
        server.errors = []
        # The same call starts afresh with it.
        assert same(count(served, server, tmp_path), served.counts)


def returned(client: Lens, graph: Graph, batches: list, server, folder: Path) -> dict:
    """What one job comes to."""
    kept = {}
    facts = {"note": 1}
    run_jobs(
        client.model, graph, {"one": lambda: (batches, facts)}, lambda name, *found: kept.update({name: found}),
        remote=server.url, records=Records(folder), clock=Hand(),
    )  # fmt: skip
    values, told = kept["one"]
    assert told == facts
    return values


def test_a_job_that_raises_is_not_sent_again_and_shows_the_users_message(served, tmp_path):
    client = served.client
    batch = client.encode([served.samples[0].images[0]], ["why"])
    with FakeNdif(served.model) as server, pytest.raises(JobFailed, match=r"no such neuron") as caught:
        returned(client, Graph((fails_there,)), [batch], server, tmp_path)
    assert len(server.submitted) == 1
    assert "\n" not in str(caught.value)
    assert records_in(tmp_path).run.jobs == ("one",)
    assert records_in(tmp_path).record("one").state == "failed"


def test_a_slow_job_is_waited_for_and_a_silent_one_is_sent_again(served, tmp_path):
    with FakeNdif(served.model, rounds=5) as server:
        assert same(count(served, server, tmp_path / "slow", Limits(poll_seconds=10.0)), served.counts)
        slow = len(server.submitted)
        assert slow == served.jobs
        server.rounds = 10**9
        with pytest.raises(JobFailed, match=r"was lost 2 times, the last time because RUNNING for 60 seconds"):
            count(served, server, tmp_path / "silent", Limits(job_seconds=60.0, attempts=2, poll_seconds=30.0))


def test_time_runs_out_in_one_line_and_the_same_call_goes_on(served, tmp_path):
    with FakeNdif(served.model, rounds=10**9) as server:
        with pytest.raises(
            JobsUnfinished, match=r"not done after 20 seconds; jobs that were sent go on at http.*resume"
        ):
            count(served, server, tmp_path, Limits(in_flight=99, seconds=20.0, poll_seconds=10.0))
        sent = len(server.submitted)
        server.rounds = 0
        assert same(count(served, server, tmp_path), served.counts)
        assert len(server.submitted) == sent


def test_a_server_that_stays_away(served, tmp_path):
    with FakeNdif(served.model) as server:
        server.faults = dict.fromkeys(range(3, 10**4), "drop")
        with pytest.raises(JobsUnfinished, match=r"was unreachable for 100 seconds \(.*\)\. Run this again"):
            count(served, server, tmp_path, Limits(outage_seconds=100.0, poll_seconds=10.0))
        server.faults = {}
        assert same(count(served, server, tmp_path), served.counts)
    assert len(server.submitted) == served.jobs


def test_a_large_result_arrives(served, tmp_path):
    client = served.client
    batch = client.encode([served.samples[0].images[0]] * 2, ["why", "is it red?"])
    graph = keep.at("llm.mlp.act") | count_active
    with FakeNdif(served.model) as server:
        values = returned(client, graph, [batch] * 90, server, tmp_path)
    local = served.here.run(graph, [batch] * 90)
    assert sum(one.numel() * one.element_size() for one in values["keep", "llm.mlp.act"]) > 8 * 2**20
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
    client, here = served.client, served.here
    batch = client.encode([served.samples[0].images[0]], ["why"])
    graph = described | tallied
    with FakeNdif(served.model) as server:
        values = returned(client, graph, [batch] * 2, server, tmp_path)
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
import mmneuron_lens
from test_jobs import CLIENTS_LIMITS, there
from mmneuron_lens import Lens
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.store import Store
samples, _ = read_folder({corpus!r})
lens = there(Lens.weightless({model!r}), {url!r})
count_stage(lens, {{"common": samples}}, Store({run!r}), batch_size=2, jobs={{"limits": CLIENTS_LIMITS}})
"""
CLIENTS_LIMITS = Limits(in_flight=3, grace_seconds=5.0, poll_seconds=0.01)


def test_a_killed_client_started_again_loses_nothing(served, tmp_path):
    tests, corpus = str(Path(__file__).parent), str(served.samples[0].images[0].parent.parent)
    facts = {"tests": tests, "corpus": corpus, "model": served.here.model.repo, "run": str(tmp_path)}
    with FakeNdif(served.model) as server:
        code = CLIENT.format(url=server.url, **facts)
        client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        # Three are sent, three are asked about twice and fetched; then the client dies in the middle of a request.
        server.faults = {10: lambda handler: os.kill(client.pid, signal.SIGKILL) or "drop"}
        assert client.wait() == -signal.SIGKILL
        done = list(tmp_path.rglob("*.pieces/*.safetensors"))
        flying = [record.job for record in records_in(tmp_path).known() if record.job]
        assert flying
        assert done
        assert set(flying) <= set(server.submitted)
        server.faults = {}
        assert same(count(served, server, tmp_path), served.counts)
    # The one in the making, at most, was sent without being remembered.
    assert len(server.submitted) <= served.jobs + 1
    assert set(flying) <= set(server.ran)


def test_two_clients_do_not_share_a_run(served, tmp_path):
    with FakeNdif(served.model) as server:
        plan = plan_count(there(served.client, server.url), served.samples, batch_size=2)
        with (
            Store(tmp_path).writing(counts_key(plan)),
            pytest.raises(StoreBusy, match=f"is being written by process {os.getpid()} "),
        ):
            count(served, server, tmp_path)
        assert server.requests == 0


def test_an_unserved_model_is_refused_before_anything_is_sent(served, tmp_path):
    with FakeNdif(served.model) as server:
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
    with FakeNdif(served.model) as server:
        for time in range(3):
            samples, problems = read_folder(folder)
            if time == 0:
                # Stopped when a part is there, and another process goes on.
                server.rounds = 10**9
                limits = Limits(in_flight=2, seconds=15.0, poll_seconds=10.0)
                with pytest.raises(JobsUnfinished):
                    count(served, server, tmp_path / "run", limits, samples=samples, problems=problems)
                server.rounds = 0
                continue
            counts = count(served, server, tmp_path / "run", samples=samples, problems=problems)
            assert (counts.samples, len(problems)) == (8, 2)
    samples, problems = read_folder(folder)
    assert same(counts, count_domain(served.here, samples, batch_size=2, problems=problems))


def test_the_key_of_a_server_is_nowhere_on_disk(served, tmp_path, monkeypatch):
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "secret-0123456789")
    with FakeNdif(served.model) as server:
        server.rounds = 10**9
        with pytest.raises(JobsUnfinished):
            count(served, server, tmp_path, Limits(in_flight=9, seconds=15.0, poll_seconds=10.0), again=("count", "x"))
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not any(b"secret-0123456789" in content for content in written)


def test_a_piece_survives_the_disk(tmp_path):
    tensors = {"active/llm.mlp.act": torch.arange(6).reshape(2, 1, 3), "tokens/llm.mlp.act": torch.tensor([5])}
    piece = Piece(7, tensors, ("a", "b"), ("c",), {"kinds": {"llm.mlp.act": ["image"]}, "steps": 9}, tokens=5)
    KeptPiece(Held(3, 5, piece), "2/4").save(tmp_path / "one.safetensors", {"of": "this"})
    found, key = KeptPiece.load_with_key(tmp_path / "one.safetensors")
    assert key == {"of": "this"}
    assert (found.shard, found.held.first, found.held.last) == ("2/4", 3, 5)
    again = found.held.piece
    assert all(torch.equal(again.tensors[name], value) for name, value in tensors.items())
    # The throughput that was shown is of no use later.
    assert replace(again, tensors={}, tokens=5) == replace(piece, tensors={})


def command(*words: str):
    return CliRunner().invoke(jobs_app, list(words))


def test_the_command_lists_watches_cancels_and_resumes(served, tmp_path, monkeypatch):
    run, jobs = str(tmp_path / "runs" / "mine"), served.jobs
    with FakeNdif(served.model, rounds=10**9) as server:
        with pytest.raises(JobsUnfinished):
            count(served, server, Path(run), Limits(in_flight=2, seconds=15.0, poll_seconds=10.0))
        said = (
            f"{run}/counts/tiny/common  counting common at {server.url}: {jobs} jobs, 2 submitted, {jobs - 2} waiting"
        )
        for place in (run, str(tmp_path)):
            assert said in command("list", place).output
        assert command("watch", run, "--once").output.count("RUNNING") == 2
        server.rounds = 0
        resumed = command("resume", run).output
        assert f"2 submitted, {jobs - 2} waiting" in resumed
        assert "run the same call again, and only what is missing is sent" in resumed
        assert records_in(tmp_path).run.again == ()
        # One result arrives; the others are cancelled, which a later call takes as a fresh start.
        server.errors = []
        server.rounds = 10**9
        first = server.submitted[0]
        server.jobs[first]["last"] = server.run(first, server.jobs[first])
        with pytest.raises(JobsUnfinished):
            count(served, server, Path(run), Limits(in_flight=2, seconds=15.0, poll_seconds=10.0))
        assert f"{jobs} jobs, 1 done, 2 submitted, {jobs - 3} waiting" in command("list", run).output
        assert len(server.submitted) == 3
        assert f"{jobs - 1} jobs cancelled; results that are there stay" in command("cancel", run).output
        assert f"{jobs} jobs, {jobs - 1} cancelled, 1 done" in command("list", run).output
        server.rounds = 0
        assert same(count(served, server, Path(run)), served.counts)
        assert "No jobs under" in command("list", run).output
        missing = command("watch", run)
        assert isinstance(missing.exception, InvalidValue)
        assert "holds no jobs in flight" in str(missing.exception)
    assert "No jobs under" in command("list", str(tmp_path / "none")).output
