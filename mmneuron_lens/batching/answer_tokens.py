"""Answer tokens: a sample's answer as the model itself would write it behind the prompt."""

from __future__ import annotations

from mmneuron_lens.corpora.rows import quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens


def answer_tokens(lens: Lens, prompt: str, answer: str) -> list[int]:
    """The token ids of an answer behind a prompt, read together: `ASSISTANT:` is followed by ` yes`, not by `yes`.

    A space stands between the two unless the prompt ends with white space. Where the last word of the prompt and the
    answer would share a token, the answer is read by itself.
    """
    tokenizer = lens.processor.tokenizer
    text = answer.strip() if not prompt or prompt[-1].isspace() else f" {answer.strip()}"
    before, whole = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (prompt, prompt + text))
    if whole[: len(before)] == before and len(whole) > len(before):
        return [int(one) for one in whole[len(before) :]]
    return [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]


def unanswerable(sample: Sample) -> str | None:
    """Why a sample has no right answer whose probability could be read, or None; the first one is taken."""
    if not sample.answers:
        return "it has no answer, so that of the right one cannot be read; write one, or remove the row."
    if not sample.answers[0].strip():
        return f"its answer {quote(sample.answers[0])} is empty; write one, or remove the row."
    return None
