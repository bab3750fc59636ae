"""`mmneuron ndif`: your own NDIF server, up, status and down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmneuron_lens.echo import echo, example

if TYPE_CHECKING:
    from mmneuron_lens.ndif.health import Health
    from mmneuron_lens.ndif.state import OwnServer, State

ndif_app = typer.Typer(
    name="ndif", help="Your own NDIF server on this machine, on loopback only.", no_args_is_help=True
)

Folder = Annotated[
    Path | None, typer.Option("--state", help="Where the environment, process ids and logs lie.", show_default=False)
]


@ndif_app.command(epilog=example("mmneuron ndif up --model embedded/llava-next --cpu"))
def up(
    model: Annotated[list[str], typer.Option(help="A folder, embedded/NAME or a hub id; repeat it for several.")],
    cpu: Annotated[bool, typer.Option("--cpu", help="Models on the CPU; otherwise on this machine's GPUs.")] = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Run every request in a process of its own, as NDIF does for strangers.")
    ] = False,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="The API's port.")] = 8001,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="With --cpu: threads of a model.", show_default="this machine's number"),
    ] = None,
    state: Folder = None,
) -> None:
    """Start a server, repair one that is down in part, or add models to one that runs; wait until they serve."""
    from mmneuron_lens.ndif import environment, services
    from mmneuron_lens.ndif.ownership import own

    models = [(name, repo_of(name)) for name in dict.fromkeys(model)]
    refuse_settings(dtype, cpu, threads)
    if not cpu:
        refuse_without_gpu()
    kept = _state(state)
    kept.claim()
    environment.redis_server()
    with kept.locked():
        server = kept.server()
        if server is not None and own(server):
            refuse_other(server, cpu, sandbox, port, dtype, threads)
            python = environment.prepare(kept.folder, _say)
            repair(kept, server, python)
        else:
            services.refuse_taken(port)
            python = environment.prepare(kept.folder, _say)
            _say("Starting")
            if server is not None:
                services.end(kept)
            offline = all(Path(repo).is_dir() for _, repo in models)
            services.start(
                kept, python, port=port, cpu=cpu, sandbox=sandbox, dtype=dtype, offline=offline, say=_say,
                threads=threads,
            )  # fmt: skip
        services.serve(kept, python, models, _say)
    echo(lines(kept.known()))


@ndif_app.command(epilog=example("mmneuron ndif status"))
def status(state: Folder = None) -> None:
    """What runs, where, and what it serves. Exit code 1 when anything of it is down."""
    from mmneuron_lens.ndif.health import health_of
    from mmneuron_lens.ndif.ownership import leaders, own

    kept = _state(state)
    server = kept.server()
    if server is None or not own(server):
        echo("No server; start one: mmneuron ndif up --model embedded/llava-next --cpu")
        raise typer.Exit(1)
    health, alive = health_of(server), leaders(server)
    for name, (pid, _) in server.services.items():
        said = "down " if name in health.down else "runs "
        echo(f"{name:8} {said} pid {pid}{'' if name in alive else ' (ended)'}  {kept.log(name)}")
    if health.is_good:
        echo(lines(server))
        return
    for text in said_of(health):
        echo(text)
    echo("Nothing is sure to be served. `mmneuron ndif up` repairs it, `mmneuron ndif down` ends what is left.")
    raise typer.Exit(1)


@ndif_app.command(epilog=example("mmneuron ndif down"))
def down(state: Folder = None) -> None:
    """End exactly what `up` started. Environment and logs stay."""
    from mmneuron_lens.ndif import services

    kept = _state(state)
    if kept.server() is None:
        _say("No server is running.")
        return
    with kept.locked():
        services.end(kept, _say)


def repair(state: State, server: OwnServer, python: Path) -> None:
    """Start a server again, at the same port and with its models, when anything of it is down; says what was."""
    from mmneuron_lens.ndif import services
    from mmneuron_lens.ndif.ownership import listening

    health = services.settled(server)
    if health.is_good:
        return
    port = server.ports["api"]
    if port not in listening(server):
        services.refuse_taken(port)
    for text in said_of(health):
        _say(text)
    _say("Starting it again, with its models")
    services.end(state)
    services.start(
        state, python, port=port, cpu=server.cpu, sandbox=server.sandbox, dtype=server.dtype, threads=server.threads,
        offline=server.offline, say=_say,
    )  # fmt: skip
    services.serve(state, python, server.models, _say)


def said_of(health: Health) -> list[str]:
    """What is wrong, a line each."""
    return [
        *(f"{name} is down: it {what}." for name, what in health.down.items()),
        *(f"{name} is being loaded." for name in health.loading),
    ]


def repo_of(name: str) -> str:
    """The folder of `embedded/NAME` or of a path, absolute; a hub id as it is.

    Raises `UnknownName` for an unknown embedded model and `FileMissing` for a path without a config.json.
    """
    from interventions.errors import FileMissing
    from mmneuron_lens.architectures.loading import located

    if name.startswith("embedded/"):
        return str(Path(located(name)).resolve())
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileMissing(f"{name} has no config.json; give the folder of a saved model.")
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileMissing(f"{name} is neither a folder, nor embedded/NAME, nor a hub id like owner/model.")
    return name


def refuse_without_gpu() -> None:
    """Raise `ServiceFailed` when there is no GPU."""
    import torch

    from interventions.errors import ServiceFailed

    if not torch.cuda.is_available():
        raise ServiceFailed("No GPU here; serve from the CPU: mmneuron ndif up --cpu ...")


def refuse_settings(dtype: str, cpu: bool, threads: int | None) -> None:
    """Raise `InvalidValue` for settings that no server can have."""
    from interventions.errors import InvalidValue
    from mmneuron_lens.ndif.services import threads_here
    from mmneuron_lens.ndif.state import DTYPES

    if dtype not in DTYPES:
        raise InvalidValue(f"--dtype is {dtype}; it is one of {', '.join(DTYPES)}.")
    if threads is not None and not cpu:
        raise InvalidValue("--threads is of models on the CPU; give --cpu too, or leave it out.")
    if threads is not None and threads > threads_here():
        raise InvalidValue(f"--threads is {threads}; this machine has {threads_here()} processors.")


def refuse_other(server: OwnServer, cpu: bool, sandbox: bool, port: int, dtype: str, threads: int | None) -> None:
    """Raise `ServiceFailed` when the running server was started with other settings."""
    wanted = {"cpu": cpu, "sandbox": sandbox, "dtype": dtype, "port": port, "threads": threads or server.threads}
    running = {name: getattr(server, name) for name in ("cpu", "sandbox", "dtype", "threads")}
    running["port"] = server.ports["api"]
    differing = [f"{name} {running[name]}, not {value}" for name, value in wanted.items() if running[name] != value]
    if differing:
        from interventions.errors import ServiceFailed

        raise ServiceFailed(f"A server runs already, with {'; '.join(differing)}. End it first: mmneuron ndif down")


def lines(server: OwnServer) -> str:
    """What to paste into a notebook."""
    from mmneuron_lens.ndif.health import url_of

    url = url_of(server)
    name, repo = server.models[0] if server.models else ("FOLDER", "FOLDER")
    served = ", ".join(name for name, _ in server.models) or "no model yet"
    where = f"on the CPU, {server.threads} threads a model (--threads)" if server.cpu else "on GPUs"
    return "\n".join(
        [
            f"Serving {served} at {url}, {where}",
            "",
            "In a notebook:",
            "    import mmneuron_lens as mm",
            f'    lens = mm.Lens("{name if name.startswith("embedded/") else repo}", remote="{url}")',
            "    out = lens.run(graph, batch)",
            "or for all of nnsight:",
            "    import nnsight",
            f'    nnsight.CONFIG.API.HOST = "{url}"        # then remote=True',
            "",
            "End it: mmneuron ndif down",
        ]
    )


def _state(folder: Path | None) -> State:
    from mmneuron_lens.ndif.state import State, default_folder

    kept = State(folder or default_folder())
    kept.refuse_foreign()
    return kept


def _say(text: str) -> None:
    echo(text, err=True)
