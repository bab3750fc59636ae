"""Thumbnails of the gallery, from the figures that notebooks are stored with: docs/figures/gallery/NAME.png.

    python notebooks/thumbnails.py

Taken is the first figure of a cell with the tag `thumbnail`, or of the notebook where no cell has it.
"""

from __future__ import annotations

import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

from execute import FOLDER, names, read
from PIL import Image, ImageOps

GALLERY = FOLDER.parent / "docs" / "figures" / "gallery"
SIZE, MARGIN = (640, 400), 12
"""Pixels: twice what a card of the gallery shows, for fine screens."""

LARGEST = 60_000
"""Bytes."""


def figure_of(notebook: Any) -> Image.Image:
    """The figure that stands for a notebook. Raises `ValueError` where it has none."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in cells if "thumbnail" in cell.metadata.get("tags", [])]
    for cell in tagged or cells:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                return Image.open(BytesIO(b64decode(output.data["image/png"])))
    raise ValueError("a notebook without a figure has no thumbnail; execute it first.")


def thumbnail(figure: Image.Image) -> bytes:
    """The whole figure on white, as PNG of at most 256 colours."""
    inside = (SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN)
    small = ImageOps.contain(figure.convert("RGB"), inside, Image.Resampling.LANCZOS)
    page = Image.new("RGB", SIZE, "white")
    page.paste(small, ((SIZE[0] - small.width) // 2, (SIZE[1] - small.height) // 2))
    for colours in (256, 128, 64, 32):
        buffer = BytesIO()
        page.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        if len(buffer.getvalue()) <= LARGEST:
            break
    return buffer.getvalue()


def made(name: str) -> bytes:
    """The thumbnail of a notebook as it is stored."""
    return thumbnail(figure_of(read(name)))


def main() -> None:
    GALLERY.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or names():
        path: Path = GALLERY / f"{name}.png"
        path.write_bytes(made(name))
        print(f"{path.relative_to(FOLDER.parent)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
