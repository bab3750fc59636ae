"""Jobs of a run: what is in the air, what is done, and how what the server has finished is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from interventions.errors import InvalidValue
from mmneuron_lens.runs.pieces import steps_named
from mmneuron_lens.runtime.jobs.records import Record, Records

JOBS = "*.pieces/jobs/run.json"


@dataclass(frozen=True)
class RunJobs:
    """The jobs of one value that is made on a server, in the folder of its pieces."""

    run: Path
    records: Records

    @property
    def folder(self) -> Path:
        """Of the records."""
        assert self.records.folder is not None
        return self.records.folder

    @property
    def name(self) -> str:
        """The value's place in the run: "counts/embedded+llava-next/medical"."""
        return self.folder.parent.relative_to(self.run).as_posix().removesuffix(".pieces")

    @property
    def flying(self) -> list[Record]:
        """Jobs that were sent and whose results are not kept yet."""
        return [record for record in self.records.known() if record.state == "submitted"]

    def done(self, name: str) -> bool:
        """Whether a job's piece is there, or is part of a larger one."""
        steps = steps_named(name)
        kept = [steps_named(file.stem) for file in self.folder.parent.glob("*.safetensors")]
        return steps is not None and any(one and {*steps} <= {*one} for one in kept)

    def __str__(self) -> str:
        run = self.records.run
        states = Counter("done" if self.done(name) else self.records.record(name).state for name in run.jobs)
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.run / self.name}  {run.title or 'untitled'} at {run.host}: {len(run.jobs)} jobs, {counted}"


def jobs_under(folder: str | Path) -> list[RunJobs]:
    """The jobs of a run, or of every run in a folder, by name."""
    folder = Path(folder)
    found = []
    for file in sorted(folder.glob(f"**/{JOBS}")):
        # RUN/kind/model/domain.pieces/jobs/run.json
        run = next((one for one in file.parents if (one / "counts").is_dir()), folder)
        found.append(RunJobs(run, Records(file.parent)))
    return found


def jobs_of(run: str | Path) -> list[RunJobs]:
    """As `jobs_under`. Raises `InvalidValue` for a folder without any."""
    found = jobs_under(run)
    if not found:
        raise InvalidValue(f"{run} holds no jobs in flight; `mmneuron jobs list` shows the runs that do.")
    return found
