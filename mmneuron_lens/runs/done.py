"""Which stages of a run are done, so that the same command goes on where it was stopped.

A stage is done when `stages/<name>.json` says that it was made from these very inputs and the files it names still
have the bytes it wrote. So a change of one stage repeats what depends on it and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmneuron_lens.artifacts.format import content_hash, provenance

Say = Callable[[str], Any]
"""Tells the user what goes on, a line at a time."""


class Stages:
    """Which stages of a run's folder are done, by the inputs they were made from."""

    def __init__(self, out: str | Path, say: Say = lambda text: None) -> None:
        self.out = Path(out)
        self.say = say

    def run(self, name: str, what: str, inputs: dict[str, Any], make: Callable[[], Any], files: Sequence[Path]) -> bool:
        """Makes the files unless they are there as they were made from equal inputs; True where it had to."""
        stamp = self.out / "stages" / f"{name}.json"
        known = json.loads(json.dumps({**inputs, "versions": provenance()["versions"]}, sort_keys=True))
        if self._is_done(stamp, known, files):
            self.say(f"already done: {what}")
            return False
        self.say(what)
        make()
        made = {str(file.relative_to(self.out)): content_hash(file) for file in files}
        stamp.parent.mkdir(parents=True, exist_ok=True)
        partial = stamp.with_name(f".{stamp.name}.partial")
        partial.write_text(json.dumps({"inputs": known, "files": made}, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(partial, stamp)
        return True

    def _is_done(self, stamp: Path, inputs: dict[str, Any], files: Sequence[Path]) -> bool:
        if not stamp.is_file():
            return False
        known = json.loads(stamp.read_text(encoding="utf-8"))
        names = {str(file.relative_to(self.out)) for file in files}
        if known["inputs"] != inputs or known["files"].keys() != names:
            return False
        return all(file.is_file() and content_hash(file) == known["files"][self._name(file)] for file in files)

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.out))
