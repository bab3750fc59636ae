"""Shards of a count made on different machines, and the whole that they merge into."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.artifacts.counts import Counts, merge


@dataclass(frozen=True)
class Shard:
    """The `number`-th (from 1) of `of` shards of a count: every `of`-th batch, beginning with that one."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InvalidValue(f"shard {self} does not exist; choose from 1/{self.of} to {self.of}/{self.of}.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def part(self, batches: Sequence[Any]) -> Sequence[Any]:
        """The batches of this shard: a pure function of all batches."""
        return batches[self.number - 1 :: self.of]

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """A shard from `"2/4"`, or from the RANK and WORLD_SIZE that `accelerate launch` sets (`"process"`).

        Raises `ValueError` with an example for anything else.
        """
        if text == "process":
            if "RANK" not in environment or "WORLD_SIZE" not in environment:
                raise InvalidValue("shard 'process' needs RANK and WORLD_SIZE; start it with `accelerate launch`.")
            return cls(int(environment["RANK"]) + 1, int(environment["WORLD_SIZE"]))
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None:
            raise InvalidValue(f"shard {text!r} is not a number of a total; write 1/4, 2/4, ..., or process.")
        return cls(int(found[1]), int(found[2]))


WHOLE = Shard()


def merge_shards(counts: Sequence[Counts]) -> Counts:
    """All shards of one count as the whole: equal to one run bit for bit, in any order.

    Raises `ValueError` naming every difference when they are not of one count (`merge`), a shard that comes twice,
    or the shards that are missing.
    """
    if not counts:
        raise InvalidValue("no shards to merge; give the counts of every shard.")
    total = merge(counts[0], *counts[1:])
    shards = [Shard.parse(text) for text in total.provenance.get("shards", [str(WHOLE)])]
    sizes = sorted({shard.of for shard in shards})
    if len(sizes) > 1:
        raise InvalidValue(f"cannot merge shards of {total.domain}: some are of {sizes[0]}, some of {sizes[1]} shards.")
    there = {shard.number for shard in shards}
    missing = [f"{number}/{sizes[0]}" for number in range(1, sizes[0] + 1) if number not in there]
    if missing:
        raise InvalidValue(
            f"cannot merge shards of {total.domain}: {', '.join(missing)} of {sizes[0]} missing; count them with "
            f"--shard {missing[0]}, or give the folder they are in."
        )
    if not total.samples:
        raise InvalidValue(f"no sample of {total.domain} could be read; see the problems of its rows.")
    return replace(total, provenance={name: value for name, value in total.provenance.items() if name != "shards"})


def shard_file(out: str | Path, model: str, domain: str, shard: Shard) -> Path:
    """Where the finished counts of a shard lie in a run; model and domain as file names."""
    return Path(out) / "shards" / model / f"{domain}.{shard.number}-of-{shard.of}.safetensors"


def unfinished(path: Path) -> Path:
    """Where the counts of a shard lie while it is counted."""
    return path.with_name(path.name.replace(".safetensors", ".unfinished.safetensors"))


def merge_runs(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Merges the shards in one or more runs' folders, writes `counts/<model>/<domain>.safetensors`, returns the files.

    A shard that lies in two runs is merged once when both files are the same. Raises `ValueError` as `merge_shards`
    does, before anything is written, and when a run holds no finished shard.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for run in runs:
        found = sorted((Path(run) / "shards").glob("*/*-of-*.safetensors"))
        found = [path for path in found if not path.name.endswith(".unfinished.safetensors")]
        if not found:
            raise InvalidValue(
                f"{run} holds no finished shard; write one with `mmneuron count --shard 1/4 --out {run}`."
            )
        for path in found:
            groups.setdefault((path.parent.name, path.name.rsplit(".", 2)[0]), []).append(path)
    whole = {}
    for key, paths in groups.items():
        different = {path.read_bytes(): path for path in reversed(paths)}
        try:
            whole[key] = merge_shards([Counts.load(path) for path in reversed(different.values())])
        except ValueError as error:
            raise InvalidValue(f"{key[0]}, {key[1]}: {error} Files: {', '.join(map(str, paths))}") from None
    files = []
    for (model, domain), counts in whole.items():
        files.append(Path(out) / "counts" / model / f"{domain}.safetensors")
        counts.save(files[-1])
    return files
