"""The commands `mmneuron jobs ...`: list, watch, cancel and resume the jobs of runs on a server."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmneuron_lens.echo import echo, example

jobs_app = typer.Typer(
    help="Jobs on an NDIF server: what runs, what is done, what to take up again.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(help="The run's folder, that --out of the command named.")]


@jobs_app.command("list", epilog=example("mmneuron jobs list runs"))
def show(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one that holds several.")] = Path("runs"),
) -> None:
    """List what is being made on a server: how many jobs are done, in flight, waiting, failed or cancelled."""
    from mmneuron_lens.artifacts.format import ArtifactError
    from mmneuron_lens.runs.jobs import jobs_under

    found = jobs_under(folder)
    if not found:
        echo(f"No jobs under {folder}.")
    for jobs in found:
        try:
            echo(jobs)
        except ArtifactError as error:
            # The others are listed all the same.
            echo(error)


@jobs_app.command(epilog=example("mmneuron jobs watch runs/mine"))
def watch(
    run: Run,
    once: Annotated[bool, typer.Option(help="Ask once and do not wait.")] = False,
    seconds: Annotated[float, typer.Option(min=0, help="Wait so long between two rounds.")] = 2.0,
) -> None:
    """Ask the server about a run's jobs until none is in flight. Keeps nothing; `resume` does."""
    from mmneuron_lens.runs.jobs import jobs_of
    from mmneuron_lens.runtime.jobs.server import JobFailed, Lost, Unreachable, ask_host
    from mmneuron_lens.runtime.jobs.watch import Clock

    clock, said = Clock(), dict[str, str]()
    while True:
        flying = [record for jobs in jobs_of(run) for record in jobs.flying]
        for record in flying:
            try:
                status = ask_host(record.host, str(record.job)).status or "unknown to the server"
            except (JobFailed, Lost) as error:
                status = f"ERROR: {error}"
            except Unreachable as error:
                status = f"no answer: {error}"
            if said.get(record.name) != status:
                echo(f"{record.name}  job {record.job}  {status}")
            said[record.name] = status
        # A job that ended stays in flight until its client has kept the result.
        if once or all(said[record.name].startswith(("COMPLETED", "ERROR")) for record in flying):
            for jobs in jobs_of(run):
                echo(jobs)
            return
        clock.wait(seconds)


@jobs_app.command(epilog=example("mmneuron jobs cancel runs/mine"))
def cancel(run: Run) -> None:
    """Forget a run's jobs in flight and send no more: NDIF has no way to stop one, so those sent run to their end."""
    from mmneuron_lens.runs.jobs import jobs_of
    from mmneuron_lens.runs.keys import Key
    from mmneuron_lens.runs.store import Store

    cancelled = 0
    for jobs in jobs_of(run):
        with Store(jobs.run).writing(Key(f"{jobs.name}.safetensors", {})):
            for name in jobs.records.run.jobs:
                record = jobs.records.record(name)
                if not jobs.done(name) and record.state not in ("cancelled", "failed"):
                    jobs.records.write(record, state="cancelled", job=None)
                    cancelled += 1
    echo(f"{cancelled} jobs cancelled; results that are there stay.")


@jobs_app.command(epilog=example("mmneuron jobs resume runs/mine"))
def resume(context: typer.Context, run: Run) -> None:
    """Run again the command that started a run's jobs: what is finished is kept, what is missing is sent."""
    from mmneuron_lens.runs.jobs import jobs_of
    from mmneuron_lens.runs.resuming import checked_command, closed_environment

    found = jobs_of(run)
    for jobs in found:
        echo(jobs)
    started = next((jobs for jobs in found if jobs.records.run.again), None)
    if started is None:
        echo("It was started from Python: run the same call again, and only what is missing is sent.")
        return
    root: Any = context.find_root().command
    words, where = checked_command(started, root.commands)
    echo(f"In {where}: mmneuron {shlex.join(words)}")
    environment = closed_environment()
    # Paths in the command are those of the folder it was given in.
    os.chdir(where)
    sys.stdout.flush()
    # In this process: a child would go on when this one is killed.
    os.execve(sys.executable, [sys.executable, "-m", "mmneuron_lens", *words], environment)
