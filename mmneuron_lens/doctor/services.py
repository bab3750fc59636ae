"""Where models and results come from: NDIF, the hub, and what a folder hides. No key is shown, no server asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmneuron_lens.doctor.diagnosis import Diagnosis

GROUP = "Models from elsewhere"

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def ndif_checks(environment: Mapping[str, str] = os.environ) -> list[Diagnosis]:
    """NDIF's host and whether there is a key, as nnsight would find them; nnsight itself takes seconds to load."""
    found = _nnsight_settings(environment)
    host, key = str(found.get("HOST") or "none"), bool(found.get("APIKEY"))
    step = "" if key else "for --remote ndif: get a key at login.ndif.us, and set NDIF_API_KEY"
    told = "there, not shown" if key else "none"
    return [
        Diagnosis(GROUP, "NDIF host", "ok", host),
        Diagnosis(GROUP, "NDIF key", "ok" if key else "note", told, step),
    ]


def _nnsight_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """nnsight's own file, under the user's, under the environment."""
    import yaml

    own = find_spec("nnsight")
    shipped = Path(own.origin or "").parent / "config.yaml" if own is not None else None
    base = Path(environment.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "nnsight" / "config.yaml"
    user = Path(environment["NNSIGHT_CONFIG"]) if environment.get("NNSIGHT_CONFIG") else base
    found: dict[str, Any] = {}
    for file in (shipped, user):
        try:
            found |= (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("API") or {} if file else {}
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            continue
    named = {"HOST": environment.get("NDIF_HOST"), "APIKEY": environment.get("NDIF_API_KEY")}
    return found | {name: value for name, value in named.items() if value}


def hub_checks(environment: Mapping[str, str] = os.environ) -> list[Diagnosis]:
    """The hub: whether one is logged in, and whether it may be asked at all."""
    from huggingface_hub import get_token

    there = bool(environment.get("HF_TOKEN") or get_token())
    step = "" if there else "for gated models and for push: hf auth login"
    checks = [Diagnosis(GROUP, "hub login", "ok", "there, not shown" if there else "none", step)]
    set_to = [f"{name}={environment[name]}" for name in OFFLINE if environment.get(name)]
    if set_to:
        found = f"{', '.join(set_to)}: nothing is fetched"
        checks.append(Diagnosis(GROUP, "offline", "note", found, "unset it to fetch checkpoints and corpora"))
    return checks


def shadow_checks(folder: Path | None = None) -> list[Diagnosis]:
    """Whether a folder holds a module by the name of this package's `interventions`."""
    import interventions
    import mmneuron_lens

    folder, own = folder or Path.cwd(), Path(mmneuron_lens.__file__).parent.parent
    if Path(interventions.__file__ or "").parent.parent != own:
        found = f"Python imports {interventions.__file__}, which is not this package's"
        return [Diagnosis("Packages", "interventions", "problem", found, "rename that file, or run in another folder")]
    there = [one for one in (folder / "interventions.py", folder / "interventions") if one.exists()]
    if there and there[0].resolve().parent != own.resolve():
        found = f"{there[0]} hides this package's `interventions` from notebooks and scripts here"
        return [Diagnosis("Packages", "interventions", "problem", found, "rename it, to my_interventions.py for one")]
    return []
