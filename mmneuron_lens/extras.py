"""Extras: packages that only some of the work needs, and what installs them: `pip install 'mmneuron-lens[corpora]'`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from interventions.errors import MissingPackage

EXTRAS = {
    "accelerate": "quantize",
    "bitsandbytes": "quantize",
    "datasets": "corpora",
    "gguf": "smol",
    "onnx": "smol",
    "s3fs": "s3",
}
"""The extra of `pyproject.toml` that brings each package."""


def missing(purpose: str, *packages: str) -> MissingPackage:
    """The error of packages that are not installed, to raise: what needs them, and how to get them."""
    extra = EXTRAS[packages[0]]
    return MissingPackage(f"{purpose} needs {' and '.join(packages)}: pip install 'mmneuron-lens[{extra}]'.")


def needed(module: str, purpose: str) -> Any:
    """A module of a package of an extra, imported.

    - module: its name, such as "gguf.quants"
    - purpose: what needs it, as the message begins: "the smol model"

    Raises `MissingPackage` naming the extra where the package is not installed, and saying why where it does not load.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise MissingPackage(_broken(purpose, package, error)) from error
        raise missing(purpose, package) from error
    except ImportError as error:
        raise MissingPackage(_broken(purpose, package, error)) from error


def _broken(purpose: str, package: str, error: ImportError) -> str:
    return (
        f"{purpose} needs {package}, which is installed but does not load ({error}): "
        f"pip install --force-reinstall 'mmneuron-lens[{EXTRAS[package]}]'."
    )
