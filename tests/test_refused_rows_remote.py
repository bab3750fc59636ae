"""Rows that a server's model refuses: the job is sent again by parts, the row is named, the others count as here."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import row, write_images, write_rows
from fake_ndif import FakeNdif, served_model

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.counts import LEFT_OUT
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.experiments.means import mean_activations
from mmneuron_lens.neurons.selection import select
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime import many
from mmneuron_lens.runtime.jobs.server import JobFailed
from mmneuron_lens.runtime.jobs.watch import Clock, JobsUnfinished, Limits
from mmneuron_lens.runtime.remote import RemoteFailed, RemoteRaised


class Hand(Clock):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


class Served(NamedTuple):
    """A tiny model as the server, the client and this machine see it."""

    model: Any
    client: Lens
    here: Lens
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    made = tiny_lens("llava_next")
    made.module.save_pretrained(folder / "tiny")
    made.processor.save_pretrained(folder / "tiny")
    client = Lens.weightless(folder / "tiny")
    # Its folder is its name; the client has to be first to say so.
    client.nnsight.to_model_key()
    return Served(served_model(folder / "tiny"), client, Lens(folder / "tiny"), folder)


@contextmanager
def raising(served: Served, error: Exception, character: str = "~"):
    """A fault of the server's model: its forward raises for a prompt with this character."""
    (number,) = served.client.processor.tokenizer.convert_tokens_to_ids([character])
    seen = []

    def hook(_module, given):
        if (given[0] == number).any():
            seen.append(len(given[0]))
            raise error

    handle = served.model._module.get_input_embeddings().register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def corpus(folder: Path, bad: dict[int, str], questions: int = 12):
    """A corpus with bad rows at these lines; and its good samples."""
    write_images(folder, "common", 4)
    rows = [
        row("common", number % 4, bad.get(number + 1, f"Is it red{'?' * (number % 3)}"), id=f"row {number + 1}")
        for number in range(questions)
    ]
    samples, problems = read_folder(write_rows(folder, rows))
    return samples, [one for one in samples if one.id not in {f"row {line}" for line in bad}], problems


def there(served: Served, url: str) -> Lens:
    lens = Lens._of(replace(served.client.model, served=None))
    lens._remote = url
    return lens


def count(served: Served, server: FakeNdif, folder: Path, samples, problems, **limits):
    jobs = {"limits": Limits(**{"in_flight": 2, "poll_seconds": 10.0, **limits}), "clock": Hand()}
    lens = there(served, server.url)
    return count_stage(lens, {"common": samples}, Store(folder), batch_size=2, jobs=jobs, problems=problems)["common"]


def same(one, other) -> bool:
    return one.samples == other.samples and all(
        torch.equal(one.active[site], other.active[site]) and torch.equal(one.tokens[site], other.tokens[site])
        for site in one.active.keys() | other.active.keys()
    )


@pytest.mark.parametrize("lines", [{1}, {12}, {5, 6}, {1, 2, 3, 7, 11}], ids=str)
def test_jobs_that_raise_for_a_row_are_sent_again_without_it(served, tmp_path, lines):
    bad = {line: f"a ~ b{line}" for line in lines}
    samples, good, problems = corpus(tmp_path / "corpus", bad)
    expected = count_domain(served.here, good, batch_size=2)
    with FakeNdif(served.model, rounds=0) as server, raising(served, IndexError("index out of range")) as tried:
        found = count(served, server, tmp_path / "run", samples, problems)
        failed = len(tried)
        assert same(found, expected)
        assert sorted(one.line for one in problems) == sorted(lines)
        assert all("the model cannot run it (http://127.0.0.1:" in one.says for one in problems)
        assert all("IndexError: index out of range" in one.says for one in problems)
        assert found.provenance[LEFT_OUT] == sorted(f"row {line}" for line in lines)
        # Asked for again, and gone on with after its pieces: named again, nothing is sent.
        sent = len(server.submitted)
        again = read_folder(tmp_path / "corpus")[1]
        assert same(count(served, server, tmp_path / "run", samples, again), expected)
    assert (len(server.submitted), len(tried)) == (sent, failed)
    assert {one.line for one in again} == lines
    # Whole, in halves, and alone.
    assert failed <= 4 * len(lines)


def test_a_batch_is_checked_before_it_is_sent(served, tmp_path):
    bad = {1: "why " * 600, 4: "a </s>", 9: "w" * 600}
    samples, good, problems = corpus(tmp_path / "corpus", bad)
    with FakeNdif(served.model, rounds=0) as server:
        found = count(served, server, tmp_path / "run", samples, problems)
        sent = len(server.submitted)
        expected = count(served, server, tmp_path / "good", good, None)
        assert len(server.submitted) <= 2 * sent
    assert same(found, expected)
    assert same(found, count_domain(served.here, good, batch_size=2))
    assert sorted(one.line for one in problems) == [1, 4, 9]


def test_a_job_in_flight_keeps_the_reasons_of_those_that_were_not_sent(served, tmp_path):
    samples, good, problems = corpus(tmp_path / "corpus", {2: "why " * 600})
    with FakeNdif(served.model, rounds=10**6) as server:
        with pytest.raises(JobsUnfinished):
            count(served, server, tmp_path / "run", samples, problems, seconds=50.0, in_flight=8)
        server.rounds, sent = 0, len(server.submitted)
        named = read_folder(tmp_path / "corpus")[1]
        found = count(served, server, tmp_path / "run", samples, named, in_flight=8)
        assert len(server.submitted) == sent
        last = read_folder(tmp_path / "corpus")[1]
        count(served, server, tmp_path / "run", samples, last)
    assert same(found, count_domain(served.here, good, batch_size=2))
    assert found.provenance["reasons"].keys() == {"row 2"}
    assert list(map(str, last)) == list(map(str, problems))


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 2 GiB", "activations are not finite"])
def test_a_server_in_trouble_is_not_about_a_row(served, tmp_path, text):
    samples, _, problems = corpus(tmp_path / "corpus", {3: "a ~"})
    with (
        FakeNdif(served.model, rounds=0) as server,
        raising(served, RuntimeError(text)) as tried,
        pytest.raises(JobFailed, match=text),
    ):
        count(served, server, tmp_path / "run", samples, problems)
    assert (len(tried), len(problems)) == (1, 0)


def test_without_problems_a_job_that_raises_ends_it(served, tmp_path):
    samples, _, _ = corpus(tmp_path / "corpus", {3: "a ~"})
    with (
        FakeNdif(served.model, rounds=0) as server,
        raising(served, ValueError("no")) as tried,
        pytest.raises(JobFailed, match=r"^\d{6}-\d{6}, job .*: ValueError: no"),
    ):
        count(served, server, tmp_path / "run", samples, None)
    assert len(tried) == 1


def test_rows_that_all_raise_end_with_the_first_reason(served, tmp_path):
    samples, _, problems = corpus(tmp_path / "corpus", {1: "~", 2: "~~", 3: "~~~"}, 3)
    with (
        FakeNdif(served.model, rounds=0) as server,
        raising(served, ValueError("no")),
        pytest.raises(
            InvalidValue, match=r"^no sample of common could be read; .* The first: the model cannot run it \(h"
        ),
    ):
        count(served, server, tmp_path / "run", samples, problems)
    assert len(problems) == 3


def test_a_lost_connection_is_not_about_a_row(served, tmp_path):
    samples, _, problems = corpus(tmp_path / "corpus", {})
    with FakeNdif(served.model, rounds=0) as server:
        server.faults = dict.fromkeys(range(4, 10**4), "drop")
        with pytest.raises(JobsUnfinished):
            count(served, server, tmp_path / "run", samples, problems, outage_seconds=20.0)
    assert not len(problems)


def test_blocking_runs_leave_out_what_raises_there(served, tmp_path, monkeypatch):
    """Means and answers go through `lens.run` and `lens.generate`."""

    def run_remote(model, graph, batches, sources, logits, *, remote, generation, between):
        batches = list(batches)
        if any("~" in text for batch in batches for text in batch.given[1]):
            raise RemoteRaised(f"{remote}: IndexError: index out of range")
        if generation is None:
            return served.here.run(graph, batches)
        return served.here.generate(graph, batches, **generation)

    genuine = many.run_many

    def run_many(model, graphs, batches, sources, logits, remote, generation, max_rows):
        batches = list(batches)
        if remote and any("~" in text for batch in batches for text in batch.given[1]):
            raise RemoteRaised(f"{remote}: IndexError: index out of range")
        return genuine(served.here.model, graphs, batches, sources, logits, False, generation, max_rows)

    samples, good, problems = corpus(tmp_path / "corpus", {2: "a ~", 7: "~"}, 8)
    counts = [count_domain(served.here, some) for some in (good, [replace(good[0], domain="medical")])]
    selection = select(counts, fraction=0.3, percentile=0.6)
    settings = {"random_draws": 1, "max_new_tokens": 2}
    expected = mean_activations(served.here, {"common": good}, batch_size=4)
    answers = ablate(served.here, selection, {"common": good}, batch_size=4, **settings)
    monkeypatch.setattr("mmneuron_lens.runtime.remote.run_remote", run_remote)
    monkeypatch.setattr(many, "run_many", run_many)
    lens = there(served, "http://there")
    found = mean_activations(lens, {"common": samples}, batch_size=4, problems=problems)
    told = ablate(lens, selection, {"common": samples}, batch_size=4, problems=problems, **settings)
    assert all(torch.allclose(found.values[site], expected.values[site], atol=1e-6) for site in expected.values)
    assert [(one.id, one.condition, one.answer) for one in told] == [
        (one.id, one.condition, one.answer) for one in answers
    ]
    assert sorted(one.line for one in problems) == [2, 7]
    monkeypatch.setattr("mmneuron_lens.runtime.remote.run_remote", lambda *_, **__: lost())
    problems = read_folder(tmp_path / "corpus")[1]
    with pytest.raises(RemoteFailed, match="the connection failed"):
        mean_activations(lens, {"common": samples}, batch_size=4, problems=problems)
    assert not len(problems)


def lost():
    raise RemoteFailed("http://there: the connection failed; try again")


def test_a_job_that_raised_is_told_from_a_connection_that_failed(served):
    from nnsight.intervention.backends.remote import RemoteError

    from mmneuron_lens.runtime.remote import in_one_line

    class Backend:
        host = "http://there"

    for text, kind in {
        "Traceback (most recent call last):\n  x\nIndexError: index out of range": RemoteRaised,
        "Traceback (most recent call last):\n  x\nredis.exceptions.ConnectionError: gone": RemoteFailed,
        "the job was cancelled or preempted": RemoteFailed,
        "model is not loaded": RemoteFailed,
    }.items():
        error = RemoteError("short")
        error.traceback = text  # type: ignore[attr-defined]
        with pytest.raises(RemoteFailed) as caught, in_one_line(Backend()):
            raise error
        assert type(caught.value) is kind
