"""Starting and ending one's own NDIF, without starting it: what is refused, what is passed on, what is ended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mmneuron_lens.cli import app
from mmneuron_lens.ndif import environment, services
from mmneuron_lens.ndif.command import repo_of
from mmneuron_lens.ndif.state import State, processes


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MMNEURON_NDIF_STATE", str(tmp_path))
    monkeypatch.delenv("MMNEURON_NDIF_ENV", raising=False)
    return State(tmp_path)


def asked(*words):
    result = CliRunner().invoke(app, ["ndif", *words])
    return result.exit_code, result.output.strip()


@pytest.fixture
def redis(monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/redis-server" if "redis" in name else which(name))


def test_a_missing_redis_is_one_line_with_the_cure(state, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, said = asked("up", "--model", "embedded/llava-next", "--cpu")
    assert code == 1
    assert said == (
        "mmneuron: redis-server is not installed; NDIF queues its requests there. apt-get install redis-server"
    )


def test_a_taken_port_is_one_line_with_the_cure(state, redis):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = asked("up", "--model", "embedded/llava-next", "--cpu", "--port", str(port))
    assert code == 1
    assert said == f"mmneuron: Port {port} is taken; choose another: mmneuron ndif up --port {port + 1} ..."


def test_without_a_gpu_the_cpu_is_offered(state, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, said = asked("up", "--model", "embedded/llava-next")
    assert (code, said) == (1, "mmneuron: No GPU here; serve from the CPU: mmneuron ndif up --cpu ...")


def test_models_are_folders_embedded_names_and_hub_ids(tmp_path):
    assert repo_of("embedded/llava-next").endswith("embedded/llava-next")
    assert repo_of("llava-hf/llava-v1.6-vicuna-7b-hf") == "llava-hf/llava-v1.6-vicuna-7b-hf"
    (tmp_path / "config.json").write_text("{}")
    assert repo_of(str(tmp_path)) == str(tmp_path.resolve())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embedded/llama", r"embedded model.*llama.*llava-next"),
        ("./nowhere", r"\./nowhere is neither a folder, nor embedded/NAME, nor a hub id"),
        ("nowhere", r"nowhere is neither a folder"),
    ],
)
def test_other_models_are_refused(name, said):
    with pytest.raises((KeyError, FileNotFoundError), match=said):
        repo_of(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; give the folder of a saved model"):
        repo_of(str(tmp_path))


def test_the_key_is_the_clients(tmp_path):
    from mmneuron_lens import Lens

    lens = Lens.weightless(repo_of("embedded/llava-next"))
    assert services.model_key(repo_of("embedded/llava-next")) == lens.nnsight.to_model_key()


def test_everything_is_on_loopback_and_nothing_of_the_caller_passes(state, monkeypatch, tmp_path):
    monkeypatch.setenv("NDIF_POSTGRES_URL", "postgres://elsewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = ("redis", "store", "ray", "client", "dashboard", "grpc", "metrics", "agent", "api")
    ports = dict(zip(names, services.free_ports(9), strict=True))
    assert len(set(ports.values())) == 9
    server = {"ports": ports, "cpu": True, "sandbox": True, "dtype": "float32"}
    made = services.environment_of(state, tmp_path / "bin" / "python", server, True)
    assert "NDIF_POSTGRES_URL" not in made
    assert "CUDA_VISIBLE_DEVICES" not in made
    assert made["NDIF_DEFAULT_MODEL_ACTOR_CLASS"] == "mmneuron_ndif_actor.CpuSandbox"
    assert made["GUNICORN_CMD_ARGS"] == f"--bind 127.0.0.1:{ports['api']}"
    for name in ("NDIF_REDIS_URL", "NDIF_OBJECT_STORE_URL", "NDIF_RAY_ADDRESS"):
        assert "//127.0.0.1:" in made[name]
    options = services.ray_options(ports, tmp_path, True)
    assert "--node-ip-address=127.0.0.1" in options
    assert "--dashboard-host=127.0.0.1" in options


SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); "


def test_down_ends_what_was_started_and_nothing_else(state):
    """A service's children end with it, also when the leader is already dead; a bystander lives."""
    code = SLEEPER + "print('up', flush=True); time.sleep(300)"
    start = [sys.executable, "-c", code]
    bystander, one, two = (subprocess.Popen(start, stdout=subprocess.PIPE, start_new_session=True) for _ in range(3))
    try:
        for process in (bystander, one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        state.record("one", one.pid)
        state.record("two", two.pid)
        sessions = {one.pid, two.pid}
        two.kill()
        two.wait()
        assert state.alive() == {"one": True, "two": False}
        before = [pid for pid, process in processes().items() if process.session in sessions]
        assert len(before) == 3
        assert services.end(state) == 3
        one.wait()
        assert not [pid for pid, process in processes().items() if process.session in sessions]
        assert sum(process.session == bystander.pid for process in processes().values()) == 2
        assert state.leaders() == {}
    finally:
        for process in (bystander, one, two):
            for pid in [pid for pid, other in processes().items() if other.session == process.pid]:
                os.kill(pid, 9)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_a_pid_that_was_given_to_another_process_is_left_alone(state):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
    try:
        (state.folder / "api.pid").write_text(f"{other.pid} {processes()[other.pid].started - 1}\n")
        assert state.alive() == {"api": False}
        assert services.end(state) == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_status_and_down_without_a_server(state):
    assert asked("status") == (1, "No server; start one: mmneuron ndif up --model embedded/llava-next --cpu")
    assert asked("down") == (0, "No server is running.")


def test_an_environment_of_other_constraints_is_not_ready(state, tmp_path):
    assert not environment.is_ready(state.folder)
    (tmp_path / "environment").mkdir()
    mark = tmp_path / "environment" / "ready"
    mark.write_text(environment._fingerprint())
    assert environment.is_ready(state.folder)
    mark.write_text("older")
    assert not environment.is_ready(state.folder)


def test_a_failed_installation_says_its_last_line(state):
    with pytest.raises(OSError, match=r"failed: No such thing; all of it: .*log"):
        environment._step([sys.executable, "-c", "print('No such thing'); raise SystemExit(1)"], state.log("log"))


def test_what_is_pinned_names_every_package_asked_for():
    pinned = {line.partition("==")[0].lower() for line in environment.CONSTRAINTS.read_text().splitlines()}
    asked_for = [name.partition("[")[0] for _, words in environment.STEPS for name in words if name[0] != "-"]
    assert set(asked_for) <= pinned
