"""Domain-specific neurons of vision-language models: found, switched off, and read (MMNeuron, arXiv 2406.11193)."""

from __future__ import annotations

# beartype must be imported before nnsight, whose patch of `object` it otherwise cannot hash.
import beartype as _beartype  # noqa: F401

__version__ = "0.1.0"

__all__ = ["Lens", "__version__"]


def __getattr__(name: str) -> object:
    # Lazy, so that importing the package does not load nnsight and transformers.
    if name == "Lens":
        from mmneuron_lens.lens import Lens

        return Lens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
