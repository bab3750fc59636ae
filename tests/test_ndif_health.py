"""`mmneuron ndif status` and `up` ask the services: what is down is said, and repaired; nothing is read from a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from own_server import FAKE, asked, is_running, server_in, start_all, start_foreign, start_service

from mmneuron_lens.ndif import environment, services
from mmneuron_lens.ndif.command import repo_of
from mmneuron_lens.ndif.ownership import end_processes, own
from mmneuron_lens.ndif.state import State

NAME = "embedded/llava-next"


@pytest.fixture
def state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("MMNEURON_NDIF_STATE", str(folder))
    folder.mkdir(mode=0o700)
    state = State(folder)
    yield state
    if state.server() is not None:
        services.end(state)


@pytest.fixture
def repo():
    return repo_of(NAME)


def deployment(repo, told="RUNNING"):
    key = services.model_key(repo)
    return {f"0:ModelActor:{key}": {"application_state": told, "model_key": key, "deployment_level": "HOT"}}


@pytest.fixture
def whole(state, repo):
    return start_all(state, deployment(repo), models=[(NAME, repo)])


def kill(state, name):
    pid = state.known().services[name][0]
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(10)


@pytest.fixture
def restarted(state, monkeypatch):
    """Whatever `up` starts and loads, in order."""
    done = []

    def start(state, python, **settings):
        done.append(settings)
        server_in(state, threads=settings["threads"] or 2)
        return ""

    monkeypatch.setattr(services, "start", start)
    monkeypatch.setattr(services, "serve", lambda state, python, models, say: done.append([name for name, _ in models]))
    monkeypatch.setattr(environment, "prepare", lambda folder, say: sys.executable)
    monkeypatch.setattr(environment, "redis_server", lambda: "redis-server")
    return done


def up(server, *words):
    return asked("up", "--model", NAME, "--cpu", "--port", server.ports["api"], *words)


def test_a_whole_server_serves(state, whole, restarted):
    code, said = asked("status")
    assert code == 0
    url = f"http://127.0.0.1:{whole.ports['api']}"
    assert f"Serving {NAME} at {url}, on the CPU, 1 threads a model (--threads)" in said
    code, said = up(whole)
    assert code == 0
    assert restarted == [[NAME]]
    assert len(own(whole)) == 4


@pytest.mark.parametrize("name", ["redis", "store", "ray", "api"])
def test_a_killed_service_is_said_and_repaired(state, whole, restarted, name):
    kill(state, name)
    code, said = asked("status")
    assert code == 1
    assert f"{name} is down: it has ended." in said
    assert "Serving" not in said
    code, said = up(whole)
    assert code == 0, said
    assert f"{name} is down: it has ended.\nStarting it again, with its models\n" in said
    settings, loaded, asked_for = restarted
    assert (settings["port"], settings["threads"]) == (whole.ports["api"], 1)
    assert loaded == asked_for == [NAME]
    assert own(whole) == []


@pytest.mark.parametrize("told", ["forgotten", "orphaned", "UNHEALTHY"])
def test_a_model_that_nobody_serves_is_down(state, whole, restarted, repo, told):
    """Ray's out-of-memory killer took the controller, and a new one knows no model; or it took the model's actor."""
    found = deployment(repo, told)
    if told == "orphaned":
        found = {name: {"application_state": "RUNNING"} for name in found}
    elif told == "forgotten":
        found = {}
    (state.folder / "told.json").write_text(json.dumps({"deployments": found}))
    code, said = asked("status")
    assert code == 1
    assert f"{NAME} is down: it is not served." in said
    code, said = up(whole)
    assert f"{NAME} is down: it is not served.\nStarting it again" in said
    assert restarted[1] == [NAME]


def test_a_model_that_is_being_loaded_is_waited_for(state, whole, restarted, repo, monkeypatch):
    (state.folder / "told.json").write_text(json.dumps({"deployments": deployment(repo, "DEPLOYING")}))
    code, said = asked("status")
    assert code == 1
    assert f"{NAME} is being loaded." in said
    served = json.dumps({"deployments": deployment(repo)})
    monkeypatch.setattr(services.time, "sleep", lambda seconds: (state.folder / "told.json").write_text(served))
    assert up(whole)[0] == 0
    assert restarted == [[NAME]]


def test_an_answer_of_another_form_is_no_model(state, whole):
    (state.folder / "told.json").write_text("[]")
    assert asked("status")[0] == 1


@pytest.mark.parametrize("kind", ["redis", "http"])
def test_somebody_elses_program_at_the_port_is_not_ours(state, whole, kind):
    """Our redis has ended and another one answers; or ours lives, without its port."""
    kill(state, "redis")
    other = start_foreign(str(FAKE), kind, str(whole.ports["redis"]), os.devnull)
    try:
        code, said = asked("status")
        assert code == 1
        assert "redis is down: it has ended." in said
        start_service(state, "redis", "none")
        code, said = asked("status")
        assert code == 1
        assert f"redis is down: it does not listen at port {whole.ports['redis']}." in said
        with pytest.raises(OSError, match=r"redis ended: .*Address already in use"):
            start_service(state, "redis", "redis")
        assert asked("down")[0] == 0
        assert is_running(other.pid)
    finally:
        other.kill()
        other.communicate()


def test_a_taken_port_of_the_api_leaves_what_lives(state, whole, restarted):
    kill(state, "api")
    other = start_foreign(str(FAKE), "http", str(whole.ports["api"]), os.devnull)
    try:
        services._until(state, "redis", lambda: _refused(whole.ports["api"]))
        code, said = up(whole)
        assert code == 1
        assert said.startswith(f"mmneuron: Port {whole.ports['api']} is taken")
        assert len(own(whole)) == 3
        assert is_running(other.pid)
    finally:
        other.kill()
        other.communicate()


def _refused(port):
    try:
        services.refuse_taken(port)
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--sandbox"], "sandbox False, not True"), (["--dtype", "float16"], "dtype float32, not float16")],
)
def test_other_settings_are_refused_while_it_runs(state, whole, restarted, words, said):
    code, told = up(whole, *words)
    assert code == 1
    assert said in told
    assert len(own(whole)) == 4


def test_what_has_ended_whole_is_started_as_asked(state, whole, restarted):
    end_processes(whole)
    assert asked("status")[0] == 1
    code, said = up(whole, "--dtype", "float16")
    assert code == 0, said
    assert restarted[0]["dtype"] == "float16"
    assert restarted[0]["threads"] is None


def test_a_lock_outlives_nobody(state, whole, restarted):
    """A second command is refused while one works; one that was killed holds nothing."""
    code = "import sys; from pathlib import Path; from mmneuron_lens.ndif.state import State; import time\n"
    code += "with State(Path(sys.argv[1])).locked(): print('locked', flush=True); time.sleep(300)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(state.folder)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        for words in (["down"], ["up", "--model", NAME, "--cpu"]):
            code, said = asked(*words)
            assert (code, said.count("\n")) == (1, 0)
            assert said.startswith(f"mmneuron: Another `mmneuron ndif` works in {state.folder}; wait until it ends")
        assert asked("status")[0] == 0
    finally:
        holder.kill()
        holder.communicate()
    assert asked("down") == (0, "Ended 4 processes.")
