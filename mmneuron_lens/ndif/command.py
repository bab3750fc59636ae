"""`mmneuron ndif`: your own NDIF server, up, status and down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmneuron_lens.ndif.state import State

ndif_app = typer.Typer(
    name="ndif", help="Your own NDIF server on this machine, on loopback only.", no_args_is_help=True
)

Folder = Annotated[
    Path | None, typer.Option("--state", help="Where the environment, process ids and logs lie.", show_default=False)
]


@ndif_app.command(epilog="Example: [bold]mmneuron ndif up --model embedded/llava-next --cpu[/bold]")
def up(
    model: Annotated[list[str], typer.Option(help="A folder, embedded/NAME or a hub id; repeat it for several.")],
    cpu: Annotated[bool, typer.Option("--cpu", help="Models on the CPU; otherwise on this machine's GPUs.")] = False,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Run every request in a process of its own, as NDIF does for strangers.")
    ] = False,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="The API's port.")] = 8001,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    state: Folder = None,
) -> None:
    """Start a server, or add models to the one that runs, and wait until they serve."""
    from mmneuron_lens.ndif import environment, services

    models = [(name, repo_of(name)) for name in dict.fromkeys(model)]
    if not cpu:
        refuse_without_gpu()
    kept = _state(state)
    kept.folder.mkdir(parents=True, exist_ok=True)
    environment.redis_server()
    if not is_up(kept):
        services.refuse_taken(port) if not kept.leaders() else services.end(kept)
    python = environment.prepare(kept.folder, _say)
    if is_up(kept):
        refuse_other(kept, cpu, sandbox, port, dtype)
        url = url_of(kept)
    else:
        _say("Starting")
        offline = all(Path(repo).is_dir() for _, repo in models)
        url = services.start(kept, python, port=port, cpu=cpu, sandbox=sandbox, dtype=dtype, offline=offline, say=_say)
    services.serve(kept, python, models, _say)
    typer.echo(lines(url, kept))


@ndif_app.command()
def status(state: Folder = None) -> None:
    """What runs, where, and what it serves. Exit code 1 when nothing serves."""
    kept = _state(state)
    alive = kept.alive()
    if not alive:
        typer.echo("No server; start one: mmneuron ndif up --model embedded/llava-next --cpu")
        raise typer.Exit(1)
    for name, (pid, _) in kept.leaders().items():
        typer.echo(f"{name:8} {'runs ' if alive[name] else 'ended'} pid {pid}  {kept.log(name)}")
    if not is_up(kept):
        typer.echo("It does not answer; `mmneuron ndif up` starts it afresh, `mmneuron ndif down` ends what is left.")
        raise typer.Exit(1)
    typer.echo(lines(url_of(kept), kept))


@ndif_app.command()
def down(state: Folder = None) -> None:
    """End exactly what `up` started. Environment and logs stay."""
    from mmneuron_lens.ndif import services

    kept = _state(state)
    if not kept.leaders():
        _say("No server is running.")
        return
    services.end(kept, _say)


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


def refuse_other(state: State, cpu: bool, sandbox: bool, port: int, dtype: str) -> None:
    """Raise `ServiceFailed` when the running server was started with other settings."""
    server = state.server()
    wanted = {"cpu": cpu, "sandbox": sandbox, "dtype": dtype, "port": port}
    running = {name: server[name] for name in ("cpu", "sandbox", "dtype")} | {"port": server["ports"]["api"]}
    differing = [f"{name} {running[name]}, not {value}" for name, value in wanted.items() if running[name] != value]
    if differing:
        from interventions.errors import ServiceFailed

        raise ServiceFailed(f"A server runs already, with {'; '.join(differing)}. End it first: mmneuron ndif down")


def is_up(state: State) -> bool:
    """Whether every service lives and the API is connected."""
    from mmneuron_lens.ndif.services import is_connected

    alive = state.alive()
    return bool(state.server()) and bool(alive) and all(alive.values()) and is_connected(url_of(state))


def url_of(state: State) -> str:
    return f"http://127.0.0.1:{state.server()['ports']['api']}"


def lines(url: str, state: State) -> str:
    """What to paste into a notebook."""
    models = state.server()["models"]
    name, repo = models[0] if models else ("FOLDER", "FOLDER")
    served = ", ".join(name for name, _ in models) or "no model yet"
    return "\n".join(
        [
            f"Serving {served} at {url}",
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

    return State((folder or default_folder()).resolve())


def _say(text: str) -> None:
    typer.echo(text, err=True)
