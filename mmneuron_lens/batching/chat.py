"""Chat: a question in the frame of the checkpoint's own chat template, where its language model is not the paper's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from jinja2 import TemplateError

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.corpora import prompts
from mmneuron_lens.lens import Lens

PromptForm = Literal["auto", "paper", "chat"]
"""The frame of the evaluation prompt: the paper's (Table 5), the checkpoint's chat template, or whichever fits."""

PROMPT_FORMS: tuple[PromptForm, ...] = ("auto", "paper", "chat")

EMBEDDED = "embedded/"
"""How the names of the embedded models begin, which were trained on the paper's frame."""


def template_of(processor: Any) -> str | None:
    """The chat template of a processor, or of its tokenizer; of several named ones the default."""
    for holder in (processor, processor.tokenizer):
        template = getattr(holder, "chat_template", None)
        template = template.get("default") if isinstance(template, Mapping) else template
        if template:
            return template
    return None


def form_of(lens: Lens, form: PromptForm) -> Literal["paper", "chat"]:
    """The frame in which a model is asked.

    "auto" is "chat" where images stand in the text and the checkpoint has a chat template that renders to another frame
    than the paper's, white space and the system's sentence apart. Raises `InvalidValue` for an unknown form, "chat"
    without a template, or a template that cannot be rendered.
    """
    if form not in PROMPT_FORMS:
        raise InvalidValue(unknown("prompt form", form, PROMPT_FORMS))
    template = template_of(lens.processor)
    if form == "chat" and template is None:
        raise InvalidValue(
            f"{lens.name} has no chat template; ask with prompt form paper, or add one to the checkpoint."
        )
    if form != "auto":
        return form
    plain = template is None or lens.name.startswith(EMBEDDED) or not lens.architecture.facts["images_in_text"]
    return "paper" if plain or _is_the_papers(lens) else "chat"


def chat_prompt(lens: Lens, body: str, images: int) -> str:
    """The body as the user's message, behind placeholders of so many images, up to where the model's answer begins.

    A BOS that the template writes is left out where the tokenizer adds its own. Raises `InvalidValue` for a template
    that cannot be rendered, or that changes the text or the number of images.
    """
    processor, template = lens.processor, template_of(lens.processor)
    token = getattr(processor, "image_token", "<image>") if lens.architecture.facts["images_in_text"] else ""
    images = images if token else 0
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": body}]
    reason = ""
    # Templates of text models take a string.
    for content in (parts, f"{token}\n" * images + body):
        message = [{"role": "user", "content": content}]
        try:
            text: Any = processor.tokenizer.apply_chat_template(
                message, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = reason or " ".join(str(error).split())
            continue
        if body in text and (not token or text.count(token) == images + body.count(token)):
            return _one_bos(processor.tokenizer, text)
    reason = reason or "it changes the question, or the number of images"
    raise InvalidValue(
        f"{lens.name}: its chat template cannot be used ({reason}); mend the checkpoint's chat_template, or ask with "
        "prompt form paper."
    )


def images_come_first(lens: Lens, form: PromptForm) -> bool:
    """Whether a prompt's images stand before its question, so that questions can share them."""
    if form_of(lens, form) == "paper":
        return True
    text, token = chat_prompt(lens, "?!?", 1), getattr(lens.processor, "image_token", "<image>")
    return text.rfind(token) < text.find("?!?")


def form_facts(lens: Lens, prompt: str, form: PromptForm) -> dict[str, str]:
    """What an artifact says of the frame of its evaluation prompts where the checkpoint has a chat template.

    That is "prompt form", and the template's sha256 where it was used; without a template the frame is the paper's.
    """
    found, template = form_of(lens, form), template_of(lens.processor)
    if prompt != "evaluation" or template is None:
        return {}
    used = {"chat template sha256": hashlib.sha256(template.encode()).hexdigest()} if found == "chat" else {}
    return {"prompt form": found, **used}


def _is_the_papers(lens: Lens) -> bool:
    rendered = chat_prompt(lens, prompts.question_body("llava-next", "?"), 1)
    paper = prompts.evaluation("llava-next", "?")
    token = getattr(lens.processor, "image_token", "<image>")
    own, paper = (
        _bare(rendered.replace(token, "<image>").removeprefix(lens.processor.tokenizer.bos_token or "")),
        _bare(paper),
    )
    return own in (paper, paper.removeprefix(_bare(prompts.SYSTEM)))


def _one_bos(tokenizer: Any, text: str) -> str:
    bos = tokenizer.bos_token
    if not bos or not text.startswith(bos):
        return text
    return text.removeprefix(bos) if tokenizer(bos)["input_ids"][:2] == [tokenizer.bos_token_id] * 2 else text


def _bare(text: str) -> str:
    return "".join(text.split())
