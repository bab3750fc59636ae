"""The state folder of a server of one's own: no other user reads it, and nobody's else is taken."""

from __future__ import annotations

import os
import stat
import sys

import pytest
from own_server import asked, server_in

from mmneuron_lens.ndif import services
from mmneuron_lens.ndif.ownership import MARK
from mmneuron_lens.ndif.state import State
from mmneuron_lens.runtime.jobs.records import Record, Records

WORDS = {"up": ["up", "--model", "embedded/llava-next", "--cpu"], "status": ["status"], "down": ["down"]}


def modes(folder):
    return {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_folders_are_700_and_files_600_those_of_services_too(tmp_path, umask):
    state = State(tmp_path / "state")
    state.claim()
    server = server_in(state)
    log = state.log("api")
    log.write_text("a key, readable for all")
    log.chmod(0o644)
    services.copy_code(state)
    # As ray does with its folders.
    code = (
        "import os, time; os.mkdir('made'); os.chmod('made', 0o777); open('made/file', 'w').close(); "
        "print('made', flush=True); time.sleep(300)"
    )
    surroundings = {MARK: server.mark, "PYTHONPATH": str(state.folder)}
    with state.locked():
        services._service(state, "api", [sys.executable, "-c", code], surroundings)
        services._until(state, "api", lambda: "made" in log.read_text())
        services._finish(state, "deploy", [sys.executable, "-c", "open('deployed', 'w').close()"], dict(os.environ))
    found = modes(state.folder)
    services.end(state)
    assert {"server.json", "api.log", "deploy.log", "deployed", "made", "made/file"} <= set(found)
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    assert {name: mode for name, mode in found.items() if mode & 0o077} == {}
    assert "a key" not in log.read_text()


def test_job_folders_are_as_closed(tmp_path, umask):
    records = Records(tmp_path / "run" / "jobs")
    records.describe("a run", "http://127.0.0.1:1", "a model", ["one"], ["mmneuron", "count"])
    records.write(Record("one"), job="0f")
    assert modes(tmp_path / "run") == {"jobs": 0o700, "jobs/run.json": 0o600, "jobs/one.json": 0o600}


@pytest.mark.parametrize("command", WORDS)
def test_another_users_folder_is_refused(tmp_path, monkeypatch, command):
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    code, said = asked(*WORDS[command], "--state", tmp_path)
    assert (code, said.count("\n")) == (1, 0)
    assert said.startswith(f"mmneuron: {tmp_path} belongs to another user (uid {uid}); give a folder of your own")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_what_is_no_folder_is_refused(tmp_path, command, kind):
    place = tmp_path / "state"
    place.write_text("mine") if kind == "file" else place.symlink_to(place)
    code, said = asked(*WORDS[command], "--state", place)
    assert (code, said.count("\n")) == (1, 0)
    assert said.startswith(f"mmneuron: {place} {'is a file' if kind == 'file' else 'leads nowhere'}")


def test_an_open_folder_of_other_files_is_left_as_it_is(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "environment").mkdir()
    project.chmod(0o755)
    code, said = asked(*WORDS["up"], "--state", project)
    assert code == 1
    assert said == (
        f"mmneuron: {project} holds other files and is open to other users; give a new folder: --state FOLDER"
    )
    assert stat.S_IMODE(project.stat().st_mode) == 0o755


def test_a_link_to_a_folder_of_ones_own_is_that_folder(tmp_path):
    """Through either name: the same server, and the folder behind it is closed."""
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    link = State(tmp_path / "link")
    link.claim()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o700
    server = server_in(link)
    assert State(tmp_path / "real").server() == server
    assert asked("down", "--state", tmp_path / "link") == (0, "Ended 0 processes.")
    assert (tmp_path / "link").is_symlink()
