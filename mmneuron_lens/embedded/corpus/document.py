"""Document: a page with a heading, paragraphs and one chart, asked about in the manner of DocVQA."""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw

from mmneuron_lens.embedded.corpus.canvas import (
    COLOURS,
    Colour,
    Facts,
    Question,
    add_noise,
    box,
    font,
    shade,
    vary,
    yes_no,
)

FACTS = {
    "chart": ("bar", "line", "pie", "table"),
    "colour": tuple(COLOURS),
    "place": ("top", "bottom"),
    "paragraphs": ("1", "2", "3"),
    "stamp": ("yes", "no"),
    "section": ("2", "5", "7", "9"),
}
SIZES = ((96, 128), (112, 144), (104, 144), (80, 160), (112, 128))


def paint(facts: Facts, random: Random) -> Image.Image:
    """A page: heading with the section's number, then chart and text in either order."""
    width, height = random.choice(SIZES)
    image = Image.new("RGB", (width, height), vary(random, (246, 244, 238), 6))
    draw = ImageDraw.Draw(image)
    draw.text((width * 0.07, height * 0.02), "Section", fill=(20, 20, 20), font=font(max(12, width // 7)))
    draw.text((width * 0.72, height * 0.0), facts["section"], fill=(10, 10, 10), font=font(width // 4))
    draw.line((width * 0.05, height * 0.2, width * 0.95, height * 0.2), fill=(60, 60, 60), width=2)
    chart_top, text_top = (0.24, 0.63) if facts["place"] == "top" else (0.59, 0.24)
    area = (width * 0.1, height * chart_top, width * 0.9, height * (chart_top + 0.36))
    CHARTS[facts["chart"]](draw, area, vary(random, COLOURS[facts["colour"]]), random)
    _paragraphs(draw, width, height, text_top, int(facts["paragraphs"]), random)
    if facts["stamp"] == "yes":
        x, y = width * random.uniform(0.72, 0.82), height * (text_top + random.uniform(0.12, 0.22))
        draw.ellipse(box(x, y, width * 0.16), outline=(140, 40, 150), width=4)
        draw.line((x - width * 0.1, y, x + width * 0.1, y), fill=(140, 40, 150), width=4)
    return add_noise(image, random, 4)


def _paragraphs(draw: ImageDraw.ImageDraw, width: int, height: int, top: float, count: int, random: Random) -> None:
    """Blocks of two lines of words, set apart by a gap."""
    for block in range(count):
        for line in range(2):
            y, x = height * (top + 0.015 + block * 0.11 + line * 0.032), width * 0.07
            end = width * (random.uniform(0.8, 0.93) if line == 0 else random.uniform(0.5, 0.9))
            while x < end:
                word = random.uniform(5, 14)
                draw.line((x, y, min(x + word, end), y), fill=(70, 70, 74), width=3)
                x += word + 3


def bar(draw: ImageDraw.ImageDraw, area: tuple[float, ...], colour: Colour, random: Random) -> None:
    left, top, right, bottom = area
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(30, 30, 30), width=2)
    step = (right - left) / 4
    for i in range(4):
        x = left + step * (i + 0.2)
        draw.rectangle((x, bottom - (bottom - top) * random.uniform(0.35, 0.95), x + step * 0.65, bottom), fill=colour)


def line(draw: ImageDraw.ImageDraw, area: tuple[float, ...], colour: Colour, random: Random) -> None:
    left, top, right, bottom = area
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(30, 30, 30), width=2)
    points = [(left + (right - left) * i / 4, bottom - (bottom - top) * random.uniform(0.15, 0.95)) for i in range(5)]
    draw.line(points, fill=colour, width=4)
    for x, y in points:
        draw.ellipse(box(x, y, 3.5), fill=colour)


def pie(draw: ImageDraw.ImageDraw, area: tuple[float, ...], colour: Colour, random: Random) -> None:
    x, y = (area[0] + area[2]) / 2, (area[1] + area[3]) / 2
    radius = min(area[2] - area[0], area[3] - area[1]) / 2
    draw.ellipse(box(x, y, radius), fill=colour, outline=(30, 30, 30), width=2)
    for angle in (random.uniform(0, 2), random.uniform(2, 4), random.uniform(4, 6)):
        end = (x + radius * math.cos(angle), y + radius * math.sin(angle))
        draw.line([(x, y), end], fill=(250, 250, 250), width=3)


def table(draw: ImageDraw.ImageDraw, area: tuple[float, ...], colour: Colour, random: Random) -> None:
    left, top, right, bottom = area
    rows, columns = random.choice((3, 4)), 3
    draw.rectangle((left, top, right, top + (bottom - top) / rows), fill=colour)
    for i in range(rows + 1):
        y = top + (bottom - top) * i / rows
        draw.line((left, y, right, y), fill=shade(colour, 0.6), width=2)
    for i in range(columns + 1):
        x = left + (right - left) * i / columns
        draw.line((x, top, x, bottom), fill=shade(colour, 0.6), width=2)


CHARTS = {"bar": bar, "line": line, "pie": pie, "table": table}


def ask(facts: Facts, random: Random) -> list[Question]:
    """All questions about a page."""
    return [
        Question("What type of figure is printed on this page?", facts["chart"], "name"),
        Question("Which color is used in the figure?", facts["colour"], "name"),
        Question("Is the figure printed at the top or at the bottom of the page?", facts["place"], "place"),
        Question("How many paragraphs does the text have?", facts["paragraphs"], "count"),
        Question("Does the page carry a stamp?", facts["stamp"], "yes/no"),
        Question("What is the section number in the heading?", facts["section"], "name"),
        yes_no(random, facts["chart"], FACTS["chart"], "Does the page contain a {} figure?"),
    ]
