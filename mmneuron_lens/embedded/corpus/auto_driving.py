"""Auto driving: the street ahead as a camera in the car sees it, asked about in the manner of LingoQA."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from mmneuron_lens.embedded.corpus.canvas import Facts, Question, add_noise, box, shade, vary, yes_no

FACTS = {
    "light": ("red", "yellow", "green"),
    "vehicles": ("1", "2", "3"),
    "pedestrian": ("yes", "no"),
    "time": ("day", "night"),
    "turn": ("left", "right", "straight"),
    "tree": ("left", "right"),
}
SIZES = ((160, 96), (144, 96), (160, 80), (160, 112))
LAMPS = {"red": (255, 40, 30), "yellow": (255, 210, 40), "green": (40, 255, 90)}
SPOTS = ((0.36, 0.86, 0.1), (0.64, 0.86, 0.1), (0.5, 0.62, 0.07))
"""Where vehicles drive: centre, wheels' height and half width, as shares of the image."""


def paint(facts: Facts, random: Random) -> Image.Image:
    """Sky, ground, road with lane lines, tree and pedestrian at the sides, vehicles, and the traffic light above."""
    width, height = random.choice(SIZES)
    light = 1.0 if facts["time"] == "day" else 0.38
    image = Image.new("RGB", (width, height), vary(random, (150, 196, 232) if light == 1.0 else (16, 18, 44), 10))
    draw = ImageDraw.Draw(image)
    horizon = height * random.uniform(0.42, 0.47)
    draw.rectangle((0, horizon, width, height), fill=shade(vary(random, (108, 146, 92)), light))
    far = width * (0.5 + {"left": -0.3, "straight": 0.0, "right": 0.3}[facts["turn"]])
    bend = height * 0.62
    for near, middle, end, colour in ((0.46, 0.24, 0.05, (96, 96, 100)), (0.025, 0.015, 0.006, (245, 245, 245))):
        edge = [(width * (0.5 - near), height), (width * (0.5 - middle), bend), (far - width * end, horizon)]
        back = [(far + width * end, horizon), (width * (0.5 + middle), bend), (width * (0.5 + near), height)]
        draw.polygon(edge + back, fill=shade(colour, light))
    side = 1 if facts["tree"] == "right" else -1
    x = width * (0.5 + side * random.uniform(0.39, 0.42))
    draw.rectangle((x - 3, height * 0.4, x + 3, height * 0.78), fill=shade((96, 66, 40), light))
    draw.ellipse(box(x, height * 0.33, width * 0.085, height * 0.19), fill=shade(vary(random, (30, 104, 40)), light))
    if facts["pedestrian"] == "yes":
        _pedestrian(
            draw, width * (0.5 - side * random.uniform(0.37, 0.42)), height, vary(random, (235, 90, 170), 20), light
        )
    for x, base, half in sorted(random.sample(SPOTS, int(facts["vehicles"])), key=lambda spot: spot[1]):
        paintwork = vary(random, random.choice(((190, 40, 40), (40, 70, 180), (225, 225, 225), (60, 60, 66))))
        _vehicle(
            draw, width * x + random.uniform(-3, 3), height * base, width * half, shade(paintwork, max(light, 0.6))
        )
    x, top = width * random.uniform(0.44, 0.56), 2.0
    half, lamp = height * 0.075, height * 0.055
    draw.rectangle((x - half, top, x + half, top + height * 0.4), fill=(18, 18, 18), outline=(90, 90, 90))
    for i, name in enumerate(LAMPS):
        fill = LAMPS[name] if name == facts["light"] else (52, 52, 52)
        draw.ellipse(box(x, top + height * (0.07 + 0.13 * i), lamp), fill=fill)
    return add_noise(image, random, 6)


def _vehicle(draw: ImageDraw.ImageDraw, x: float, base: float, half: float, colour: tuple[int, int, int]) -> None:
    """A car from behind: body, rear window, two wheels and its lights."""
    for side in (-1, 1):
        draw.rectangle(box(x + side * half * 0.7, base, half * 0.18, half * 0.2), fill=(10, 10, 10))
    draw.rectangle((x - half, base - half * 0.95, x + half, base), fill=colour)
    draw.rectangle((x - half * 0.72, base - half * 1.55, x + half * 0.72, base - half * 0.9), fill=shade(colour, 0.8))
    draw.rectangle((x - half * 0.55, base - half * 1.42, x + half * 0.55, base - half * 0.95), fill=(60, 80, 96))
    for side in (-1, 1):
        draw.rectangle(box(x + side * half * 0.8, base - half * 0.55, half * 0.14, half * 0.14), fill=(255, 70, 50))


def _pedestrian(draw: ImageDraw.ImageDraw, x: float, height: int, coat: tuple[int, int, int], light: float) -> None:
    """A standing person in a bright coat."""
    coat = shade(coat, max(light, 0.6))
    for side in (-1, 1):
        draw.line((x, height * 0.7, x + side * 4, height * 0.9), fill=shade((40, 40, 60), max(light, 0.6)), width=4)
    draw.rectangle(box(x, height * 0.62, 6, height * 0.11), fill=coat)
    draw.ellipse(box(x, height * 0.46, height * 0.055), fill=shade((232, 190, 160), max(light, 0.6)))


def ask(facts: Facts, random: Random) -> list[Question]:
    """All questions about a street."""
    return [
        Question("What is the state of the traffic light?", facts["light"], "name"),
        Question("How many vehicles can you see ahead of you?", facts["vehicles"], "count"),
        Question("Can you see a pedestrian beside the road?", facts["pedestrian"], "yes/no"),
        Question("Are you driving by day or by night?", facts["time"], "name"),
        Question("In which direction does the road ahead lead?", facts["turn"], "place"),
        Question("On which side of the road is there a tree?", facts["tree"], "place"),
        yes_no(random, facts["light"], FACTS["light"], "Is the traffic light showing {}?"),
    ]
