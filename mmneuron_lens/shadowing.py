"""Shadowing: whether Python takes a user's own `interventions.py` for the package that is installed beside this one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

NAME = "interventions"


class Shadowed(ImportError):
    """A file or folder of the user's is taken for the package `interventions`; the message names it."""


def refuse_shadow() -> None:
    """Raise `Shadowed` where `import interventions` gives something else than the package beside this one.

    The package is not imported: what it needs takes seconds to load.
    """
    own = Path(__file__).parent.parent / NAME / "__init__.py"
    found = _origin()
    if found is None or not own.is_file() or _same(found, own):
        return
    taken = found.parent if found.name == "__init__.py" else found
    raise Shadowed(
        f"{taken} is taken for the package {NAME!r} that mmneuron-lens brings; rename it, and start Python again.",
        name=NAME,
        path=str(taken),
    )


def _origin() -> Path | None:
    """The file that the name stands for; None where there is none, and for a folder that is no package."""
    module = sys.modules.get(NAME)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else Path(f"{module!r}")
    spec = find_spec(NAME)
    return Path(spec.origin) if spec is not None and spec.origin else None


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and one.samefile(other))
