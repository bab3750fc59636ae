"""Health: what of a server does not serve. Everything is asked; that a process lives, or is recorded, says little."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from mmneuron_lens.ndif.ownership import leaders, listening
from mmneuron_lens.ndif.state import SERVICES, OwnServer

HERE = "127.0.0.1"
TASK = "image-text-to-text"


@dataclass
class Health:
    """What is down, by service or model, with what is wrong with it, and the models that are being loaded."""

    down: dict[str, str] = field(default_factory=dict)
    loading: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.down and not self.loading


def health_of(server: OwnServer) -> Health:
    """Ask redis, the object store, ray and the API, and through them ray's controller for each model."""
    health = Health()
    alive, ports = leaders(server), listening(server)
    for name in SERVICES:
        port = port_of(server, name)
        if name not in alive:
            health.down[name] = "has ended"
        elif port not in ports:
            health.down[name] = f"does not listen at port {port}"
        elif (name == "redis" and not is_redis(port)) or (name == "store" and not is_answering(port)):
            health.down[name] = f"does not answer at port {port}"
    if not health.down and not is_connected(url_of(server)):
        health.down["api"] = "does not answer, or does not reach ray's controller"
    if health.down:
        return health
    states = _states(url_of(server))
    for name, repo in server.models:
        held = states.get(model_key(repo), set())
        if "RUNNING" in held:
            continue
        if "DEPLOYING" in held:
            health.loading.append(name)
        else:
            health.down[name] = "is not served"
    return health


def port_of(server: OwnServer, service: str) -> int:
    """The port at which a service is awaited; ray's is that of its clients."""
    return server.ports["client" if service == "ray" else service]


def url_of(server: OwnServer) -> str:
    return f"http://{HERE}:{server.ports['api']}"


def model_key(repo: str) -> str:
    """What client and server call a model: nnsight's class and the arguments that make it, as JSON."""
    return "nnsight.modeling.transformers.TransformersModel:" + json.dumps(
        {"repo_id": repo, "revision": None, "task": TASK}
    )


def is_redis(port: int) -> bool:
    """Whether redis answers a ping."""
    try:
        with socket.create_connection((HERE, port), timeout=5) as one:
            one.sendall(b"PING\r\n")
            return one.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def is_answering(port: int) -> bool:
    """Whether a server of HTTP answers, whatever it says."""
    try:
        urllib.request.urlopen(f"http://{HERE}:{port}/", timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def is_connected(url: str) -> bool:
    """Whether a server answers and reaches its ray."""
    try:
        with urllib.request.urlopen(f"{url}/connected", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _states(url: str) -> dict[str, set[str]]:
    """The states of each model's actors, by the model's key; of what the controller does not know there is none."""
    try:
        with urllib.request.urlopen(f"{url}/status", timeout=30) as answer:
            deployments: dict[str, dict[str, Any]] = json.load(answer)["deployments"]
    except (OSError, ValueError, KeyError):
        return {}
    found: dict[str, set[str]] = {}
    for one in deployments.values():
        # An actor that outlived its controller runs, and is sent nothing.
        if "model_key" in one:
            found.setdefault(one["model_key"], set()).add(one["application_state"])
    return found
