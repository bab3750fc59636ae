"""Commands with `--remote` against a running NDIF server leave the artifacts that they leave without it."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from drawn_corpus import write_corpus
from typer.testing import CliRunner

from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.cli import app
from mmneuron_lens.ndif.state import State, default_folder
from mmneuron_lens.runs.folder import file_of

URL = os.environ.get("MMNEURON_NDIF_URL", "").rstrip("/")
pytestmark = pytest.mark.skipif(not URL, reason="MMNEURON_NDIF_URL is not set")


def call(*words) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", ["llava-next", "instructblip"])
def test_count(name, tmp_path, monkeypatch):
    words = ["count", "--model", f"embedded/{name}", "--corpus", write_corpus(tmp_path / "corpus"), "--batch-size", "2"]
    call(*words, "--out", tmp_path / "here")
    remotely = [*words, "--out", tmp_path / "there", "--remote", URL]
    # What `mmneuron jobs resume` would run again.
    monkeypatch.setattr(sys, "argv", ["mmneuron", *map(str, remotely)])
    call(*remotely)
    # What is finished has no jobs any more.
    assert "No jobs under" in call("jobs", "list", tmp_path / "there")
    sandboxed = State(default_folder()).known().sandbox
    for domain in ("common", "medical"):
        here, there = (file_of(tmp_path / side, "counts", f"embedded/{name}", domain) for side in ("here", "there"))
        one, other = Counts.load(here), Counts.load(there)
        assert (one.model, one.samples) == (other.model, other.samples)
        assert one.active.keys() == other.active.keys()
        assert all(torch.equal(one.active[site], other.active[site]) for site in one.active)
        assert all(torch.equal(one.tokens[site], other.tokens[site]) for site in one.tokens)
        differing = {key for key in one.provenance if one.provenance[key] != other.provenance[key]}
        # A sandbox sees neither device nor weights.
        assert differing == ({"device", "fingerprint"} if sandboxed else set())
        assert (here.read_bytes() == there.read_bytes()) != sandboxed


def test_what_the_server_decides_is_refused_here(tmp_path):
    words = ["count", "--model", "embedded/llava-next", "--corpus", str(write_corpus(tmp_path / "corpus"))]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--remote", URL, "--dtype", "bfloat16"])
    assert done.exit_code == 1
    assert "dtype, device, device_map and quantize are the server's" in done.output
