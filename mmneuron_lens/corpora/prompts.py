"""The paper's prompts, to the character (Table 5, Figure 8, appendix C.1), as pure functions of a question.

`<image>` is LLaVA-NeXT's image placeholder, expanded by its processor; InstructBLIP's processor places the image
itself, so its prompts name none. Nothing follows the last character of a prompt; BOS is left to the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from interventions.errors import InvalidValue

ModelKind = Literal["llava-next", "instructblip"]

MODEL_KINDS: tuple[ModelKind, ...] = ("llava-next", "instructblip")

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

DRIVING_ROLE = (
    "Role: You are an advanced AI assistant installed on the Ego vehicle, equipped with conversational analysis "
    "capabilities for discussing autonomous driving scenarios. The perspective presented is from the point-of-view of "
    "the Ego vehicle, where the camera is mounted. It's important to note that the Ego vehicle itself is not visible "
    "in the images provided."
)
"""Appendix C.1's role description, which only the auto driving domain is given."""

LEADING = re.compile(r"\A(?:[ \t]*(?:<image>[ \t]*)+(?:\r?\n|\Z))+")
TRAILING = re.compile(r"(?:\r?\n[ \t]*(?:<image>[ \t]*)+)+\s*\Z")

ANSWER_SHORTLY = "Answer the question using a single word or phrase."
ANSWER_BY_LETTER = "Answer with the option's letter from the given choices directly."


def identification(model_kind: ModelKind, question: str) -> str:
    """The plain question, as neurons are identified with."""
    return f"<image>\n{question}" if _known(model_kind) == "llava-next" else question


def evaluation(model_kind: ModelKind, question: str, options: Sequence[str] = (), domain: str = "") -> str:
    """The prompt that a question is answered under.

    - options: texts without letters; with them the prompt is in the options form, else open-ended.
    - domain: "auto_driving" alone is given the role description, and only in the open-ended form, as in Table 5.
    """
    body = question_body(model_kind, question, options, domain)
    return f"{SYSTEM} USER: <image>\n{body} ASSISTANT:" if model_kind == "llava-next" else body


def question_body(model_kind: ModelKind, question: str, options: Sequence[str] = (), domain: str = "") -> str:
    """`evaluation` without the frame of system, image and turns: what a chat template is given as the user's text."""
    llava = _known(model_kind) == "llava-next"
    if options:
        context = "Context: N/A\n" if llava else ""
        return f"Question: {question}\n{context}Options: {option_list(options)}\n{ANSWER_BY_LETTER}"
    role = f"{DRIVING_ROLE}\n" if domain == "auto_driving" else ""
    ending = f"Context: N/A\n{ANSWER_SHORTLY}" if llava else "Short Answer:"
    return f"{role}Question: {question}\n{ending}"


def without_image_lines(question: str) -> tuple[str, int]:
    """A question without the lines of `<image>` before and behind it, and how many `<image>` they held.

    LLaVA's conversation files write an image's place as such lines ("<image>\\nWhat is shown?"); they stand for the
    images themselves, which a prompt places. `<image>` anywhere else is left as it is.
    """
    kept = TRAILING.sub("", LEADING.sub("", question))
    return kept, question.count("<image>") - kept.count("<image>")


def option_list(options: Sequence[str]) -> str:
    """`['A: ...', 'B: ...']`, as in Figure 8b; single quotes also where Python's repr would change them."""
    if len(options) > 26:
        raise InvalidValue(f"{len(options)} options, but the alphabet has 26 letters: ask with fewer options")
    return "[" + ", ".join(f"'{chr(65 + i)}: {option.strip()}'" for i, option in enumerate(options)) + "]"


def _known(model_kind: str) -> str:
    if model_kind not in MODEL_KINDS:
        raise InvalidValue(f"unknown model kind {model_kind!r}: choose one of {', '.join(MODEL_KINDS)}")
    return model_kind
