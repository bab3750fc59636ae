"""The card of an embedded model: what was measured, in figures (card.json) and to read (CARD.md)."""

from __future__ import annotations

import json
from pathlib import Path

BARS = {"llava-next": 0.80, "instructblip": 0.65, "idefics3": 0.80}
"""The mean accuracy over the domains that each model was to reach."""

ABOVE_SWAPPED = 0.25

ABOUT = {
    "llava-next": "A small LLaVA-NeXT: CLIP vision tower over anyres tiles of 64 pixels, two-layer projector, Llama.",
    "instructblip": "A small InstructBLIP: vision transformer of 128 x 128 pixels, Q-Former, Llama.",
    "idefics3": "A small Idefics3, which is SmolVLM's architecture: a SigLIP-like tower over tiles of 64 pixels and\n"
    "an overview, 2 x 2 patches merged into one position, linear connector, Llama with two key heads for four queries.",
}

HOW = """AdamW on one core in {precision}; every scene was drawn anew, and the best check on the validation split
kept.
"""

LATER = {
    "llava-next": "with a smaller batch and more multi-option questions",
    "instructblip": "with a smaller batch, more multi-option questions, or a head that reads answers off the Q-Former",
    "idefics3": "at a lower learning rate",
}
"""What each later run did otherwise."""

PRECISION = {"llava-next": "bfloat16 autocast", "instructblip": "bfloat16 autocast", "idefics3": "float32"}
"""What each shipped model was trained in; the script trains in float32."""

TEXT = """# {name}

{about}
Stock class `{class_name}` of transformers, {parameters:,} parameters, trained from scratch by
`python -m mmneuron_lens.embedded.train {name}` on the drawn corpus of `mmneuron_lens.embedded.corpus`; no weight
was set by hand. It is for trying the toolkit on a model whose answers depend on the image. It knows drawn scenes of
five domains and little of real images.

## Measured
Held-out split: seeds that no other split uses; {images} images a domain, greedy `generate` of two tokens through the
stock processor, the answer compared as text. *Majority*: the answer that training scenes most often have to the same
question. *Blank*: the image replaced by mean grey. *Swapped*: by another image of the same domain. All in per cent.

{summaries}
### By kind of question
{rows}
Multi-option questions are asked in their options form only: without the options there is no letter to answer.

## Bars
{bars}
## Not learned
{weak}
## Training
{training}
The log is train.jsonl: loss and share of right answers in training (`form` facts: the vision tower alone, with heads
that were thrown away afterwards), and `check` lines on the validation split with the blank and swapped controls.

## Real images
About a tenth of the scenes of four domains in training were crops of the {real} images in `embedded/images`
(LICENSES.json). No photo of auto driving may be redistributed, so that domain was drawn only. The row "real" is
measured on the right third of each image, which was never trained on; it is the same picture, though, so it says little
about other real images. The five domains' rows hold drawn scenes only.

Weights: sha256 {sha}
"""


def write_card(card: dict, folder: Path) -> None:
    """Write card.json and CARD.md into the model's folder; `folder` may hold the training log beside them."""
    card = card | {"bars": bars(card), "training": _training(folder / "train.jsonl")}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    images = json.loads((Path(__file__).parent.parent / "images" / "LICENSES.json").read_text(encoding="utf-8"))
    text = TEXT.format(
        name=card["model"], about=ABOUT[card["model"]], class_name=card["class"], parameters=card["parameters"],
        images=card["images_per_domain"], summaries="".join(_summary(card, form) for form in card["summary"]),
        rows=_rows(card["rows"]), bars="".join(f"- {line}\n" for line in card["bars"]),
        weak=_weak(card["rows"]),
        training=_told(card["training"], card["model"]), real=len(images), sha=card["weights_sha256"],
    )  # fmt: skip
    (folder / "CARD.md").write_text(text, encoding="utf-8")


def bars(card: dict) -> list[str]:
    """Each bar under each form of prompt, with its figure and whether it was reached."""
    lines = []
    for form, groups in card["summary"].items():
        mean, wanted = groups["mean"], BARS[card["model"]]
        gap = mean["image"] - mean["swapped"]
        under = [
            g for g, shares in groups.items() if g not in ("mean", "real") and shares["image"] < shares["majority"]
        ]
        lines += [
            f"{form}: mean {_percent(mean['image'])}, wanted {_percent(wanted)}: {_verdict(mean['image'] >= wanted)}",
            f"{form}: {100 * gap:.1f} points above the swapped image, wanted {100 * ABOVE_SWAPPED:.0f}: "
            + _verdict(gap >= ABOVE_SWAPPED),
            f"{form}: domains under their majority answer: {', '.join(under) or 'none'}: {_verdict(not under)}",
        ]
    return lines


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _summary(card: dict, form: str) -> str:
    lines = [
        f"### {form.capitalize()} prompt",
        "| | questions | accuracy | majority | blank | swapped |",
        "|---|---|---|---|---|---|",
    ]
    for group, s in card["summary"][form].items():
        count = f"{s['questions']:.0f}" if "questions" in s else ""
        shares = " | ".join(_percent(s[name]) for name in ("image", "majority", "blank", "swapped"))
        lines.append(f"| {'mean of the five domains' if group == 'mean' else group} | {count} | {shares} |")
    return "\n".join(lines) + "\n\n"


def _rows(rows: list[dict]) -> str:
    lines = [
        "| | kind | prompt | questions | accuracy | majority | blank | swapped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(_percent(row[name]) for name in ("image", "majority", "blank", "swapped"))
        lines.append(f"| {row['group']} | {row['kind']} | {row['form']} | {row['questions']} | {shares} |")
    return "\n".join(lines) + "\n"


def _weak(rows: list[dict], margin: float = 0.15) -> str:
    """The kinds of question that the image hardly helps to answer, in any form of prompt."""
    weak = [row for row in rows if row["image"] < row["majority"] + margin]
    if not weak:
        return "Every kind of question is answered at least 15 points above its majority answer.\n"
    lines = [
        f"- {row['group']}, {row['kind']} ({row['form']}): {_percent(row['image'])} with the image, "
        f"{_percent(row['majority'])} by the majority answer\n"
        for row in weak
    ]
    return "Less than 15 points above the majority answer, so answers to these are no evidence of looking:\n" + "".join(
        lines
    )


def _training(log: Path) -> list[dict]:
    """Steps, minutes and first-stage steps of each run in the log; every run counts from step 0."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    runs: list[list[dict]] = []
    for line in (line for line in lines if "form" in line):
        if not runs or line["step"] < runs[-1][-1]["step"]:
            runs.append([])
        runs[-1].append(line)
    return [
        {
            "steps": run[-1]["step"],
            "minutes": run[-1]["minutes"],
            "facts_steps": max((line["step"] for line in run if line["form"] == "facts"), default=0),
        }
        for run in runs
    ]


def _told(runs: list[dict], name: str) -> str:
    if not runs:
        return "No log lies beside this card.\n"
    text = HOW.format(precision=PRECISION[name])
    if len(runs) > 1:
        text += f"A later run goes on from an earlier one's best weights, {LATER[name]}.\n"
    for i, run in enumerate(runs):
        text += "- from scratch" if i == 0 else "- going on from that"
        text += f": {run['steps']:,} steps in {run['minutes']:.0f} minutes, "
        text += f"the first {run['facts_steps']:,} for the vision tower alone\n"
    return text
