"""Medical: an axial section of the chest with nodules and an annotation ring, asked about in the manner of PMC-VQA.

Left and right are those of the image, as every question says.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw, ImageFilter

from mmneuron_lens.embedded.corpus.canvas import COLOURS, Facts, Question, add_noise, box, with_options, yes_no

FACTS = {
    "modality": ("CT", "MRI"),
    "nodules": ("1", "2", "3"),
    "side": ("left", "right"),
    "enlarged": ("yes", "no"),
    "marked": ("left lung", "right lung", "heart", "spine"),
    "ring": tuple(COLOURS),
}
SIZES = ((128, 128), (128, 112), (144, 128))
GREYS = {"CT": dict(air=4, fat=70, tissue=135, lung=22, heart=165, bone=245, nodule=215),
         "MRI": dict(air=10, fat=225, tissue=80, lung=8, heart=150, bone=45, nodule=200)}  # fmt: skip
CENTRES = {"left lung": (0.29, 0.47), "right lung": (0.71, 0.47), "heart": (0.5, 0.42), "spine": (0.5, 0.76)}


def paint(facts: Facts, random: Random) -> Image.Image:
    """Fat rim, body, two lungs, heart, spine; then nodules, blur and grain; last the coloured ring."""
    width, height = random.choice(SIZES)
    grey = {name: value + random.randint(-6, 6) for name, value in GREYS[facts["modality"]].items()}
    image = Image.new("L", (width, height), max(0, grey["air"]))
    draw = ImageDraw.Draw(image)
    scale, x, y = random.uniform(0.93, 1.0), width * random.uniform(0.485, 0.515), height * random.uniform(0.49, 0.52)
    draw.ellipse(box(x, y, width * 0.48 * scale, height * 0.42 * scale), fill=grey["fat"])
    draw.ellipse(box(x, y, width * 0.43 * scale, height * 0.37 * scale), fill=grey["tissue"])
    for lung in ("left lung", "right lung"):
        cx, cy = CENTRES[lung]
        lobe = box(width * cx, height * cy, width * 0.155 * scale, height * 0.24 * scale)
        draw.ellipse(lobe, fill=max(0, grey["lung"]))
    radius = 0.16 if facts["enlarged"] == "yes" else 0.075
    draw.ellipse(box(width * 0.5, height * 0.42, width * radius, height * radius * 1.05), fill=grey["heart"])
    draw.ellipse(box(width * 0.5, height * 0.76, width * 0.075), fill=min(255, grey["bone"]))
    cx, cy = CENTRES[f"{facts['side']} lung"]
    shift = -0.03 if facts["side"] == "left" else 0.03
    for slot in random.sample((-0.15, 0.0, 0.15), int(facts["nodules"])):
        nx, ny = width * (cx + shift + random.uniform(-0.02, 0.02)), height * (cy + slot)
        draw.ellipse(box(nx, ny, width * random.uniform(0.04, 0.05)), fill=grey["nodule"])
    image = add_noise(image.filter(ImageFilter.BoxBlur(0.7)).convert("RGB"), random, 9)
    cx, cy = CENTRES[facts["marked"]]
    ring = box(width * cx, height * cy, width * 0.13)
    ImageDraw.Draw(image).ellipse(ring, outline=COLOURS[facts["ring"]], width=4)
    return image


def ask(facts: Facts, random: Random) -> list[Question]:
    """All questions about a section; two of them in the options form."""
    return [
        Question("What imaging modality was used?", facts["modality"], "name"),
        Question("How many nodules are seen in the lung?", facts["nodules"], "count"),
        Question("On which side of the image do the nodules lie?", facts["side"], "place"),
        Question("Does the section show an enlarged heart?", facts["enlarged"], "yes/no"),
        yes_no(random, facts["marked"], FACTS["marked"], "Does the ring mark the {}?"),
        with_options(random, facts["marked"], FACTS["marked"], "Which structure is marked by the ring?"),
        with_options(random, facts["ring"], FACTS["ring"], "What is the color of the ring in the figure?"),
    ]
