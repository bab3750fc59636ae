"""Where files lie that are made or fetched once and used by many runs."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MMNEURON_CACHE"


def cache_folder() -> Path:
    """`$MMNEURON_CACHE`, or `~/.cache/mmneuron-lens`."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "mmneuron-lens"
