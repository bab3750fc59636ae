"""Encoding: images and texts to a batch that knows its token layout, one prompt a row or several that share images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.limits import positions_of, refuse_beyond
from mmneuron_lens.wire import images, layout
from mmneuron_lens.wire.answers import append_answers
from mmneuron_lens.wire.encode import encode as encode_inputs
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.pack import pack, why_apart
from mmneuron_lens.wire.share import share
from mmneuron_lens.wire.types import Inputs

MASKED = ("eager", "sdpa")
"""Attention implementations that take the mask of a packed row as it is."""


def encode(
    model: Model,
    images_of: Sequence[Any] | None,
    texts: Sequence[str] | str,
    answers: Sequence[str | Sequence[int] | Tensor] | None = None,
) -> Batch:
    """Images and texts as one padded batch.

    - images_of: per text an image, a list of images, or None; an image is a path, the bytes of a file, a PIL image or
      an array
    - texts: prompts; where images stand in the text (LLaVA), one without placeholders gets one per image before it
    - answers: per text the answer that stands behind it, as text or token ids

    Raises `InvalidValue` for an image that cannot be read, a count that does not match, a text without an image where
    the architecture needs one, a placeholder of a video, an answer without a token, and as `limits.refuse_beyond` does.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    _refuse_videos(model, texts)
    per_text = _per_text(images_of, len(texts))
    pictures = [_decoded(some) for some in per_text]
    facts = model.architecture.facts
    if facts["images_in_text"]:
        texts = [with_placeholders(model, text, len(some)) for text, some in zip(texts, pictures, strict=True)]
    _refuse_number(model, pictures)
    # Wherever new tensors go by default, these are made here and sent to the model with the batch.
    with torch.device("cpu"):
        inputs = encode_inputs(model.processor, pictures, texts, facts)
        length = inputs["input_ids"].shape[1]
        ids = _answer_ids(model, answers, len(texts))
        if ids:
            inputs, coming = append_answers(inputs, ids, model.processor.tokenizer.pad_token_id or 0, facts)
            fields = layout.lay_out(inputs, facts, length)
            fields["llm"]["answer"] = coming
        else:
            fields = layout.lay_out(inputs, facts)
    refuse_beyond(model, inputs, names_of("texts", len(texts)))
    _refuse_rescaled(inputs, facts)
    return Batch(
        inputs=inputs,
        fields=fields,
        images=tuple(len(some) for some in pictures),
        prompt_length=length,
        facts=facts,
        tokenizer=model.processor.tokenizer,
        given=(tuple(map(tuple, per_text)), tuple(texts)),
        answers=tuple(map(tuple, ids)),
        image_processor=model.processor.image_processor,
    )


def _answer_ids(model: Model, answers: Sequence[str | Sequence[int] | Tensor] | None, texts: int) -> list[list[int]]:
    """Token ids of each answer, as the tokenizer reads a text by itself; none where there are no answers."""
    if answers is None:
        return []
    if isinstance(answers, str):
        answers = [answers]
    if len(answers) != texts:
        raise InvalidValue(f"{len(answers)} answers for {texts} texts; give one per text.")
    tokenizer, found = model.processor.tokenizer, list[list[int]]()
    for name, answer in zip(names_of("answers", texts), answers, strict=True):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"] if isinstance(answer, str) else answer
        found.append([int(one) for one in ids])
        if not found[-1]:
            raise InvalidValue(f"{name}{answer!r:.80} has no token; an answer has at least one.")
    return found


def why_not_packed(model: Model, longest: int = 0) -> str:
    """Why questions whose prompts have at most so many positions do not share a row exactly; empty where they do.

    They share one where images come before the question and do not depend on it, as in LLaVA, where attention is
    plainly causal over one position a token, and where no window is shorter than a prompt. Elsewhere (InstructBLIP,
    BLIP-2) `packed` still shares the vision tower's pass.
    """
    facts = model.architecture.facts
    if facts["queries"]:
        return "each question has image positions of its own"
    if facts["sees_ahead"] == "prompt":
        return "image positions see the question"
    if model.attention not in MASKED:
        return f"{model.attention} attention takes no mask of a packed row; load the model with sdpa or eager"
    return why_apart(facts, longest)


def packed(model: Model, rows: Sequence[tuple[Sequence[Any], Sequence[str]]], *, cut: bool = False) -> Batch:
    """One batch in which what prompts have in common is computed once: many questions at the price of one image.

    - rows: `(images, prompts)` each
    - cut: run prefixes of 512 positions and more, and their questions, one after the other behind a cache, which saves
      attention between all positions; then only reads that sum over positions fit, `over="sum"` or `"mean"`

    Most architectures: one row each; its images and common prefix once, the questions behind it in the same row.
    InstructBLIP, BLIP-2, PaliGemma: a row per prompt, as in `encode`, but each image passes the tower once. Every
    position that several prompts share carries their number as its weight, so a graph that counts with weights counts
    what it would count one prompt at a time, but for float rounding at zero. Not for generation.

    Raises `InvalidValue` for a row without an image or prompt, or of several images where the architecture takes one,
    where several prompts in a row would not compute what each computes alone, for a placeholder of a video, and as
    `limits.refuse_beyond` does.
    """
    if not all(some and prompts for some, prompts in rows):
        raise InvalidValue("Every packed row needs at least one image and one prompt.")
    pictures = [_decoded(some) for some, _ in rows]
    processor, facts = model.processor, model.architecture.facts
    texts = [list(prompts) for _, prompts in rows]
    _refuse_videos(model, [text for some in texts for text in some])
    if facts["images_in_text"]:
        texts = [
            [with_placeholders(model, prompt, len(some)) for prompt in prompts]
            for some, prompts in zip(pictures, texts, strict=True)
        ]
    _refuse_number(model, pictures)
    if facts.get("vision_tower"):
        with torch.device("cpu"):
            inputs, fields, sharing = share(processor, pictures, texts, facts)
        refuse_beyond(model, inputs, names_of("prompts", inputs["input_ids"].shape[0]))
        held = tuple(len(some) for some, prompts in zip(pictures, texts, strict=True) for _ in prompts)
    else:
        several = any(len(prompts) > 1 for prompts in texts)
        if several and (why := why_not_packed(model)):
            raise InvalidValue(f"Prompts cannot share a row: {why}; encode them, lens.encode(images, texts).")
        additive = model.dtype if model.attention == "eager" else None
        try:
            with torch.device("cpu"):
                inputs, fields, sharing = pack(processor, pictures, texts, facts, additive, cut, positions_of(model))
        except ValueError as error:
            raise InvalidValue(str(error)) from error
        held = tuple(len(some) for some in pictures)
        refuse_beyond(model, inputs, names_of("rows", len(rows)))
    _refuse_rescaled(inputs, facts)
    return Batch(
        inputs=inputs,
        fields=fields,
        images=held,
        prompt_length=inputs["input_ids"].shape[1],
        facts=facts,
        tokenizer=processor.tokenizer,
        given=(tuple(tuple(some) for some, _ in rows), tuple(map(tuple, texts))),
        sharing=sharing,
        image_processor=processor.image_processor,
    )


def names_of(what: str, count: int) -> list[str]:
    """What an error about one of so many begins with: its place among them, or nothing."""
    return [f"{what}[{place}]: " if count > 1 else "" for place in range(count)]


def with_placeholders(model: Model, text: str, count: int) -> str:
    """The prompt with a placeholder per image before it, unless it has them.

    Raises `InvalidValue` where it has another number of them.
    """
    token = str(model.processor.image_token)
    present = text.count(token)
    if present == 0 and count:
        return placeholder_of(model) * count + text
    if present != count:
        raise InvalidValue(f"{present} {token} in the text for {count} images: {text[:80]!r}.")
    return text


def placeholder_of(model: Model) -> str:
    """What stands for an image in a text, where images stand in the text."""
    before, behind = model.architecture.facts["around"]
    return f"{before}{model.processor.image_token}{behind}"


def _decoded(some: Sequence[Any]) -> list[Image.Image]:
    try:
        return [images.decode(image) for image in some]
    except ValueError as error:
        raise InvalidValue(str(error)) from error


def _refuse_videos(model: Model, texts: Sequence[str]) -> None:
    """Raise `InvalidValue` for a text with the placeholder of a video."""
    token = getattr(model.processor, "video_token", None)
    for name, text in zip(names_of("texts", len(texts)), texts, strict=True):
        if token and str(token) in text:
            raise InvalidValue(
                f"{name}{text[:80]!r} holds {token}, where a video would stand; mmneuron reads pictures: put "
                f"{model.processor.image_token} there for each frame, or write it otherwise."
            )


def _refuse_number(model: Model, pictures: Sequence[Sequence[Any]]) -> None:
    """Raise `InvalidValue` for a text of fewer or more images than the architecture takes."""
    facts, counts = model.architecture.facts, [len(some) for some in pictures]
    if not facts["images_in_text"] and any(count != 1 for count in counts):
        raise InvalidValue(f"{model.architecture.name} takes exactly one image per text; these have {counts}.")
    if not facts["text_only"] and 0 in counts:
        raise InvalidValue(f"{model.architecture.name} takes at least one image per text; these have {counts}.")


def _refuse_rescaled(inputs: Inputs, facts: Facts) -> None:
    """Rows share a batch where each would have the same position embedding alone."""
    limit = facts["sharable"]["rescaled"] if "sharable" in facts else None
    rows, longest = inputs["input_ids"].shape[0], int(inputs["position_ids"].max()) + 1
    if limit is not None and rows > 1 and longest > limit:
        raise InvalidValue(
            f"The position embedding of these {rows} rows depends on the longest, of {longest} positions, "
            f"beyond the model's original context of {limit}; encode each row by itself."
        )


def _per_text(images_of: Sequence[Any] | None, count: int) -> list[list[Any]]:
    if images_of is None:
        return [[] for _ in range(count)]
    if isinstance(images_of, str | bytes | os.PathLike) or not isinstance(images_of, Sequence):
        images_of = [images_of]
    if len(images_of) != count:
        raise InvalidValue(
            f"{len(images_of)} entries of images for {count} texts; give one entry (or a list, or None) per text."
        )
    return [list(some) if isinstance(some, list | tuple) else [] if some is None else [some] for some in images_of]
