"""A small corpus of noise images of mixed sizes on disk, for tests of the experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import pictures

SIZES = ((40, 56), (64, 30), (32, 32), (50, 64))
QUESTIONS = ("Is it red?", "how many cars are there?", "why")


def row(domain: str, number: int, question: str = "Is it red?", /, **changes: Any) -> dict[str, Any]:
    made = {"domain": domain, "image": f"images/{domain}{number}.png", "question": question, "answer": "yes"}
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def write_images(folder: Path, domain: str, count: int, seed: int = 0) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    for number, picture in enumerate(pictures(*sizes, seed=seed)):
        picture.save(folder / "images" / f"{domain}{number}.png")


def write_rows(folder: Path, rows: list[Any]) -> Path:
    """Rows as JSON; text and bytes are written as they are."""
    lines = [line if isinstance(line, bytes) else _text(line).encode() for line in rows]
    (folder / "questions.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def write_corpus(folder: Path, domains: tuple[str, ...] = ("common", "medical"), images: int = 5) -> Path:
    """Every image with two of three questions, domains in turn."""
    rows = []
    for seed, domain in enumerate(domains):
        write_images(folder, domain, images, seed)
        for number in range(images):
            rows += [row(domain, number, QUESTIONS[(number + place) % 3]) for place in range(2)]
    return write_rows(folder, rows)


def files_of(run: Path) -> dict[str, bytes]:
    """Every file of a run by its name in order, but for its locks."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    return {name: found[name].read_bytes() for name in sorted(found) if not name.startswith(".locks/")}


def _text(line: Any) -> str:
    return line if isinstance(line, str) else json.dumps(line)
