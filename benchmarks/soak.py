"""Soak: every fault of tests/remote/faults.py on a live server, several times; writes benchmarks/soak-DATE.log.

    python benchmarks/soak.py --repeat 3

Needs what `mmneuron ndif up --cpu` started: MMNEURON_NDIF_URL, and MMNEURON_NDIF_STATE where it is not the default.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "remote"), str(ROOT / "tests")]

import mmneuron_lens  # noqa: E402, F401, I001  (first: it imports beartype before nnsight)
import torch  # noqa: E402
from drawn_corpus import write_corpus  # noqa: E402
from faults import FAULTS, Live, equal, jobs_sent, pieces_of, undisturbed  # noqa: E402

from mmneuron_lens.ndif.state import State, default_folder  # noqa: E402


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--repeat", type=int, default=3)
    words.add_argument("--only", default="", help="faults whose names contain this")
    words.add_argument("--images", type=int, default=24)
    given = words.parse_args()
    torch.set_num_threads(1)
    state = State(default_folder())
    python = Path(os.environ.get("MMNEURON_NDIF_ENV") or state.folder / "environment") / "bin" / "python"
    live = Live(state, os.environ["MMNEURON_NDIF_URL"], python)
    failed, lines = 0, []
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", ("common",), images=given.images)
        expected, pieces = undisturbed(live, corpus), pieces_of(live, corpus)
        for number in range(given.repeat):
            for name, fault in FAULTS.items():
                if given.only not in name:
                    continue
                run, began = Path(folder) / f"{name}{number}", time.monotonic()
                with jobs_sent() as sent:
                    try:
                        found = fault(live, corpus, run)
                        said = "counts equal" if equal(found, expected) else "COUNTS DIFFER"
                    except Exception as error:
                        cause = f" ({error.__cause__!r})" if error.__cause__ else ""
                        said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}{cause}"
                seconds = time.monotonic() - began
                failed += said != "counts equal"
                # Those of a client that was killed are its own.
                lines.append(
                    f"{number + 1}  {name:20}  {seconds:6.1f} s  {pieces:3} pieces  {len(sent):3} jobs sent  {said}"
                )
                print(lines[-1], flush=True)
                if said != "counts equal":
                    live.restart()
    if given.only:
        return 1 if failed else 0
    log = ROOT / "benchmarks" / f"soak-{datetime.date.today().isoformat()}.log"
    title = f"{live.state.known().models[0][0]}, {given.images} images, {given.repeat} times each, {failed} failures"
    log.write_text("\n".join([title, *lines]) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
