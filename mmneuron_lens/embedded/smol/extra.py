"""Packages that only the assembling of this model needs: the extra `[smol]`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from interventions.errors import MissingPackage


def needed(package: str) -> Any:
    """The package. Raises `ImportError` saying how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingPackage(
            f"{package} reads the parts of the smol model and is not installed; pip install 'mmneuron-lens[smol]'."
        ) from error
