"""Jobs that survive: a corpus as shards, each a job on a server whose id is on disk before anyone waits for it."""

from mmneuron_lens.runtime.jobs.run import Shard, run_shards
from mmneuron_lens.runtime.jobs.server import JobFailed
from mmneuron_lens.runtime.jobs.store import JobsBusy, JobStore, default_folder
from mmneuron_lens.runtime.jobs.watch import Clock, JobsUnfinished, Limits

__all__ = [
    "Clock",
    "JobFailed",
    "JobStore",
    "JobsBusy",
    "JobsUnfinished",
    "Limits",
    "Shard",
    "default_folder",
    "run_shards",
]
