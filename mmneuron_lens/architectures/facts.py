"""Facts of an architecture: the common case, from which each says how it differs."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures import sharing
from mmneuron_lens.wire.facts_types import Facts


def facts(text_config: Any, **own: Any) -> Facts:
    """The facts of an architecture whose images stand in the text, a tile each, without CLS; `own` replaces any.

    `image_token`, `patches` and `patch_size` are always its own.
    """
    common: dict[str, Any] = {
        "images_in_text": True,
        "text_only": True,
        "nested": False,
        "around": ("", "\n"),
        "ending": None,
        "queries": 0,
        "cls": 0,
        "merged": 1,
        "tiling": "one",
        "windows": {},
        "positions": "row",
        "first": 0,
        "sees_ahead": "",
        "token_ids": {},
        "sharable": sharing.sharable(text_config),
    }
    if lacking := {"image_token", "patches", "patch_size"} - own.keys():
        raise TypeError(f"facts() lacks {', '.join(sorted(lacking))}")
    if strange := own.keys() - Facts.__annotations__.keys():
        raise TypeError(f"facts() has no {', '.join(sorted(strange))}")
    made: Any = {**common, **own}
    return made
