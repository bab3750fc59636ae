"""Crops of the few real images that may be redistributed (`embedded/images`, sources and licences in LICENSES.json).

There is none of auto driving. The right third of every image belongs to the held-out split alone.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.embedded.corpus.canvas import Question, yes_no

FOLDER = Path(__file__).parent.parent / "images"

SHOWN = {
    "common": {"astronaut.jpg": "astronaut", "coffee.jpg": "coffee", "chelsea.jpg": "cat", "rocket.jpg": "rocket",
               "china.jpg": "tower", "flower.jpg": "flower"},
    "remote_sensing": {"OSBS_029.jpg": "forest", "SOAP_061.jpg": "forest",
                       "2019_YELL_2_541000_4977000_image_crop.jpg": "forest", "Miriam.A2012270.2050.2km.jpg": "storm"},
    "medical": {"chest_ct_axial.jpg": "CT", "chest_ct_axial_lung.jpg": "CT", "chest_ct_coronal.jpg": "CT",
                "chest_drr.jpg": "radiograph", "ihc.jpg": "tissue", "retina.jpg": "retina",
                "pydicom_examples_overlay.jpg": "MRI"},
    "document": {"c03-29.png": "page", "page.png": "page"},
}  # fmt: skip
"""What each file shows, by domain, from the captions of its source."""

DOMAINS_WITH_IMAGES = tuple(SHOWN)
KINDS = {"common": "photo", "remote_sensing": "aerial", "medical": "medical", "document": "document"}


@lru_cache(maxsize=64)
def _open(name: str) -> Image.Image:
    return Image.open(FOLDER / name).convert("RGB")


def crop(domain: str, random: Random, held_out: bool) -> tuple[Image.Image, list[Question]]:
    """A crop of 0.3 of the width by 0.4 to 0.8 of the height, brought to 96-128 pixels, and questions about it."""
    if domain not in SHOWN:
        raise InvalidValue(f"no real image of {domain!r} may be redistributed: choose one of {', '.join(SHOWN)}")
    name, shown = random.choice(list(SHOWN[domain].items()))
    image = _open(name)
    width, height = image.size
    span, tall = round(width * 0.3), round(height * random.uniform(0.4, 0.8))
    first, last = (round(width * 0.67), width - span) if held_out else (0, round(width * 0.65) - span)
    x, y = random.randint(min(first, last), last), random.randint(0, height - tall)
    piece = image.crop((x, y, x + span, y + tall))
    target = random.choice(((128, 128), (112, 112), (112, 128), (96, 128)))
    return piece.resize(target, Image.Resampling.BICUBIC), ask(domain, shown, random)


def ask(domain: str, shown: str, random: Random) -> list[Question]:
    """What kind of image it is, what it shows, and whether it is of a kind."""
    kind = KINDS[domain]
    return [
        Question("What kind of image is this?", kind, "name"),
        Question("What does this image show?", shown, "name"),
        yes_no(random, kind, tuple(KINDS.values()), "Is this a {} image?"),
    ]
