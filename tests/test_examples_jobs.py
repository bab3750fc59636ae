"""Examples through jobs on a server: the first pass in jobs, the second as runs, taken up; the same as here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_lens
from examples_corpus import write_example_corpus
from fake_ndif import FakeNdif, served_model

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.neuron_words import WrittenWords
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.experiments.count import plan_count
from mmneuron_lens.experiments.read_tops import read_tops
from mmneuron_lens.experiments.tops import listed
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runtime.jobs.watch import Clock, Limits
from mmneuron_lens.runtime.transport import RemoteFailed


class Hand(Clock):
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Any:
    """A served model, a client without weights, the same model here, and questions."""
    folder = tmp_path_factory.mktemp("served")
    tiny = tiny_lens("llava_next")
    tiny.module.save_pretrained(folder / "tiny")
    tiny.processor.save_pretrained(folder / "tiny")
    client = Lens.weightless(folder / "tiny")
    client.nnsight.to_model_key()
    return served_model(folder / "tiny"), client, Lens(folder / "tiny"), write_example_corpus(folder / "corpus", 1)


def there(client: Lens, url: str) -> Lens:
    lens = Lens._of(replace(client.model, served=None))
    lens._remote = url
    return lens


def masks_of(lens: Lens) -> dict[str, torch.Tensor]:
    masks = {site: torch.zeros(3, 48, dtype=torch.bool) for site in ("llm.mlp.act",)}
    masks["llm.mlp.act"][[0, 2], [5, 7]] = True
    return masks


def test_a_run_through_jobs(made, tmp_path):
    model, client, here, samples = made
    masks, samples = masks_of(here), {"medical": samples["medical"]}
    jobs = {"limits": Limits(in_flight=2, poll_seconds=1.0), "clock": Hand()}
    due = examples_stage(here, None, samples, Store(None), of=masks, k=2, batch_size=2)
    with FakeNdif(model, rounds=0) as server:
        lens, said = there(client, server.url), list[str]()
        settings: dict[str, Any] = {"of": masks, "k": 2, "batch_size": 2, "jobs": jobs}
        found = examples_stage(lens, None, samples, Store(tmp_path), **settings)
        sent = len(server.submitted)
        assert sent > 2
        examples_stage(lens, None, samples, Store(tmp_path, say=said.append), **settings)
        assert len(server.submitted) == sent
        assert all(line.startswith("already done") for line in said)
    for name, tensor in found.packed()[0].items():
        torch.testing.assert_close(tensor, due.packed()[0][name], rtol=0, atol=0, equal_nan=True)
    words = WrittenWords.load(file_of(tmp_path, "words", lens.name, suffix=".jsonl"))
    assert "has no weights here" in words.missing


def test_a_server_that_names_other_questions_is_refused(made, monkeypatch):
    model, client, here, samples = made
    plan = plan_count(here, samples["medical"][:1], batch_size=3)
    chosen = listed(here, masks_of(here))
    honest = FakeNdif.execute

    def hostile(self: FakeNdif, job: Any) -> Any:
        answer = honest(self, job)
        for one in answer["returned"]["values"]["top_images", "llm.mlp.act"].values():
            one["sample"] += 100
        return answer

    monkeypatch.setattr(FakeNdif, "execute", hostile)
    with FakeNdif(model, rounds=0) as server, pytest.raises(RemoteFailed, match="on a question that was not asked"):
        read_tops(there(client, server.url), plan, chosen, 2, jobs=Jobs(server.url, clock=Hand()))
