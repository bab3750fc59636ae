"""The command `mmneuron jobs`: list, watch, cancel and resume the jobs of runs on a server."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmneuron_lens.runtime.jobs.store import JobStore

jobs_app = typer.Typer(
    help="Jobs on an NDIF server: what runs, what is done, what to take up again.", no_args_is_help=True
)

Under = Annotated[
    Path | None,
    typer.Option("--folder", help="Where runs keep their jobs; $MMNEURON_JOBS or the state folder if left out."),
]
Run = Annotated[
    str, typer.Argument(help="A run as `mmneuron jobs list` shows it (its first letters do), or its folder.")
]


@jobs_app.command("list")
def show(folder: Under = None) -> None:
    """List every run: how many shards are done, in flight, waiting, failed or cancelled."""
    from mmneuron_lens.runtime.jobs.store import default_folder, stores

    found = stores(folder or default_folder())
    if not found:
        typer.echo(f"No jobs under {folder or default_folder()}.")
    for store in found:
        typer.echo(line_of(store))


@jobs_app.command()
def watch(
    run: Run,
    folder: Under = None,
    once: Annotated[bool, typer.Option(help="Ask once and do not wait.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="Wait so long between two rounds.")] = 2.0,
) -> None:
    """Ask the server about a run's jobs until none is in flight. Keeps nothing; `resume` does."""
    from mmneuron_lens.runtime.jobs.server import JobFailed, Lost, Unreachable, ask_host
    from mmneuron_lens.runtime.jobs.watch import Clock

    store, clock = _store(run, folder), Clock()
    said: dict[str, str] = {}
    while True:
        flying = [
            key for key in store.run["shards"] if not store.is_done(key) and store.record(key).state == "submitted"
        ]
        for key in flying:
            record = store.record(key)
            try:
                status = ask_host(record.host, str(record.job)).status or "unknown to the server"
            except (JobFailed, Lost) as error:
                status = f"ERROR: {error}"
            except Unreachable as error:
                status = f"no answer: {error}"
            if said.get(key) != status:
                typer.echo(f"{key[:12]}  job {record.job}  {status}")
            said[key] = status
        # A job that ended stays in flight until its client has kept the result.
        if once or all(said[key].startswith(("COMPLETED", "ERROR")) for key in flying):
            typer.echo(line_of(store))
            return
        clock.wait(seconds)


@jobs_app.command()
def cancel(run: Run, folder: Under = None) -> None:
    """Forget a run's jobs in flight and send no more: NDIF has no way to stop one, so those sent run to their end."""
    with _one_line():
        store = _store(run, folder)
        with store.alone():
            cancelled = 0
            for key in store.run["shards"]:
                record = store.record(key)
                if not store.is_done(key) and record.state not in ("cancelled", "failed"):
                    store.write(record, state="cancelled", job=None)
                    cancelled += 1
        typer.echo(f"{cancelled} shards cancelled; results that are there stay. {line_of(store)}")


@jobs_app.command()
def resume(run: Run, folder: Under = None) -> None:
    """Keep what the server has finished, then run again the command that started it, for what is missing."""
    from mmneuron_lens.runtime.jobs.server import JobFailed, Lost, Unreachable, ask_host

    with _one_line():
        store = _store(run, folder)
        with store.alone():
            for key in store.run["shards"]:
                record = store.record(key)
                if store.is_done(key) or record.state != "submitted":
                    continue
                try:
                    answer = ask_host(record.host, str(record.job))
                except (JobFailed, Lost, Unreachable) as error:
                    typer.echo(f"{key[:12]}  job {record.job}  {error}", err=True)
                    continue
                if answer.returned is not None:
                    store.keep(key, answer.returned, store.facts(key))
        described, again = store.run, store.run["again"]
        typer.echo(line_of(store))
        if all(store.is_done(key) for key in described["shards"]) and not again:
            typer.echo("All results are on disk; run the same call again to read them.")
        elif not again:
            typer.echo("It was started from Python: run the same call again, and only what is missing is sent.")
        else:
            raise typer.Exit(subprocess.run([sys.executable, "-m", "mmneuron_lens", *again], check=False).returncode)


def line_of(store: JobStore) -> str:
    """One run on one line: folder, title, host and how many shards are in each state."""
    run = store.run
    states = Counter("done" if store.is_done(key) else store.record(key).state for key in run["shards"])
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{store.folder.name}  {run['title'] or 'untitled'} at {run['host']}: {len(run['shards'])} shards, {counted}"


def _store(run: str, folder: Path | None) -> JobStore:
    from mmneuron_lens.runtime.jobs.store import JobStore, default_folder, stores

    if (Path(run) / "run.json").is_file():
        return JobStore(run)
    under = folder or default_folder()
    found = [store for store in stores(under) if store.folder.name.startswith(run)]
    if len(found) != 1:
        names = ", ".join(store.folder.name for store in stores(under)) or "none"
        what = "no run" if not found else f"{len(found)} runs"
        typer.echo(f"mmneuron: {what} named {run!r} under {under}; choose from {names}.", err=True)
        raise typer.Exit(1)
    return found[0]


class _one_line:
    """A problem with the input is one line on stderr and exit code 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ValueError | OSError):
            typer.echo(f"mmneuron: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
