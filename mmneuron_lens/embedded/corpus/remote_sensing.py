"""Remote sensing: a map-like aerial view of land, road, buildings and water, asked about in the manner of RSVQA."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from mmneuron_lens.embedded.corpus.canvas import Facts, Question, add_noise, box, shade, vary, yes_no

FACTS = {
    "water": ("yes", "no"),
    "buildings": ("1", "2", "3", "4"),
    "tank": ("north", "south", "east", "west"),
    "cover": ("grass", "sand", "crops", "forest"),
    "road": ("vertical", "horizontal"),
}
SIZES = ((128, 128), (112, 112), (144, 144), (128, 112))
GROUND = {"grass": (122, 158, 92), "sand": (208, 186, 142), "crops": (176, 170, 80), "forest": (58, 92, 56)}
TANK = {"north": (0.5, 0.17), "south": (0.5, 0.83), "east": (0.83, 0.5), "west": (0.17, 0.5)}
CORNERS = ((0.19, 0.19), (0.81, 0.19), (0.19, 0.81), (0.81, 0.81))


def paint(facts: Facts, random: Random) -> Image.Image:
    """Ground, pond in the middle, a road across, buildings in the corners and a round tank at one side."""
    width, height = random.choice(SIZES)
    ground = vary(random, GROUND[facts["cover"]], 10)
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    if facts["cover"] == "crops":
        for x in range(random.randint(0, 5), width, 9):
            draw.line((x, 0, x, height), fill=shade(ground, 0.78), width=4)
    elif facts["cover"] == "forest":
        for _ in range(45):
            crown = box(random.uniform(0, width), random.uniform(0, height), random.uniform(4, 8))
            draw.ellipse(crown, fill=shade(ground, random.uniform(0.65, 1.35)))
    if facts["water"] == "yes":
        pond = box(width * random.uniform(0.46, 0.54), height * random.uniform(0.46, 0.54), width * 0.19, height * 0.19)
        draw.ellipse(pond, fill=vary(random, (48, 100, 170)), outline=(190, 190, 160), width=2)
    road, offset = vary(random, (120, 118, 116), 8), random.uniform(0.44, 0.56)
    if facts["road"] == "vertical":
        draw.rectangle((width * offset - 6, 0, width * offset + 6, height), fill=road)
        lines = [(width * offset, y, width * offset, y + 6) for y in range(0, height, 12)]
    else:
        draw.rectangle((0, height * offset - 6, width, height * offset + 6), fill=road)
        lines = [(x, height * offset, x + 6, height * offset) for x in range(0, width, 12)]
    for line in lines:
        draw.line(line, fill=(240, 240, 240), width=2)
    for x, y in random.sample(CORNERS, int(facts["buildings"])):
        x, y = width * x + random.uniform(-4, 4), height * y + random.uniform(-4, 4)
        half = (width * random.uniform(0.1, 0.13), height * random.uniform(0.1, 0.13))
        roof = random.choice(((176, 70, 56), (150, 84, 64), (190, 96, 70)))
        draw.rectangle(box(x + 3, y + 3, *half), fill=(40, 40, 40))
        draw.rectangle(box(x, y, *half), fill=roof, outline=shade(roof, 0.6))
        draw.line((x - half[0], y, x + half[0], y), fill=shade(roof, 1.3), width=2)
    x, y = TANK[facts["tank"]]
    x, y = width * x + random.uniform(-3, 3), height * y + random.uniform(-3, 3)
    draw.ellipse(box(x + 3, y + 3, width * 0.1), fill=(40, 40, 40))
    draw.ellipse(box(x, y, width * 0.1), fill=(238, 238, 240), outline=(120, 120, 120), width=2)
    return add_noise(image, random, 8)


def ask(facts: Facts, random: Random) -> list[Question]:
    """All questions about an aerial view."""
    more = "yes" if int(facts["buildings"]) > 2 else "no"
    return [
        Question("Is a water area present?", facts["water"], "yes/no"),
        Question("What is the number of buildings?", facts["buildings"], "count"),
        Question("On which side is the storage tank?", facts["tank"], "place"),
        Question("What is the land cover?", facts["cover"], "name"),
        Question("What is the direction of the road?", facts["road"], "name"),
        Question("Are there more than 2 buildings?", more, "yes/no"),
        yes_no(random, facts["cover"], FACTS["cover"], "Is the area covered by {}?"),
    ]
