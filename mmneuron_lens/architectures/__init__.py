"""Models: one file per architecture says where its named sites lie."""

from __future__ import annotations

from typing import Any

from interventions.sites import unknown
from mmneuron_lens.architectures import blip2, instructblip, llava, llava_next
from mmneuron_lens.architectures.architecture import Anatomy, Place

ARCHITECTURES = {
    "llava_next": llava_next.anatomy,
    "instructblip": instructblip.anatomy,
    "llava": llava.anatomy,
    "blip-2": blip2.anatomy,
}
"""Anatomies by the configuration's `model_type`."""


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a model from its configuration. Raises `ValueError` with the choices for an unknown type."""
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"{unknown('architecture', config.model_type, list(ARCHITECTURES))} "
            "docs/adding-an-architecture.md says what it takes to add one."
        )
    return ARCHITECTURES[config.model_type](config)


__all__ = ["ARCHITECTURES", "Anatomy", "Place", "anatomy_of"]
