"""The lens to be hovered over: point at an image patch or a word and read what it decodes to at each layer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from markupsafe import Markup
from PIL import Image
from torch import Tensor

from mmneuron_lens.report.html_text import html, json_in_html, visible


def hover(document: Mapping[str, Any], pictures: Sequence[Tensor], caption: str) -> Markup:
    """The element that `hover.js` brings to life, with all it shows inside it.

    - document: what `LensTrace.document` gives.
    - pictures: uint8 [height, width, 3], by the number that the document's boxes name.
    - caption: what a screen reader calls it.
    """
    seen = {name: [*map(visible, one)] if isinstance(one, list) else visible(one) for name, one in document.items()}
    data = {**seen, "pictures": [data_uri(picture) for picture in pictures]}
    return html(
        '<div class="lens" role="group" aria-label="{}"><script type="application/json">{}</script></div>',
        *(caption, json_in_html(data)),
    )


def data_uri(picture: Tensor) -> str:
    """The picture as a PNG inside a URI."""
    buffer = BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
