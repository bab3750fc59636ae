"""Entry point of the drawn corpus: `draw` makes a scene, `write_folder` a corpus on disk, `drawn_folder` one to keep.

Every fact of a scene is drawn first, uniformly and independently, and only then painted: so each question's answers are
equally frequent, and nothing but the image tells which one is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import PIL
from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.corpora.cache import cache_folder
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus import auto_driving, common, document, medical, real, remote_sensing
from mmneuron_lens.embedded.corpus.canvas import Facts, Question

PAINTERS = {
    "common": common, "remote_sensing": remote_sensing, "medical": medical,
    "document": document, "auto_driving": auto_driving,
}  # fmt: skip

SPLITS = {name: range(i * 10**9, (i + 1) * 10**9) for i, name in enumerate(("train", "validation", "demo", "held_out"))}
"""Disjoint ranges of seeds. Real images are split by region as well: see `real`."""

IMAGES_A_SEED = 100_000
"""Scenes of a domain that one seed of a corpus has for itself, so that two seeds share none."""


@dataclass(frozen=True)
class Scene:
    """An image, what is true of it (empty for a crop of a real image), and all questions about it."""

    domain: str
    image: Image.Image
    questions: list[Question]
    facts: Facts


def draw(domain: str, seed: int) -> Scene:
    """The scene of a domain that a seed names; the same on every machine with the same Pillow."""
    if domain not in PAINTERS:
        raise InvalidValue(f"unknown domain {domain!r}: choose one of {', '.join(DOMAINS)}")
    painter, random = PAINTERS[domain], Random(f"{domain}:{seed}")
    facts = {name: random.choice(values) for name, values in painter.FACTS.items()}
    return Scene(domain, painter.paint(facts, random), painter.ask(facts, random), facts)


def draw_real(domain: str, seed: int) -> Scene:
    """A crop of a real image of a domain; seeds of the held-out split see regions that no other split sees."""
    image, questions = real.crop(domain, Random(f"real:{domain}:{seed}"), held_out=seed in SPLITS["held_out"])
    return Scene(domain, image, questions, {})


def write_folder(
    folder: str | Path,
    split: str = "demo",
    images_per_domain: int = 20,
    domains: Sequence[str] = DOMAINS,
    real_share: float = 0.0,
    seed: int = 0,
) -> Path:
    """Writes `images/*.png` and `questions.jsonl`, the form in which users bring corpora of their own.

    - split: which range of scenes; see `SPLITS`.
    - images_per_domain: at most `IMAGES_A_SEED`.
    - domains: of the paper's five, in this order.
    - real_share: of each domain's images, where a real one may be redistributed, are crops of real images.
    - seed: another one, of 0 to 9,999, is other scenes.

    Raises `InvalidValue` naming what does not fit.
    """
    if split not in SPLITS:
        raise InvalidValue(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    _check(images_per_domain, domains, seed)
    seeds = SPLITS[split][seed * IMAGES_A_SEED :]
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as rows:
        for domain in domains:
            real_images = round(real_share * images_per_domain) if domain in real.DOMAINS_WITH_IMAGES else 0
            for i in range(images_per_domain):
                scene = (draw_real if i < real_images else draw)(domain, seeds[i])
                name = f"images/{domain}_{i:05d}.png"
                scene.image.save(folder / name)
                for j, question in enumerate(scene.questions):
                    row: dict[str, object] = {"id": f"{domain}-{i:05d}-{j}", "domain": domain, "image": name}
                    row |= {"question": question.question, "answer": question.answer, "kind": question.kind}
                    if question.options:
                        row["options"] = list(question.options)
                    rows.write(json.dumps(row) + "\n")
    return folder


def drawn_folder(images: int = 20, domains: Sequence[str] = DOMAINS, seed: int = 0) -> Path:
    """The corpus `drawn`: a folder in the user's cache, drawn on the first call with these arguments.

    - images: of each domain.
    - domains: of the paper's five.
    - seed: another one is other scenes.

    It is there whole or not at all, and is drawn anew where this package or Pillow draws otherwise.
    Raises `InvalidValue` naming what does not fit.
    """
    _check(images, domains, seed)
    domains = [domain for domain in DOMAINS if domain in domains]
    painted_by = [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    key = hashlib.sha256(json.dumps([images, domains, seed, PIL.__version__, painted_by]).encode()).hexdigest()
    folder = cache_folder() / "drawn" / f"{images}-images-seed-{seed}-{key[:16]}"
    if not (folder / "questions.jsonl").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_folder(fresh, images_per_domain=images, domains=domains, seed=seed)
            _flush(fresh)
            os.replace(fresh, folder)
        except OSError:
            # Another process may have drawn the same in the meantime.
            if not (folder / "questions.jsonl").is_file():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _check(images: int, domains: Sequence[str], seed: int) -> None:
    if unknown := [domain for domain in domains if domain not in PAINTERS]:
        raise InvalidValue(f"unknown domain {unknown[0]!r}: choose one of {', '.join(DOMAINS)}")
    if not domains:
        raise InvalidValue(f"no domain to draw: give some of {', '.join(DOMAINS)}")
    if not 0 < images <= IMAGES_A_SEED:
        raise InvalidValue(f"{images} images of each domain cannot be drawn: give 1 to {IMAGES_A_SEED}")
    if seed not in range(seeds := len(SPLITS["demo"]) // IMAGES_A_SEED):
        raise InvalidValue(f"seed is {seed}: give 0 to {seeds - 1}")


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
