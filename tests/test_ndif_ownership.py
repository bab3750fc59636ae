"""`mmneuron ndif down` ends what `up` started and nothing else, whatever server.json says and ids come to mean."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from own_server import asked, is_running, server_in, start_foreign, start_service

from mmneuron_lens.ndif import ownership, services
from mmneuron_lens.ndif.state import State, make_temporary, remove_temporary

SLEEP = "import time; time.sleep(300)"
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); "


@pytest.fixture
def state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    monkeypatch.setenv("MMNEURON_NDIF_STATE", str(folder))
    folder.mkdir(mode=0o700)
    yield State(folder)
    end_marked(tmp_path)


def end_marked(place):
    """End what a failed test left: whatever carries the mark of a server in a folder of this test."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f" {place}/" in process.environ().get(ownership.MARK, ""):
                process.kill()


@pytest.fixture
def foreign():
    """Starts processes of somebody else; ends them, and the children that they told of, after the test."""
    begun: list[subprocess.Popen[bytes]] = []
    told: list[psutil.Process] = []

    def start(code: str = SLEEP, **settings):
        begun.append(start_foreign("-c", code, **settings))
        return begun[-1]

    def child_of(process):
        told.append(psutil.Process(int(process.stdout.readline())))
        return told[-1]

    start.child_of = child_of
    yield start
    for one in told:
        if one.is_running():
            one.kill()
    for one in begun:
        one.kill()
        one.wait()
        one.stdout.close()


def recorded(state, **services_by_name):
    state.save(dataclasses.replace(state.known(), services=services_by_name))


def test_a_dead_service_whose_id_is_a_foreign_session(state, foreign):
    """The leader of a daemon's session has ended; its number is that of a service which ended before."""
    server_in(state)
    leader = foreign(PARENT)
    daemon = foreign.child_of(leader)
    leader.wait()
    assert os.getsid(daemon.pid) == leader.pid
    recorded(state, redis=(leader.pid, 12.5))
    assert asked("down") == (0, "Ended 0 processes.")
    assert is_running(daemon.pid)


def test_an_id_that_was_given_again(state, foreign):
    server_in(state)
    other = foreign(cwd=state.folder)
    recorded(state, api=(other.pid, ownership.started(other.pid) - 0.01))
    assert asked("down") == (0, "Ended 0 processes.")
    assert is_running(other.pid)


def test_an_edited_file_that_names_a_foreign_process_exactly(state, foreign):
    server_in(state)
    other = foreign()
    recorded(state, api=(other.pid, ownership.started(other.pid)))
    assert asked("down") == (0, "Ended 0 processes.")
    assert is_running(other.pid)


def test_two_servers_in_two_folders(state, tmp_path):
    """Also when the file of one is edited to hold the token of the other, or is the other's."""
    (tmp_path / "second").mkdir(mode=0o700)
    second = State(tmp_path / "second")
    first_server, second_server = server_in(state), server_in(second)
    for one in (state, second):
        start_service(one, "redis", "redis")
    (pid,) = (process.pid for process in ownership.own(second.known()))
    mine = [process.pid for process in ownership.own(state.known())]
    state.save(dataclasses.replace(state.known(), token=second_server.token, services={}))
    assert asked("down", "--state", state.folder) == (0, "Ended 0 processes.")
    (state.folder / "server.json").write_bytes((second.folder / "server.json").read_bytes())
    code, said = asked("down", "--state", state.folder)
    assert code == 1
    # Cut where it is long.
    assert f'folder is "{str(second.folder)[:60]}' in said
    assert is_running(pid)
    server_in(state, token=first_server.token)
    assert asked("down", "--state", state.folder) == (0, f"Ended {len(mine)} processes.")
    assert is_running(pid)
    assert asked("down", "--state", second.folder) == (0, "Ended 1 processes.")
    assert not is_running(pid)


def test_all_that_a_service_started_ends_with_it(state, foreign):
    """Children of a dead leader, in its session or in one of their own; also one that shows no environment."""
    server = server_in(state)
    code = (
        "import subprocess, sys, time\n"
        f"start = [sys.executable, '-c', {SLEEP!r}]\n"
        "for settings in ({}, {'start_new_session': True}, {'env': {}}):\n"
        "    print(subprocess.Popen(start, **settings).pid, flush=True)\n"
        "time.sleep(300)"
    )
    bystander = foreign()
    environment = {**os.environ, ownership.MARK: server.mark}
    services._service(state, "api", [sys.executable, "-c", code], environment)
    leader = state.known().services["api"][0]
    services._until(state, "api", lambda: len(ownership.own(state.known())) == 4)
    found = [process.pid for process in ownership.own(state.known())]
    os.kill(leader, signal.SIGKILL)
    psutil.Process(leader).wait(10)
    assert asked("down") == (0, "Ended 3 processes.")
    assert not [pid for pid in found if is_running(pid)]
    assert is_running(bystander.pid)
    assert asked("down") == (0, "No server is running.")


def damaged(state, tmp_path):
    whole = json.loads((state.folder / "server.json").read_text())
    return {
        "cut": json.dumps(whole)[:-9],
        "empty": "",
        "list": "[]",
        "older": json.dumps({**whole, "temporary": str(tmp_path / "precious")}),
        "path as token": json.dumps({**whole, "token": "../../precious"}),
        "folder of another": json.dumps({**whole, "folder": str(tmp_path / "precious")}),
        "port as text": json.dumps({**whole, "ports": {**whole["ports"], "redis": "6379"}}),
        "unknown service": json.dumps({**whole, "services": {"cron": [1, 0.5]}}),
        "service without start": json.dumps({**whole, "services": {"redis": [1]}}),
        "not utf-8": b"\xff\xfe",
        "deep": "[" * 100_000,
    }


@pytest.mark.parametrize("command", ["down", "status", "up"])
def test_a_damaged_file_is_one_line_and_ends_and_deletes_nothing(state, tmp_path, command, monkeypatch):
    monkeypatch.setattr("mmneuron_lens.ndif.environment.redis_server", lambda: "/usr/bin/redis-server")
    (tmp_path / "precious").mkdir()
    server_in(state)
    start_service(state, "redis", "redis")
    (mine,) = ownership.own(state.known())
    words = ["up", "--model", "embedded/llava-next", "--cpu"] if command == "up" else [command]
    whole = (state.folder / "server.json").read_bytes()
    for kind, text in damaged(state, tmp_path).items():
        (state.folder / "server.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        code, said = asked(*words)
        assert (code, said.count("\n")) == (1, 0), (kind, said)
        assert said.startswith(f"mmneuron: {state.folder}/server.json is not what `mmneuron ndif up` wrote here ("), (
            kind
        )
        assert "Nothing was ended or deleted" in said, kind
        assert is_running(mine.pid), kind
        assert (tmp_path / "precious").is_dir(), kind
        (state.folder / "server.json").write_bytes(whole)
    assert asked("down") == (0, "Ended 1 processes.")


@pytest.mark.parametrize("kind", ["link", "another's", "unowned", "own"])
def test_only_rays_own_folder_is_removed(state, tmp_path, kind):
    server = server_in(state)
    make_temporary(server)
    precious = server.temporary / "precious"
    precious.write_text("kept")
    try:
        if kind == "link":
            server.temporary.rename(tmp_path / "elsewhere")
            server.temporary.symlink_to(tmp_path / "elsewhere")
        elif kind == "another's":
            (server.temporary / "owner").write_text(f"{server.token} /another/folder")
        elif kind == "unowned":
            (server.temporary / "owner").unlink()
        remove_temporary(server)
        assert precious.exists() == (kind != "own")
    finally:
        if kind == "link":
            server.temporary.unlink()
        else:
            (server.temporary / "owner").write_text(server.mark) if server.temporary.exists() else None
            remove_temporary(server)
