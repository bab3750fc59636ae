"""Serving: asked before anything is sent, whether a server has the model and its versions fit; its errors, short."""

from __future__ import annotations

import json
import re
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict, cast

import mmneuron_lens.wire
from interventions.errors import MissingPackage, ServerUnreachable, UnknownName
from mmneuron_lens.runtime.host import Host
from mmneuron_lens.runtime.transport import next_step, page

MUST_MATCH = ("nnsight",)
"""Packages whose major.minor version must be the server's: jobs are written and read by them."""

SHOULD_MATCH = ("transformers", "torch")
"""Packages whose major.minor version may move a path or a last digit."""

TRAVELLING = str(Path(mmneuron_lens.wire.__file__).parent)

VERSION = re.compile(r"[0-9]+\.[0-9]+(\.[0-9]+)?([.+a-z0-9]{0,40})?")
OURS_TO_RETRY = ("botocore", "boto3", "redis", "ray", "urllib3", "requests", "httpx", "httpcore", "grpc")
"""Packages of a server's own plumbing: an exception of theirs says nothing about the job."""

BROKEN = (
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "BrokenPipeError",
    "ConnectionAbortedError",
)

PHRASES = ("try again", "was evicted", "cancelled or preempted")
"""How NDIF says that a job fell victim to something else (0.1.2)."""

FRAME = re.compile(r'^  File "\[(?P<block>[^\]]*)\] (?P<file>.*)", line (?P<line>\d+), in (?P<function>\S+)$')
"""How nnsight names a line of shipped code in a traceback: block, the client's own file and line, function."""


class Deployment(TypedDict, total=False):
    """One model of a server's list; what a server leaves out is absent."""

    model_key: str
    repo_id: str
    task: str
    deployment_level: str


def refuse_unserved(host: Host, model_key: str) -> None:
    """Ask a server whether it serves a model and whether versions fit.

    model_key: nnsight's, `class:{"repo_id": ...}`.

    Raises `ServerUnreachable` when nobody answers or the server is not ready, `UnknownName` when it does not list the
    model, `MissingPackage` when nnsight differs in its second number. Warns when transformers or torch differ in
    theirs, or when the model is cold and has to be loaded first.
    """
    deployments = _objects(host, "/status", "deployments")
    held = [one for one in deployments if one.get("model_key") == model_key]
    name = json.loads(model_key.partition(":")[2])["repo_id"]
    if not held:
        served = sorted({f"{one.get('repo_id')} ({one.get('task')})" for one in deployments if _is_loaded(one)})
        raise UnknownName(
            f"{host.url} does not serve {name} as image-text-to-text; it serves {', '.join(served) or 'nothing'}. "
            f"Serve it yourself, `mmneuron ndif up --model {name}`, or ask NDIF for it."
        )
    if not any(_is_loaded(one) for one in held):
        warnings.warn(f"{name} is cold at {host.url}: it is loaded first, which takes minutes.", stacklevel=3)
    for kind, text in _differences(host):
        if kind == "refuse":
            raise MissingPackage(text)
        warnings.warn(text, stacklevel=3)


def _objects(host: Host, path: str, name: str) -> list[Deployment]:
    """The objects that a page has by name; none where it has none, or has something else."""
    found = _ask(host, path).get(name, {})
    listed = found.values() if isinstance(found, dict) else ()
    return [cast(Deployment, one) for one in listed if isinstance(one, dict)]


def _is_loaded(deployment: Deployment) -> bool:
    return deployment.get("deployment_level") in ("HOT", "WARM")


@lru_cache(maxsize=64)
def _differences(host: Host) -> tuple[tuple[str, str], ...]:
    """What differs between this environment and a host's; asked once a process."""
    packages = _ask(host, "/env").get("packages", {})
    found = []
    for package in (*MUST_MATCH, *SHOULD_MATCH):
        here, there = version(package), packages.get(package) if isinstance(packages, dict) else None
        # Only what is a version is shown: the message is a command to paste.
        if not isinstance(there, str) or not VERSION.fullmatch(there) or _minor(here) == _minor(there):
            continue
        must = package in MUST_MATCH
        effect = "jobs cannot be read there" if must else "numbers may differ in their last digits"
        text = (
            f'{host.url} runs {package} {there}, here is {here}: {effect}. pip install "{package}=={_minor(there)}.*"'
        )
        found.append(("refuse" if must else "warn", text))
    return tuple(found)


def _minor(number: str) -> str:
    return ".".join(number.split("+")[0].split(".")[:2])


def _ask(host: Host, path: str) -> dict[str, Any]:
    import httpx

    try:
        # No key: these two pages are public.
        return page(host, path, keyed=False) or {}
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        raise ServerUnreachable(f"{host.url} answers {error} from {path}; {next_step(code)}.") from None
    except httpx.HTTPError as error:
        raise ServerUnreachable(
            f"No NDIF server answers at {host.url} ({type(error).__name__}). "
            "Start your own, `mmneuron ndif up --model embedded/llava-next --cpu`, or give another URL."
        ) from None


def explained(message: str, host: str) -> str:
    """A server's traceback in one line: what was raised, and the user's line that raised it.

    Lines of this package's own travelling code are left out while there is a line of the user's. A message without a
    traceback stays as it is.
    """
    lines = message.rstrip().splitlines()
    if not any(line.startswith("Traceback ") for line in lines):
        return " ".join(message.split())
    frames = [(found, index) for index, line in enumerate(lines) if (found := FRAME.match(line))]
    users = [(found, index) for found, index in frames if not found["file"].startswith(TRAVELLING)]
    # The message may take several lines; it starts behind the last indented one.
    last = max((index for index, line in enumerate(lines) if line.startswith("  ")), default=-1)
    text = f"{host}: {' '.join(' '.join(lines[last + 1 :]).split())}"
    if users or frames:
        found, index = (users or frames)[-1]
        code = lines[index + 1].strip() if index + 1 < len(lines) else ""
        text += f" (in {found['function']}, {found['file']}, line {found['line']}: {code})"
    return text


def is_servers_trouble(text: str) -> bool:
    """Whether a failed job's message speaks of the server's plumbing and not of the job."""
    last = last_line(text)
    if "Traceback" not in text:
        return any(phrase in text.lower() for phrase in PHRASES)
    raised = last.partition(":")[0].strip()
    return raised in BROKEN or raised.partition(".")[0] in OURS_TO_RETRY


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
