"""Names that are a command to something that shows them, and a run on models and domains called so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from drawn_corpus import row, write_images, write_rows
from test_cli import mmneuron
from test_paper import LITTLE

import mmneuron_lens
from mmneuron_lens.paper.run import paper
from mmneuron_lens.runs.questions import folder_questions
from mmneuron_lens.runs.store import Store

IMAGE = "<img src=x onerror=alert(1)>"
DOMAINS = (
    *("[/] :smile: cost $x_$ %", "=cmd|' /C calc'!A0", f'">{IMAGE}<script>alert(1)</script>', "neurons off in"),
    f"_hid_den \\textbf{{x}} 日本 😀 שלום {'x' * 300}",
)
MODELS = (f'x">{IMAGE}', "$\\frac$ [bold]@SUM(1) \x1b]0;title\x07")
QUESTION = f"{IMAGE} \u202e</script><!-- $x_$ \x1b[31m"


def strange_run(folder: Path, whole: bool = False) -> tuple[Path, Any]:
    """Both models counted and selected, the first one's questions answered: the run, and what the last command printed.

    - whole: the paper on the first model before that, whose page is then the first one.
    """
    torch.set_num_threads(1)
    for name, stock in zip(MODELS, ("instructblip", "llava-next"), strict=True):
        shutil.copytree(Path(mmneuron_lens.__file__).parent / "embedded" / stock, folder / name)
    rows = []
    for number, domain in enumerate(DOMAINS):
        write_images(folder / "mine", f"d{number}-", 3, number)
        for place in range(3):
            made = row(domain, 0, QUESTION, image=f"images/d{number}-{place}.png", answer=IMAGE)
            rows.append({**made, "id": f"{number}-{place} {IMAGE}"})
    corpus, out = write_rows(folder / "mine", rows), folder / "run"
    plan = replace(
        LITTLE, identification_images=2, evaluation_images=1, evaluation_questions=1, identification_questions=1,
        deviation_questions=1, entropy_images=1, embedding_images=2, random_draws=1, permutations=1, cross=False,
        generation={**LITTLE.generation, "num_beams": 1, "max_new_tokens": 1},
    )  # fmt: skip
    if whole:
        paper(Store(out), models=[str(folder / MODELS[0])], questions=folder_questions(corpus, plan), plan=plan)
    asked = [("--corpus", corpus, "--images", 1, "--model", folder / name) for name in MODELS]
    counting = [mmneuron("count", *one, "--out", out, *["--replace"] * whole) for one in asked]
    selecting = mmneuron("select", out, "--fraction", "0.05", "--replace")
    few = ("--random-draws", 1, "--max-new-tokens", 1, "--replace")
    answering = mmneuron("ablate", out, *asked[0], *few)
    for one in (*counting, selecting, answering):
        assert one.exit_code == 0, one.stderr
    return out, answering
