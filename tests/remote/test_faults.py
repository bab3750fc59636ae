"""A live server loses a service in the middle of a sharded run: the counts are those of an undisturbed one.

Needs a server of this machine's own: MMNEURON_NDIF_URL and the state folder of `mmneuron ndif up` ($MMNEURON_NDIF_STATE
or the default). Two of the faults are here; `make soak` runs all, several times each.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

URL = os.environ.get("MMNEURON_NDIF_URL", "")
IN_CI = ("API killed", "client killed")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    from drawn_corpus import write_corpus
    from faults import Live, undisturbed

    from mmneuron_lens.ndif.ownership import own
    from mmneuron_lens.ndif.state import State, default_folder

    if not URL:
        pytest.skip("no live server: set MMNEURON_NDIF_URL to what `mmneuron ndif up` prints")
    state = State(default_folder())
    server = state.server()
    if server is None or not own(server):
        said = f"{state.folder} holds no running server: set MMNEURON_NDIF_STATE to the folder of `mmneuron ndif up`"
        # Who names a folder means these tests to run.
        (pytest.fail if os.environ.get("MMNEURON_NDIF_STATE") else pytest.skip)(said)
    python = Path(os.environ.get("MMNEURON_NDIF_ENV") or state.folder / "environment") / "bin" / "python"
    found = Live(state, URL, python)
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), ("common",), images=24)
    return found, corpus, undisturbed(found, corpus)


@pytest.mark.parametrize("name", IN_CI)
def test_counts_survive(live, name, tmp_path):
    from faults import FAULTS, equal

    server, corpus, expected = live
    assert equal(FAULTS[name](server, corpus, tmp_path), expected)
