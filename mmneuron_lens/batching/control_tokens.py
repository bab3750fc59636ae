"""Control tokens: text of a question that a model's tokenizer would not read as text; such rows are refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmneuron_lens.batching.left_out import LeftOut, raise_none_left
from mmneuron_lens.batching.prompting import Prompt
from mmneuron_lens.corpora.folder import Problems
from mmneuron_lens.corpora.prompts import without_image_lines
from mmneuron_lens.corpora.rows import quote
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.lens import Lens

MARKUP = re.compile(r"<\S+>|\[[A-Z_0-9]+\]")
"""How control tokens look that a tokenizer does not call special, such as Qwen's `<tool_call>`."""


class ControlTokens:
    """The control tokens of a processor: of its tokenizers, and the placeholders of an image and a video."""

    def __init__(self, processor: Any) -> None:
        tokenizers = [processor.tokenizer, getattr(processor, "qformer_tokenizer", None)]
        self.readers = [(one, _control_ids(one)) for one in tokenizers if one is not None]
        texts = {tokenizer.added_tokens_decoder[one].content for tokenizer, ids in self.readers for one in ids}
        texts |= {str(one) for name in ("image_token", "video_token") if (one := getattr(processor, name, None))}
        self.texts = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def first_in(self, text: str) -> str | None:
        """The first control token that a text would become, or None."""
        if found := self.texts.search(text):
            return found[0]
        for tokenizer, ids in self.readers:
            # What a tokenizer's normalizer makes of the text may be one too. Unknown characters are `<unk>` by right.
            made = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for one in made:
                if one in ids and one != tokenizer.unk_token_id:
                    return tokenizer.added_tokens_decoder[one].content
        return None


def refusal(control: ControlTokens, sample: Sample, prompt: Prompt) -> str | None:
    """Why a sample cannot be asked in this prompt, or None. Lines of `<image>` around a question are its images."""
    question, placeholders = without_image_lines(sample.question)
    if placeholders > len(sample.images):
        return (
            f"question {quote(sample.question)} begins or ends with {placeholders} '<image>' for "
            f"{len(sample.images)} images; give as many images, or take '<image>' away."
        )
    if not question.strip():
        return f"question {quote(sample.question)} is empty without '<image>'; write one, or remove the row."
    texts = [("question", question), *(("option", text) for text in (sample.options if prompt == "evaluation" else ()))]
    for name, text in texts:
        if token := control.first_in(text):
            return (
                f"{name} {quote(text)} holds {token!r}, which this model's tokenizer reads as a control token; write "
                "it otherwise, or remove the row."
            )
    return None


def askable(lens: Lens, samples: Sequence[Sample], prompt: Prompt, problems: Problems | None = None) -> list[Sample]:
    """The samples whose texts a model reads as text.

    - prompt: which of the paper's prompts; options stand in "evaluation" alone.
    - problems: where the others are named; without it the first raises `InvalidValue`.

    Raises `InvalidValue` with the first reason if there are samples and none remains.
    """
    control, left = ControlTokens(lens.processor), LeftOut(problems)
    for sample in samples:
        if says := refusal(control, sample, prompt):
            left.add_sample(sample, says)
    kept = [sample for sample in samples if not left.holds(sample)]
    if samples and not kept:
        raise_none_left(samples, left.reason(samples[0]))
    return kept


def _control_ids(tokenizer: Any) -> set[int]:
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_tokens)
    return {
        number
        for number, token in added.items()
        if token.special or token.content in special or MARKUP.fullmatch(token.content)
    }
