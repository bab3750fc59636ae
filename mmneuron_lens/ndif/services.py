"""Services: redis, an object store, ray, ndif's controller and its API, started in order, on loopback only."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interventions.errors import ServiceFailed
from interventions.files import write_atomically
from mmneuron_lens.ndif.environment import redis_server
from mmneuron_lens.ndif.state import State

HERE = "127.0.0.1"
API_PORT = 8001
TASK = "image-text-to-text"
ACTORS = {
    (True, False): "mmneuron_ndif_actor.CpuModel",
    (True, True): "mmneuron_ndif_actor.CpuSandbox",
    (False, True): "mmneuron_ndif_actor.GpuSandbox",
    (False, False): "ndif.services.ray.deployments.modeling.base.ModelActor",
}
"""The model actor's class by `(cpu, sandbox)`."""

PATIENCE = 180.0
"""Seconds a service may take to start."""

_started: list[subprocess.Popen[bytes]] = []
# Held, because services are to outlive whoever starts them and Python warns when a running child is forgotten.


def start(
    state: State,
    python: Path,
    *,
    port: int = API_PORT,
    cpu: bool = True,
    sandbox: bool = False,
    dtype: str = "float32",
    offline: bool = True,
    say: Callable[[str], None],
) -> str:
    """Start everything and wait until it is connected; returns the URL.

    Raises `OSError` naming the service, the last line it wrote and its log; what had been started is ended first.
    """
    redis = redis_server()
    refuse_taken(port)
    state.folder.mkdir(parents=True, exist_ok=True)
    for name in ("actor", "gunicorn_settings"):
        shutil.copyfile(Path(__file__).parent / f"{name}.py", state.folder / f"mmneuron_ndif_{name}.py")
    names = ("redis", "store", "ray", "client", "dashboard", "grpc", "metrics", "agent")
    ports = dict(zip(names, free_ports(len(names)), strict=True)) | {"api": port}
    temporary = Path(tempfile.mkdtemp(prefix="mmray"))
    server = {"ports": ports, "models": [], "cpu": cpu, "sandbox": sandbox, "dtype": dtype, "temporary": str(temporary)}
    state.save_server({**server, "offline": offline})
    surroundings = environment_of(state, python, server, offline)
    scripts = python.parent
    try:
        _service(state, "redis", [redis, *_words(f"--port {ports['redis']} --bind {HERE} --save"), ""], surroundings)
        _service(state, "store", [scripts / "moto_server", *_words(f"-H {HERE} -p {ports['store']}")], surroundings)
        say("  1/4 redis and the object store")
        _until_open(state, {"redis": ports["redis"], "store": ports["store"]})
        _service(state, "ray", [scripts / "ray", *ray_options(ports, temporary, cpu)], surroundings)
        say("  2/4 ray")
        _until_open(state, {"ray": ports["client"]})
        say("  3/4 the controller")
        address = {"RAY_ADDRESS": f"{HERE}:{ports['ray']}", "NDIF_SERVICE": "ray"}
        module = "ndif.services.ray.deployments.controller.controller"
        _finish(state, "controller", [python, "-m", module], surroundings | address)
        api = ["--config", "python:mmneuron_ndif_gunicorn_settings", "ndif.services.api.app:app"]
        _service(state, "api", [scripts / "gunicorn", *api], surroundings | {"NDIF_SERVICE": "api"})
        say("  4/4 the API")
        url = f"http://{HERE}:{port}"
        _until(state, "api", lambda: is_connected(url))
    except BaseException:
        end(state)
        raise
    return url


def serve(state: State, python: Path, models: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Load models, `(name, folder or hub id)`, and wait until they serve; those already served are left.

    Raises `OSError` with ndif's own message.
    """
    server = state.server()
    served = {repo for _, repo in server["models"]}
    wanted = [(name, repo) for name, repo in models if repo not in served]
    if not wanted:
        return
    specifications = [{"checkpoint": repo, "model_key": model_key(repo), "pinned": True} for _, repo in wanted]
    file = state.folder / "models.yaml"
    # JSON is YAML.
    write_atomically(file, json.dumps({"models": specifications}, indent=1) + "\n")
    say(f"Loading {', '.join(name for name, _ in wanted)}")
    surroundings = environment_of(state, python, server, server["offline"])
    _finish(state, "deploy", [python.parent / "ndif", "deploy", "-f", file], surroundings, patience=None)
    state.save_server({**server, "models": [*server["models"], *([name, repo] for name, repo in wanted)]})


def end(state: State, say: Callable[[str], None] = lambda text: None) -> int:
    """End what was started, by process id, and remove ray's temporary folder; returns how many processes."""
    temporary = state.server().get("temporary")
    count = state.end()
    if temporary:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"Ended {count} processes.")
    return count


def model_key(repo: str) -> str:
    """What client and server call a model: nnsight's class and the arguments that make it, as JSON."""
    return "nnsight.modeling.transformers.TransformersModel:" + json.dumps(
        {"repo_id": repo, "revision": None, "task": TASK}
    )


def environment_of(state: State, python: Path, server: dict[str, Any], offline: bool) -> dict[str, str]:
    """The variables that ndif and ray read. Nothing of the caller's NDIF_* or CUDA settings is passed on."""
    ports = server["ports"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NDIF_", "RAY_", "GUNICORN"))}
    for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        kept.pop(name, None)
    ours = {
        "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(state.folder.resolve()),
        "NDIF_HOME": str(state.folder / "home"),
        "NDIF_REDIS_URL": f"redis://{HERE}:{ports['redis']}",
        "NDIF_OBJECT_STORE_URL": f"http://{HERE}:{ports['store']}",
        "NDIF_OBJECT_STORE_ACCESS_KEY": "loopback",
        "NDIF_OBJECT_STORE_SECRET_KEY": "loopback",
        "NDIF_RAY_ADDRESS": f"ray://{HERE}:{ports['client']}",
        "NDIF_API_PORT": str(ports["api"]),
        "NDIF_API_URL": f"http://{HERE}:{ports['api']}",
        "GUNICORN_CMD_ARGS": f"--bind {HERE}:{ports['api']}",
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": ACTORS[server["cpu"], server["sandbox"]],
        "NDIF_DEFAULT_DTYPE": server["dtype"],
        "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
        "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
        # Each waiting runner of a sandbox holds half a gigabyte.
        "NDIF_SANDBOX_POOL_SIZE": "1",
        # What is served changes with `up --model`; a minute-old answer would refuse a model that is there.
        "NDIF_STATUS_TTL_S": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # When its ray is gone, ndif's dispatcher would start one of its own, in /tmp/ray and with a token in ~/.ray
        # that every later `ray start` of this user takes up.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    if server["cpu"]:
        ours["NDIF_DEFAULT_PADDING_BIAS"] = "0"
    if offline:
        ours["HF_HUB_OFFLINE"] = "1"
    return kept | ours


def ray_options(ports: dict[str, int], temporary: Path, cpu: bool) -> list[str]:
    """Arguments of `ray start`. On a CPU one card is declared, so that ndif's placement finds room."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resources = {"head": 10, "cpu_memory_bytes": memory, "cuda_memory_bytes": memory if cpu else _cuda_memory()}
    options = (
        f"start --head --block --node-ip-address={HERE} --port={ports['ray']} "
        f"--ray-client-server-port={ports['client']} --include-dashboard=true --dashboard-host={HERE} "
        f"--dashboard-port={ports['dashboard']} --dashboard-agent-grpc-port={ports['grpc']} "
        f"--dashboard-agent-listen-port={ports['agent']} --metrics-export-port={ports['metrics']} "
        f"--num-cpus={max(8, os.cpu_count() or 1)} --object-store-memory=200000000 --disable-usage-stats"
    )
    more = ["--num-gpus=1"] if cpu else []
    return [*_words(options), *more, f"--temp-dir={temporary}", f"--resources={json.dumps(resources)}"]


def refuse_taken(port: int) -> None:
    """Raise `OSError` when another process listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HERE, port))
        except OSError:
            raise ServiceFailed(
                f"Port {port} is taken; choose another: mmneuron ndif up --port {port + 1} ..."
            ) from None


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HERE, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def is_connected(url: str) -> bool:
    """Whether a server answers and reaches its ray."""
    try:
        with urllib.request.urlopen(f"{url}/connected", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _words(text: str) -> list[str]:
    return text.split()


def _cuda_memory() -> int:
    import torch

    return sum(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count()))


def _service(state: State, name: str, command: Sequence[Any], surroundings: dict[str, str]) -> None:
    """Start a service as the leader of a session of its own, its output in its log."""
    with state.log(name).open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=surroundings,
            cwd=state.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started.append(process)
    try:
        state.record(name, process.pid)
    except KeyError:
        raise ServiceFailed(f"{name} ended at once: {_last_line(state, name)}; all of it: {state.log(name)}") from None


def _finish(
    state: State, name: str, command: Sequence[Any], surroundings: dict[str, str], patience: float | None = PATIENCE
) -> None:
    """Run a command to its end, its output in its log."""
    with state.log(name).open("wb") as log:
        done = subprocess.run(
            [str(word) for word in command],
            env=surroundings,
            cwd=state.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=patience,
        )
    if done.returncode:
        raise ServiceFailed(f"{name} failed: {_last_line(state, name)}; all of it: {state.log(name)}")


def _until_open(state: State, ports: dict[str, int]) -> None:
    for name, port in ports.items():
        _until(state, name, lambda port=port: _is_open(port))


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HERE, port)) == 0


def _until(state: State, name: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if not state.alive()[name]:
            raise ServiceFailed(f"{name} ended: {_last_line(state, name)}; all of it: {state.log(name)}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{name} did not start within {PATIENCE:.0f} s; its log: {state.log(name)}")
        time.sleep(0.2)


def _last_line(state: State, name: str) -> str:
    lines = [line for line in state.log(name).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it wrote nothing"
