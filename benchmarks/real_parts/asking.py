"""What the connector is trained and measured on: pictures with all that may be asked of them.

Two pictures that are asked the same question and have different answers are a counterfactual pair: whoever answers
from the question alone is wrong for one of them. Training uses nothing else.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from PIL import Image

from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus import real
from mmneuron_lens.embedded.corpus.canvas import Question
from mmneuron_lens.embedded.corpus.draw import PAINTERS, SPLITS, draw, draw_real
from mmneuron_lens.embedded.smol.fetch import Wheel, fetch

EASY_VQA = Wheel(
    "easy-vqa",
    "1.0",
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    "easy_vqa/data/README.md",
    3.2,
)
"""5,000 pictures of one shape, 64 x 64, with questions; MIT. Fetched as the parts are."""

ASKED_WAYS = 6
"""How often a scene's questions are drawn anew, so that yes-or-no questions name several values."""

Key = tuple[str, tuple[str, ...]]
"""A question and, where it has options, their texts in alphabetical order."""


@dataclass(frozen=True)
class Picture:
    """An image, where it comes from, the answers (texts, not letters) of all that may be asked, and what is true of it.

    A fact's name is the word for what it is about; its values are in `VALUES[source, name]`.
    """

    source: str
    image: Image.Image
    answers: dict[Key, str]
    facts: dict[str, str]


def drawn(domain: str, seed: int) -> Picture:
    """A scene of the drawn corpus, with every wording of its questions."""
    scene, pool = draw(domain, seed), {}
    for way in range(ASKED_WAYS):
        pool |= _pool(PAINTERS[domain].ask(scene.facts, Random(f"{domain}:{seed}:{way}")))
    return Picture(domain, scene.image, pool, scene.facts)


def of_real_image(domain: str, seed: int) -> Picture:
    """A crop of a real image; held-out seeds see the part of it that no other seed does."""
    scene, pool = draw_real(domain, seed), {}
    shown = next(q.answer for q in scene.questions if q.question == "What does this image show?")
    for way in range(ASKED_WAYS):
        pool |= _pool(real.ask(domain, shown, Random(f"{seed}:{way}")))
    kind = pool["What kind of image is this?", ()]
    return Picture("real", scene.image, pool, {"kind": kind, "subject": shown})


@lru_cache(maxsize=2)
def easy_vqa(split: str) -> tuple[Picture, ...]:
    """easy-vqa's pictures of "train" or "test", with the questions that come with them."""
    pools: dict[int, dict[Key, str]] = {}
    with zipfile.ZipFile(fetch(EASY_VQA)) as wheel:
        for question, answer, image in json.loads(wheel.read(f"easy_vqa/data/{split}/questions.json")):
            pools.setdefault(image, {})[question, ()] = answer
        return tuple(
            Picture("easy-vqa", _open(wheel.read(f"easy_vqa/data/{split}/images/{image}.png")), pool, _one_shape(pool))
            for image, pool in sorted(pools.items())
        )


def picture(source: str, split: str, random: Random) -> Picture:
    """Any picture of a source: a domain of the drawn corpus, "real", or "easy-vqa" (whose validation is in train)."""
    if source == "easy-vqa":
        if split == "held_out":
            return random.choice(easy_vqa("test"))
        pictures = easy_vqa("train")
        return random.choice(pictures[:-200] if split == "train" else pictures[-200:])
    seed = random.choice(SPLITS[split])
    return of_real_image(random.choice(real.DOMAINS_WITH_IMAGES), seed) if source == "real" else drawn(source, seed)


def pair(
    source: str, split: str, random: Random, questions: int, closed_share: float = 0.5
) -> tuple[list[Picture], list[list[Question]]]:
    """Two pictures and up to so many questions, asked of both, to which they give different answers.

    Of some candidates for the second picture the one with most such questions is taken. `closed_share` of the questions
    are yes-or-no ones, where there are enough of both kinds.
    """
    first = picture(source, split, random)
    others = [picture(source, split, random) for _ in range(8 if source == "easy-vqa" else 2)]
    second = max(others, key=lambda other: len(_differing(first, other)))
    keys = _differing(first, second)
    closed = [key for key in keys if first.answers[key] in ("yes", "no")]
    opened = [key for key in keys if key not in closed]
    random.shuffle(closed)
    random.shuffle(opened)
    count = round(closed_share * questions)
    chosen = closed[: max(count, questions - len(opened))]
    chosen += opened[: questions - len(chosen)]
    pictures = [first, second]
    return pictures, [[ask(key, one.answers[key], random) for key in chosen] for one in pictures]


def ask(key: Key, answer: str, random: Random) -> Question:
    """The question with its options newly shuffled and the letter for an answer, or as it is."""
    question, options = key
    if not options:
        return Question(question, answer, "yes/no" if answer in ("yes", "no") else "name")
    shuffled = tuple(random.sample(options, len(options)))
    return Question(question, chr(65 + shuffled.index(answer)), "option", shuffled)


def _differing(first: Picture, second: Picture) -> list[Key]:
    return sorted(key for key, answer in first.answers.items() if second.answers.get(key, answer) != answer)


def _pool(questions: list[Question]) -> dict[Key, str]:
    """Open questions as they are; those with options also without, so that the answer itself is learned."""
    pool: dict[Key, str] = {}
    for one in questions:
        answer = one.options[ord(one.answer) - 65] if one.options else one.answer
        pool[one.question, ()] = answer
        if one.options:
            pool[one.question, tuple(sorted(one.options))] = answer
    return pool


def _one_shape(pool: dict[Key, str]) -> dict[str, str]:
    """Shape and colour, which are answers of some question about each picture."""
    answers = set(pool.values())
    return {
        name: next(value for value in VALUES["easy-vqa", name] if value in answers)
        for name in ("shape", "colour")
        if answers & set(VALUES["easy-vqa", name])
    }


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


SOURCES = (*DOMAINS, "easy-vqa", "real")
VALUES = {(domain, name): values for domain, painter in PAINTERS.items() for name, values in painter.FACTS.items()} | {
    ("easy-vqa", "shape"): ("circle", "rectangle", "triangle"),
    ("easy-vqa", "colour"): ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
    ("real", "kind"): tuple(real.KINDS.values()),
    ("real", "subject"): tuple(dict.fromkeys(word for some in real.SHOWN.values() for word in some.values())),
}
"""What a fact of a source may be."""
