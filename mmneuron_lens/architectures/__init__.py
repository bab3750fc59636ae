"""Architectures: one file each says where the named sites of its models lie."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.architectures import blip2, instructblip, llava, llava_next
from mmneuron_lens.architectures.architecture import Architecture, Place

ARCHITECTURES = {
    "llava_next": llava_next.architecture,
    "instructblip": instructblip.architecture,
    "llava": llava.architecture,
    "blip-2": blip2.architecture,
}
"""Architectures by the configuration's `model_type`."""


def architecture_of(config: Any) -> Architecture:
    """The architecture of a model from its configuration. Raises `ValueError` with the choices for an unknown type."""
    if config.model_type not in ARCHITECTURES:
        raise InvalidValue(
            f"{unknown('architecture', config.model_type, list(ARCHITECTURES))} "
            "docs/adding-an-architecture.md says what it takes to add one."
        )
    return ARCHITECTURES[config.model_type](config)


__all__ = ["ARCHITECTURES", "Architecture", "Place", "architecture_of"]
