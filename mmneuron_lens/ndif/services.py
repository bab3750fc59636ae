"""Services: redis, an object store, ray, ndif's controller and its API, started in order, on loopback only."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from interventions.errors import ServiceFailed
from interventions.files import write_atomically
from mmneuron_lens.ndif.environment import redis_server
from mmneuron_lens.ndif.health import HERE, Health, health_of, is_connected, model_key, port_of, url_of
from mmneuron_lens.ndif.ownership import MARK, end_processes, leaders, listening, started
from mmneuron_lens.ndif.state import (
    PORTS,
    OwnServer,
    State,
    make_temporary,
    new_token,
    remove_temporary,
)

API_PORT = 8001
API = ("--config", "python:mmneuron_ndif_gunicorn_settings", "mmneuron_ndif_keyless_api:app")
CODE = {
    "actor": "mmneuron_ndif_actor",
    "gunicorn_settings": "mmneuron_ndif_gunicorn_settings",
    "keyless_api": "mmneuron_ndif_keyless_api",
    "closed_modes": "sitecustomize",
}
"""The modules of this folder that run in the server's environment, and what they are called there."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
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
    threads: int | None = None,
    offline: bool = True,
    say: Callable[[str], None],
) -> str:
    """Start everything and wait until it is connected; returns the URL. On a CPU, `threads` is by default all it has.

    Raises `OSError` naming the service, the last line it wrote and its log; what had been started is ended first.
    """
    redis = redis_server()
    refuse_taken(port)
    state.claim()
    copy_code(state)
    names = [name for name in PORTS if name != "api"]
    server = OwnServer(
        folder=str(state.folder),
        token=new_token(),
        ports=dict(zip(names, free_ports(len(names)), strict=True)) | {"api": port},
        cpu=cpu,
        sandbox=sandbox,
        dtype=dtype,
        threads=(threads or threads_here()) if cpu else 0,
        offline=offline,
    )
    state.save(server)
    ports, scripts = server.ports, python.parent
    surroundings = environment_of(state, python, server)
    try:
        make_temporary(server)
        _service(state, "redis", [redis, *_words(f"--port {ports['redis']} --bind {HERE} --save"), ""], surroundings)
        _service(state, "store", [scripts / "moto_server", *_words(f"-H {HERE} -p {ports['store']}")], surroundings)
        say("  1/4 redis and the object store")
        _until_open(state, "redis", "store")
        _service(state, "ray", [scripts / "ray", *ray_options(server)], surroundings)
        say("  2/4 ray")
        _until_open(state, "ray")
        say("  3/4 the controller")
        address = {"RAY_ADDRESS": f"{HERE}:{ports['ray']}", "NDIF_SERVICE": "ray"}
        module = "ndif.services.ray.deployments.controller.controller"
        _finish(state, "controller", [python, "-m", module], surroundings | address)
        _service(state, "api", [scripts / "gunicorn", *API], surroundings | {"NDIF_SERVICE": "api"})
        say("  4/4 the API")
        _until_open(state, "api")
        _until(state, "api", lambda: is_connected(url_of(server)))
    except BaseException:
        end(state)
        raise
    return url_of(server)


def serve(state: State, python: Path, models: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Load models, `(name, folder or hub id)`, and wait until they serve; those already served are left.

    Raises `OSError` with ndif's own message.
    """
    server = state.known()
    served = {repo for _, repo in server.models}
    wanted = [(name, repo) for name, repo in models if repo not in served]
    if not wanted:
        return
    specifications = [{"checkpoint": repo, "model_key": model_key(repo), "pinned": True} for _, repo in wanted]
    file = state.folder / "models.yaml"
    # JSON is YAML.
    write_atomically(file, json.dumps({"models": specifications}, indent=1) + "\n", private=True)
    say(f"Loading {', '.join(name for name, _ in wanted)}")
    surroundings = environment_of(state, python, server)
    _finish(state, "deploy", [python.parent / "ndif", "deploy", "-f", file], surroundings, patience=None)
    state.save(replace(server, models=[*server.models, *wanted]))


def settled(server: OwnServer) -> Health:
    """A server's health, when no model is being loaded any more; after `PATIENCE` seconds as it is."""
    deadline = time.monotonic() + PATIENCE
    while (health := health_of(server)).loading and not health.down and time.monotonic() < deadline:
        time.sleep(1.0)
    return health


def end(state: State, say: Callable[[str], None] = lambda text: None) -> int:
    """End what was started, and remove ray's temporary folder; returns how many processes."""
    server = state.known()
    count = end_processes(server)
    _started[:] = [process for process in _started if process.poll() is None]
    remove_temporary(server)
    state.forget()
    say(f"Ended {count} processes.")
    return count


def copy_code(state: State) -> None:
    """Put what runs in the server's environment into the state folder, which is on its path."""
    for name, module in CODE.items():
        code = (Path(__file__).parent / f"{name}.py").read_bytes()
        write_atomically(state.folder / f"{module}.py", code, private=True)


def environment_of(state: State, python: Path, server: OwnServer) -> dict[str, str]:
    """The variables that ndif and ray read. Nothing of the caller's NDIF_* or CUDA settings is passed on."""
    ports = server.ports
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NDIF_", "RAY_", "GUNICORN"))}
    for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", *THREADS):
        kept.pop(name, None)
    ours = {
        MARK: server.mark,
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
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": ACTORS[server.cpu, server.sandbox],
        "NDIF_DEFAULT_DTYPE": server.dtype,
        "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
        "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
        # Each waiting runner of a sandbox holds half a gigabyte.
        "NDIF_SANDBOX_POOL_SIZE": "1",
        # What is served changes with `up --model`; a minute-old answer would refuse a model that is there.
        "NDIF_STATUS_TTL_S": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # When its ray is gone, ndif's dispatcher would start one of its own, in the folder that all rays share and
        # with a token that every later `ray start` of this user takes up.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    if server.cpu:
        ours["NDIF_DEFAULT_PADDING_BIAS"] = "0"
        # Otherwise ray gives an actor's one declared processor one thread.
        ours["OMP_NUM_THREADS"] = str(server.threads)
    if server.offline:
        ours["HF_HUB_OFFLINE"] = "1"
    return kept | ours


def ray_options(server: OwnServer) -> list[str]:
    """Arguments of `ray start`. On a CPU one card is declared, so that ndif's placement finds room."""
    ports, cpu = server.ports, server.cpu
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
    return [*_words(options), *more, f"--temp-dir={server.temporary / 'ray'}", f"--resources={json.dumps(resources)}"]


def threads_here() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


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


def _words(text: str) -> list[str]:
    return text.split()


def _cuda_memory() -> int:
    import torch

    return sum(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count()))


def _service(state: State, name: str, command: Sequence[Any], surroundings: dict[str, str]) -> None:
    """Start a service as the leader of a session of its own, its output in its log."""
    with state.new_log(name) as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=surroundings,
            cwd=state.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )
    _started.append(process)
    server = state.known()
    try:
        state.save(replace(server, services={**server.services, name: (process.pid, started(process.pid))}))
    except psutil.NoSuchProcess:
        raise ServiceFailed(f"{name} ended at once: {_last_line(state, name)}; all of it: {state.log(name)}") from None


def _finish(
    state: State, name: str, command: Sequence[Any], surroundings: dict[str, str], patience: float | None = PATIENCE
) -> None:
    """Run a command to its end, its output in its log."""
    try:
        with state.new_log(name) as log:
            done = subprocess.run(
                [str(word) for word in command],
                env=surroundings,
                cwd=state.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=patience,
                # It carries the server's mark, and whose session holds one is ended with the server.
                start_new_session=True,
                umask=0o077,
            )
    except subprocess.TimeoutExpired:
        raise ServiceFailed(f"{name} did not end within {patience:.0f} s; its log: {state.log(name)}") from None
    if done.returncode:
        raise ServiceFailed(f"{name} failed: {_last_line(state, name)}; all of it: {state.log(name)}")


def _until_open(state: State, *names: str) -> None:
    """Until each service itself listens: another program may have taken its port."""
    for name in names:
        _until(state, name, lambda name=name: port_of(state.known(), name) in listening(state.known()))


def _until(state: State, name: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if name not in leaders(state.known()):
            raise ServiceFailed(f"{name} ended: {_last_line(state, name)}; all of it: {state.log(name)}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{name} did not start within {PATIENCE:.0f} s; its log: {state.log(name)}")
        time.sleep(0.2)


def _last_line(state: State, name: str) -> str:
    lines = [line for line in state.log(name).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it wrote nothing"
