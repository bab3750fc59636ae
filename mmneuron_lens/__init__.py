"""Domain-specific neurons of vision-language models: found, switched off, and read (MMNeuron, arXiv 2406.11193)."""

from __future__ import annotations

import sys as _sys

# nnsight gives every object a `save`, which beartype cannot hash while it is being imported: beartype comes first, or
# `save` is taken off for that moment.
if "nnsight" in _sys.modules and "beartype" not in _sys.modules:
    from nnsight import save as _save
    from nnsight._c import mount as _mount
    from nnsight._c import unmount as _unmount

    _unmount("save")
    import beartype as _beartype

    _mount(_save, "save")
else:
    import beartype as _beartype  # noqa: F401

__version__ = "0.1.0"

__all__ = ["Lens", "__version__"]


def __getattr__(name: str) -> object:
    # Lazy, so that importing the package does not load nnsight and transformers.
    if name == "Lens":
        from mmneuron_lens.lens import Lens

        return Lens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
