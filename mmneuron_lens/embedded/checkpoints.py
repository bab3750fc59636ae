"""Checkpoints: the folders of the models that come with the package, by the names that `pyproject.toml` gives them."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent

EMBEDDED = ("llava-next", "instructblip", "idefics3")
"""Models whose weights ship with the package."""


def llava_next() -> Path:
    """A small LLaVA-NeXT whose trained weights ship with the package."""
    return HERE / "llava-next"


def instructblip() -> Path:
    """A small InstructBLIP whose trained weights ship with the package."""
    return HERE / "instructblip"


def idefics3() -> Path:
    """A small Idefics3, the architecture of SmolVLM, whose trained weights ship with the package."""
    return HERE / "idefics3"


def smol() -> Path:
    """LLaVA-NeXT with a real language model, assembled on its first use from parts that are fetched then.

    Raises `FetchError` when a part cannot be had, `MissingPackage` without the extra `[smol]`.
    """
    from mmneuron_lens.embedded.smol import smol_folder

    return smol_folder()
