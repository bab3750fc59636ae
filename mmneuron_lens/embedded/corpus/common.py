"""Common scenes: one everyday object in a room, asked about in the manner of VQAv2."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from mmneuron_lens.embedded.corpus.canvas import COLOURS, Colour, Facts, Question, add_noise, box, shade, vary, yes_no

FACTS = {
    "object": ("ball", "cup", "cat", "box", "chair"),
    "colour": tuple(COLOURS),
    "place": ("left", "middle", "right"),
    "pictures": ("1", "2", "3", "4"),
    "rug": ("yes", "no"),
}
SIZES = ((128, 128), (144, 112), (128, 96), (112, 128))
WALLS: tuple[Colour, ...] = ((226, 214, 196), (205, 216, 222), (224, 205, 208), (212, 222, 204))


def paint(facts: Facts, random: Random) -> Image.Image:
    """The room: wall with pictures, floor with perhaps a rug, and the object standing on it."""
    width, height = random.choice(SIZES)
    image = Image.new("RGB", (width, height), vary(random, random.choice(WALLS)))
    draw = ImageDraw.Draw(image)
    horizon = height * random.uniform(0.52, 0.6)
    draw.rectangle((0, horizon, width, height), fill=vary(random, (150, 116, 84)))
    draw.line((0, horizon, width, horizon), fill=(90, 70, 55), width=2)
    for slot in random.sample(range(4), int(facts["pictures"])):
        x, y = width * (0.14 + 0.24 * slot), height * random.uniform(0.14, 0.2)
        frame = box(x, y, width * 0.085, height * random.uniform(0.09, 0.12))
        draw.rectangle(frame, fill=vary(random, (130, 140, 150), 40), outline=(50, 36, 28), width=3)
    x = width * {"left": 0.22, "middle": 0.5, "right": 0.78}[facts["place"]] + random.uniform(-5, 5)
    base = height * random.uniform(0.84, 0.92)
    if facts["rug"] == "yes":
        rug = box(width / 2, base, width * 0.46, height * 0.085)
        draw.ellipse(rug, fill=vary(random, (120, 60, 120)), outline=(240, 225, 235), width=2)
    size = min(width, height) * random.uniform(0.34, 0.42)
    OBJECTS[facts["object"]](draw, x, base, size, vary(random, COLOURS[facts["colour"]]))
    return add_noise(image, random, 5)


def ball(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, colour: Colour) -> None:
    draw.ellipse(box(x, base - size / 2, size / 2), fill=shade(colour, 0.8))
    draw.ellipse(box(x - size * 0.06, base - size * 0.56, size * 0.38), fill=colour)
    draw.ellipse(box(x - size * 0.18, base - size * 0.7, size * 0.09), fill=(250, 250, 250))


def cup(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, colour: Colour) -> None:
    draw.ellipse(box(x + size * 0.36, base - size * 0.45, size * 0.2, size * 0.24), outline=colour, width=5)
    draw.rectangle((x - size * 0.36, base - size * 0.85, x + size * 0.34, base), fill=colour)
    draw.ellipse(
        box(x - size * 0.01, base - size * 0.85, size * 0.35, size * 0.11),
        fill=(70, 45, 30),
        outline=shade(colour, 1.2),
    )


def cat(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, colour: Colour) -> None:
    draw.ellipse(box(x, base - size * 0.28, size * 0.36, size * 0.28), fill=colour)
    draw.arc(box(x + size * 0.38, base - size * 0.35, size * 0.2, size * 0.32), 250, 90, fill=colour, width=5)
    head_y = base - size * 0.74
    for side in (-1, 1):
        tip = (x + side * size * 0.26, head_y - size * 0.42)
        draw.polygon(
            [tip, (x + side * size * 0.04, head_y - size * 0.16), (x + side * size * 0.27, head_y)],
            fill=shade(colour, 0.75),
        )
    draw.ellipse(box(x, head_y, size * 0.27, size * 0.23), fill=colour)
    for side in (-1, 1):
        draw.ellipse(box(x + side * size * 0.11, head_y - 1, 2.5), fill=(20, 20, 20))


def cube(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, colour: Colour) -> None:
    left, front, top, depth = x - size * 0.48, x + size * 0.24, base - size * 0.68, size * 0.24
    draw.rectangle((left, top, front, base), fill=colour)
    draw.polygon(
        [(left, top), (left + depth, top - depth), (front + depth, top - depth), (front, top)], fill=shade(colour, 1.3)
    )
    draw.polygon(
        [(front, top), (front + depth, top - depth), (front + depth, base - depth), (front, base)],
        fill=shade(colour, 0.6),
    )


def chair(draw: ImageDraw.ImageDraw, x: float, base: float, size: float, colour: Colour) -> None:
    left, right, seat = x - size * 0.32, x + size * 0.32, base - size * 0.48
    for leg in (left + 2, right - 2):
        draw.line((leg, seat, leg, base), fill=shade(colour, 0.7), width=5)
    draw.line((left + 2, seat, left + 2, base - size * 1.1), fill=shade(colour, 0.7), width=5)
    draw.rectangle((left, base - size * 1.15, left + size * 0.16, seat), fill=colour)
    draw.rectangle((left, seat - size * 0.08, right, seat + size * 0.08), fill=colour)


OBJECTS = {"ball": ball, "cup": cup, "cat": cat, "box": cube, "chair": chair}


def ask(facts: Facts, random: Random) -> list[Question]:
    """All questions about a room."""
    thing = facts["object"]
    return [
        Question("What object is in the room?", thing, "name"),
        Question(f"What color is the {thing}?", facts["colour"], "name"),
        Question(f"Where is the {thing} standing?", facts["place"], "place"),
        Question("How many pictures are on the wall?", facts["pictures"], "count"),
        Question("Is there a rug on the floor?", facts["rug"], "yes/no"),
        yes_no(random, thing, FACTS["object"], "Is there a {} in the room?"),
        yes_no(random, facts["colour"], FACTS["colour"], f"Is the {thing} {{}}?"),
    ]
