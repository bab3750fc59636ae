"""Lingo-Judge, LingoQA's score: a trained classifier reads question, reference and answer, and says whether they agree.

In the form of the official script (LingoQA `benchmark/judge.py`), not of the model card's pipeline, which neither
lower-cases nor stops at 128 tokens. The weights are the user's to point at: a folder, or "wayveai/Lingo-Judge".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mmneuron_lens.metrics.measured import Measured, Metric, MetricError, Pairs, no_reference

MAX_TOKENS = 128
PUBLISHED = "wayveai/Lingo-Judge"


class LingoJudge:
    """A sequence classifier with one logit, and its tokenizer; `load` reads both.

    - model, tokenizer: as transformers loads them. name: what artifacts call them.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """Raises `MetricError` when the model has not one logit, or the tokenizer no CLS token."""
        if model.config.num_labels != 1:
            raise MetricError(f"{name}: the judge has {model.config.num_labels} logits, not 1; load {PUBLISHED}.")
        if tokenizer.cls_token is None:
            raise MetricError(f"{name}: the judge's tokenizer has no CLS token; load {PUBLISHED}.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name

    @classmethod
    def load(cls, folder_or_id: str | Path, device: str | torch.device = "cpu") -> LingoJudge:
        """Reads the judge.

        - folder_or_id: a local folder, or an id of the Hugging Face hub. device: where it computes.

        Raises `MetricError` where there is none.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder_or_id)
            model = AutoModelForSequenceClassification.from_pretrained(folder_or_id)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise MetricError(
                f"{folder_or_id}: no judge can be loaded ({reason}); give {PUBLISHED}, or a folder with a copy of it."
            ) from error
        # A folder's path is of one machine; its last part names it in what is saved.
        name = Path(folder_or_id).name if Path(folder_or_id).is_dir() else str(folder_or_id)
        return cls(model.to(device), tokenizer, name)

    def text(self, question: str, reference: str, prediction: str) -> str:
        """What the judge reads: reference and prediction lower-cased and stripped, the question as it is.

        The tokenizer puts a second CLS before the written one; the official script does so too, and it is kept.
        """
        reference, prediction = reference.lower().strip(), prediction.lower().strip()
        return f"{self.tokenizer.cls_token}\nQuestion: {question}\nAnswer: {reference}\nStudent: {prediction}"

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Float[Tensor, " text"]:
        """One logit a text, float32 on the CPU; of texts, their first `MAX_TOKENS` tokens."""
        encoded = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS
        ).to(self.model.device)
        return self.model(**encoded).logits.squeeze(-1).float().cpu()

    def score(self, question: str, references: Sequence[str], prediction: str) -> float:
        """The highest logit of a prediction over a question's references; above 0 it counts as correct."""
        return float(self.logits([self.text(question, reference, prediction) for reference in references]).max())


def measure(pairs: Pairs, *, judge: LingoJudge | None = None) -> Measured:
    """1 where the judge's highest logit over the references is above 0, else 0; the logits are kept beside.

    - pairs: samples with answers. judge: of `LingoJudge.load`; `MetricError` without one.
    """
    if judge is None:
        raise MetricError(
            f"LingoQA is scored by a trained judge and none was given; pass judge=LingoJudge.load({PUBLISHED!r}), "
            "or the folder of a copy."
        )
    logits = [judge.score(sample.question, sample.answers, answer) for sample, answer in pairs]
    return Measured([float(logit > 0) for logit in logits], {"logit": logits})


METRIC = Metric("Lingo-Judge", measure, no_reference)
