"""Starting and ending one's own NDIF, without starting it: what is refused, what is passed on, what is ended."""

from __future__ import annotations

import shutil
import socket
import sys

import pytest
from own_server import asked, server_in

from mmneuron_lens.ndif import environment, services
from mmneuron_lens.ndif.command import repo_of
from mmneuron_lens.ndif.state import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MMNEURON_NDIF_STATE", str(tmp_path))
    monkeypatch.delenv("MMNEURON_NDIF_ENV", raising=False)
    return State(tmp_path)


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
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    server = server_in(state, sandbox=True, threads=3)
    ports = server.ports
    assert len(set(ports.values())) == 9
    made = services.environment_of(state, tmp_path / "bin" / "python", server)
    assert made["OMP_NUM_THREADS"] == "3"
    assert "NDIF_POSTGRES_URL" not in made
    assert "CUDA_VISIBLE_DEVICES" not in made
    assert made["NDIF_DEFAULT_MODEL_ACTOR_CLASS"] == "mmneuron_ndif_actor.CpuSandbox"
    assert made["GUNICORN_CMD_ARGS"] == f"--bind 127.0.0.1:{ports['api']}"
    for name in ("NDIF_REDIS_URL", "NDIF_OBJECT_STORE_URL", "NDIF_RAY_ADDRESS"):
        assert "//127.0.0.1:" in made[name]
    options = services.ray_options(server)
    assert "--node-ip-address=127.0.0.1" in options
    assert "--dashboard-host=127.0.0.1" in options


def test_status_and_down_without_a_server(state):
    assert asked("status") == (1, "No server; start one: mmneuron ndif up --model embedded/llava-next --cpu")
    assert asked("down") == (0, "No server is running.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dtype", "int8"], "--dtype is int8; it is one of float32, bfloat16, float16."),
        (["--threads", "2"], "--threads is of models on the CPU; give --cpu too, or leave it out."),
        (["--cpu", "--threads", "4096"], f"--threads is 4096; this machine has {services.threads_here()} processors."),
    ],
)
def test_settings_that_no_server_has_are_refused(state, words, said):
    assert asked("up", "--model", "embedded/llava-next", *words) == (1, f"mmneuron: {said}")
    assert not list(state.folder.iterdir())


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_an_environment_of_somebody_else_is_not_replaced(state, tmp_path, kind):
    """A project's own folder of that name, or a link to one."""
    mine = tmp_path / ("environment" if kind == "folder" else "mine")
    mine.mkdir()
    (mine / "work.txt").write_text("a year of it")
    if kind == "link":
        (tmp_path / "environment").symlink_to(mine)
    with pytest.raises(OSError, match=r"environment was not made by `mmneuron ndif up`, and is not replaced"):
        environment.prepare(state.folder, print)
    assert (mine / "work.txt").read_text() == "a year of it"


def test_an_unfinished_environment_is_made_again(state, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_step", lambda command, log: None)
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "ready").write_text("")
    (tmp_path / "environment" / "half").write_text("")
    environment.prepare(state.folder, lambda text: None)
    assert environment.is_ready(state.folder)
    assert not (tmp_path / "environment" / "half").exists()
    assert (tmp_path / "environment").stat().st_mode & 0o777 == 0o700


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
