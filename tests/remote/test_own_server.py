"""A running server of one's own: keeps no key, is closed to other users, computes with its threads, and is repaired.

Needs the state folder of `mmneuron ndif up` beside MMNEURON_NDIF_URL: $MMNEURON_NDIF_STATE or the default.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import httpx
import nnsight
import pytest
import torch
from conftest import mixed_batch, pictures
from equality import assert_same_results
from faults import Live
from own_server import FAKE, asked, is_running, start_foreign

from interventions import count_active, reads
from mmneuron_lens import Lens
from mmneuron_lens.ndif import services
from mmneuron_lens.ndif.environment import server_python
from mmneuron_lens.ndif.state import State, default_folder

URL = os.environ.get("MMNEURON_NDIF_URL", "").rstrip("/")
pytestmark = pytest.mark.skipif(not URL, reason="MMNEURON_NDIF_URL is not set")
NAME = "embedded/llava-next"
KEY = "0f1e2d3c-key-of-a-client-4b5a6978"


@pytest.fixture
def state(monkeypatch):
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    found = State(default_folder())
    if found.server() is None:
        pytest.skip(f"{found.folder} holds no server: set MMNEURON_NDIF_STATE to the folder of `mmneuron ndif up`")
    return found


def files(state):
    """Everything the server keeps, without the packages of its environment."""
    for folder in (state.folder, state.known().temporary):
        for path, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if Path(path, name) != state.folder / "environment"]
            yield from (Path(path, name) for name in (".", *names))


@reads("llm.mlp.act", over="list")
def threads_there(act):
    return torch.tensor([torch.get_num_threads()])


def test_threads_are_those_of_the_server(state):
    lens = Lens.weightless(Lens.embedded("llava-next").model.repo)
    out = lens.run(threads_there, [mixed_batch(lens)], remote=URL)
    assert {int(there) for (there,) in out["threads_there", "llm.mlp.act"][0]} == {state.known().threads}


def test_no_file_holds_a_clients_key_and_none_is_open(state, monkeypatch):
    """A job that returns, one that raises, and requests that the API refuses."""
    from failing_there import fails_there

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)
    lens = Lens.weightless(Lens.embedded("llava-next").model.repo)
    lens.run(count_active, [mixed_batch(lens)], remote=URL)
    with pytest.raises(Exception, match="no such neuron"):
        lens.run(fails_there, [lens.encode(pictures((32, 32)), ["why"])], remote=URL)
    headers = {"ndif-api-key": KEY}
    assert httpx.get(f"{URL}/whoami", headers=headers).status_code == 200
    assert httpx.get(f"{URL}/response/none", headers=headers).status_code == 404
    for data in (f'{{"api_key": "{KEY}"}}', f'{{"api_key": ["{KEY}"]}}', f'"{KEY}"', f"{{{KEY}"):
        answer = httpx.post(f"{URL}/request", headers=headers, data={"data": data}, files={"blob": b"nothing"})
        assert answer.status_code == 422
    held = [path for path in files(state) if path.is_file()]
    assert {"api.log", "ray.log", "redis.log", "store.log"} <= {path.name for path in held}
    assert any(path.name.startswith("worker-") for path in held)
    assert [str(path) for path in held if KEY.encode() in path.read_bytes()] == []
    opened = [path for path in files(state) if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert [str(path) for path in opened] == []


def test_what_is_killed_is_said_and_repaired(state):
    """Ray's controller first, as by its out-of-memory killer; then one service after another; `up` brings all back."""
    server = state.known()
    live = Live(state, URL, server_python(state.folder))
    local = Lens.embedded("llava-next")
    batch = mixed_batch(local)
    expected = local.run(count_active, [batch])
    assert asked("status")[0] == 0
    live.kill_controller()
    # ndif answers for a second what it answered before.
    services._until(state, "api", lambda: asked("status")[0] == 1)
    code, said = asked("status")
    assert "is down" in said
    assert "Serving" not in said
    # Redis stays: what has ended as a whole is only started.
    for name in ("api", "store", "ray"):
        live.kill(name)
        code, said = asked("status")
        assert code == 1
        assert f"{name} is down: it has ended." in said
    stranger = start_foreign(str(FAKE), "redis", str(server.ports["store"]), os.devnull)
    try:
        sandbox = ["--sandbox"] if server.sandbox else []
        code, said = asked("up", "--model", NAME, "--cpu", "--port", server.ports["api"], *sandbox)
        assert code == 0, said
        assert "ray is down: it has ended." in said
        assert "Starting it again, with its models" in said
        assert asked("status")[0] == 0
        assert state.known().models == server.models
        assert state.known().threads == server.threads
        lens = Lens.weightless(local.model.repo)
        assert_same_results(lens.run(count_active, [batch], remote=URL), expected)
        assert is_running(stranger.pid)
        assert not server.temporary.exists()
    finally:
        stranger.kill()
        stranger.communicate()
