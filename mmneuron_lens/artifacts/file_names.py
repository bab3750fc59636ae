"""Names of files that every file system tells apart."""

from __future__ import annotations

import hashlib
import re

from interventions.errors import InvalidValue

LONGEST = 100
"""Characters of a file name, its ending apart."""

# Names that Windows keeps for devices, whatever their ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


def file_name(name: str) -> str:
    """A name of a model or domain as a file name: readable, safe everywhere, and another one for every other name.

    Lower-case letters, digits, `.`, `_` and `-` stay, and `/` becomes `+`: `embedded+llava-next`. Where anything else
    had to be changed (capitals too, since some file systems do not tell them apart), a digest of the name follows:
    `qwen+qwen2.5-vl~8c1f2a90d3`. A name that Windows keeps for a device begins with `_`.
    """
    plain = re.sub(r"[^a-z0-9._+-]", "_", name.lower().replace("+", "_").replace("/", "+"))
    plain = re.sub(r"^[.]|[.]$", "_", plain)[:LONGEST] or "_"
    if plain.partition(".")[0] in _DEVICES:
        plain = f"_{plain}"
    if plain == name.replace("/", "+") and "+" not in name:
        return plain
    return f"{plain}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"


def refuse_unportable(path: str) -> None:
    """Raises `InvalidValue` for a path with `/` that leaves its folder, is hidden, or is no file on some system."""
    parts = path.split("/")
    for part in parts:
        plain = re.fullmatch(r"[^\\:*?\"<>|\x00-\x1f\x7f]{1,200}", part) is not None and part.isprintable()
        device = part.partition(".")[0].strip().lower() in _DEVICES
        if not plain or device or part.startswith((".", " ")) or part.endswith((".", " ")):
            raise InvalidValue(f"{path!r:.200} is no path that stays in its folder on every system.")
    if len(path) > 1000:
        raise InvalidValue(f"{path!r:.200}... is a path of {len(path)} characters, and 1000 are taken.")
