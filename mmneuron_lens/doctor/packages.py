"""Packages: the versions that are there, against those that this package's own metadata ask for."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mmneuron_lens.doctor.diagnosis import Diagnosis

NAME = "mmneuron-lens"

NAMED = ("torch", "transformers", "nnsight", "jaxtyping", "beartype", "huggingface_hub")
"""Packages with a line of their own; of the others only those that do not fit have one."""

EXTRAS = {
    "corpora": "corpora of the hub, and folders that datasets saved",
    "quantize": "models in 4 or 8 bits, and layers on several devices",
    "remote": "the same as s3; running on NDIF needs no extra",
    "s3": "push and pull to s3:// folders",
    "smol": "`embedded/smol`, a model with a real language model",
    "docs": "building these docs; not needed to use the package",
    "dev": "working on the package itself; not needed to use it",
}
"""What an extra is for."""

UNASKED = ("docs", "dev")
"""Extras that a user does not miss."""


def version_of(name: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def version_line() -> str:
    """Name and version, with the packages on which results depend most, in one line."""
    from mmneuron_lens import __version__

    others = ", ".join(f"{name} {version_of(name) or 'missing'}" for name in ("torch", "transformers", "nnsight"))
    return f"{NAME} {__version__} ({others}, Python {platform.python_version()})"


def package_checks(
    own: Distribution | None = None, installed: Callable[[str], str | None] = version_of
) -> list[Diagnosis]:
    """Python and every package that is needed; one line for those that fit and are not `NAMED`.

    - own: where the ranges are read from; this package's metadata if None.
    - installed: the version of a package by name.
    """
    from mmneuron_lens import __version__

    try:
        own = own or distribution(NAME)
    except PackageNotFoundError:
        step = "install it, so that versions can be checked: pip install -e ."
        return [Diagnosis("Packages", NAME, "note", f"{__version__}, run from a folder", step)]
    checks = [Diagnosis("Packages", NAME, "ok", __version__), _python(own)]
    needed = _required(own)
    found = {name: _package(name, ranges, installed(name)) for name, ranges in needed.items()}
    checks += [one for name, one in found.items() if name in NAMED or one.state != "ok"]
    fitting = sum(one.state == "ok" and name not in NAMED for name, one in found.items())
    return [*checks, Diagnosis("Packages", "others", "ok", f"{fitting} more, all in their ranges")]


def extra_checks(
    own: Distribution | None = None, installed: Callable[[str], str | None] = version_of
) -> list[Diagnosis]:
    """Every extra: whether it is installed, and what it is for. Parameters as of `package_checks`."""
    try:
        own = own or distribution(NAME)
    except PackageNotFoundError:
        return []
    checks = []
    for extra in own.metadata.get_all("Provides-Extra") or []:
        missing = [name for name, ranges in _required(own, extra).items() if not _fits(ranges, installed(name))]
        purpose = EXTRAS.get(extra, "")
        if not missing:
            checks.append(Diagnosis("Extras", extra, "ok", f"installed: {purpose}"))
            continue
        step = "" if extra in UNASKED else f"pip install '{NAME}[{extra}]'"
        state = "ok" if extra in UNASKED else "note"
        checks.append(Diagnosis("Extras", extra, state, f"not installed ({', '.join(missing[:3])}): {purpose}", step))
    return checks


def _required(own: Distribution, extra: str = "") -> dict[str, SpecifierSet]:
    """By name, the range of each package that is needed, or that an extra needs besides."""
    found: dict[str, SpecifierSet] = {}
    for text in own.requires or []:
        one = Requirement(text)
        asked = one.marker is None or one.marker.evaluate({"extra": extra})
        alone = one.marker is not None and "extra" in str(one.marker)
        if asked and alone == bool(extra) and one.name != NAME:
            found[one.name] = found.get(one.name, SpecifierSet()) & one.specifier
    return found


def _fits(ranges: SpecifierSet, there: str | None) -> bool:
    return there is not None and ranges.contains(there, prereleases=True)


def _package(name: str, ranges: SpecifierSet, there: str | None) -> Diagnosis:
    asked = ",".join(sorted(map(str, ranges), reverse=True)) or "any version"
    if _fits(ranges, there):
        return Diagnosis("Packages", name, "ok", f"{there} ({asked})")
    said = "missing" if there is None else f"{there}, not {asked}"
    return Diagnosis("Packages", name, "problem", said, f"pip install '{name}{asked if ranges else ''}'")


def _python(own: Distribution) -> Diagnosis:
    asked, here = own.metadata["Requires-Python"] or "", platform.python_version()
    if SpecifierSet(asked).contains(here, prereleases=True):
        return Diagnosis("Packages", "Python", "ok", f"{here} ({asked})")
    return Diagnosis(
        "Packages", "Python", "problem", f"{here}, not {asked}", f"make an environment with Python {asked}"
    )


def all_states(checks: Sequence[Diagnosis]) -> dict[str, int]:
    """How many checks there are of each state."""
    return {state: sum(one.state == state for one in checks) for state in ("ok", "note", "problem")}
