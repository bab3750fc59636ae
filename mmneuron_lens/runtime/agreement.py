"""Agreement: every shortcut compared with what it stands for, on the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interventions import Graph, count_positions, sum_activations
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.encoding import encode, packed, why_not_packed
from mmneuron_lens.runtime.run import run
from mmneuron_lens.wire.images import decode

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""How far two orders of the same sums may lie apart, as a share of the largest value."""

SUMS = Graph((sum_activations.at("*.act"), count_positions.at("*.act")))

Asked = tuple[Sequence[Any], str]
"""The images of a prompt, and the prompt."""


def prove_shortcuts(model: Model, batch: Batch) -> None:
    """Compare, on the prompts of a batch, what is computed for speed with what it stands for.

    - the logits of `encode` with those of the processor's own inputs, prompt by prompt
    - the logits of a padded batch with those of each of its rows alone
    - sums of activations of packed questions of one image with those of each question alone, where they may share a row

    Raises `AssertionError` naming the first that differs, by more than rounding.
    """
    asked = asked_in(batch)
    alone = [encode(model, [list(images)], [text]).to(model.device) for images, text in asked]
    expected = [_logits(model, one.inputs) for one in alone]
    for (images, text), found in zip(asked, expected, strict=True):
        own = _logits(model, own_inputs(model, images, text))
        what = "logits of lens.encode are not those of the processor's own inputs"
        _compare(found, own, model.dtype, f"{what}, for {text!r:.60}")
    if len(asked) > 1:
        together = encode(model, [list(images) for images, _ in asked], [text for _, text in asked]).to(model.device)
        logits, real = _logits(model, together.inputs), together.fields["llm"]["weight"].bool().cpu()
        for row, (one, (_, text)) in enumerate(zip(expected, asked, strict=True)):
            what = f"logits of a row in a batch are not its own, for {text!r:.60}"
            _compare(logits[row][real[row]][None], one, model.dtype, what)
    with_images = [one for one in asked if one[0]]
    if with_images:
        _prove_packed(model, *with_images[0])


def asked_in(batch: Batch) -> list[Asked]:
    """The prompts that a batch was made from, each with its images."""
    images_of, texts = batch.given
    return [
        (images, prompt)
        for images, text in zip(images_of, texts, strict=True)
        for prompt in ((text,) if isinstance(text, str) else text)
    ]


def own_inputs(model: Model, images: Sequence[Any], text: str) -> dict[str, Tensor]:
    """What the processor alone makes of a prompt: those of its tensors that the model's forward takes by name."""
    pictures = [decode(image) for image in images]
    with torch.device("cpu"):
        made = model.processor(text=[text], return_tensors="pt", **({"images": pictures} if pictures else {}))
    taken = inspect.signature(model.module.forward).parameters
    return {name: value.to(model.device) for name, value in made.items() if isinstance(value, Tensor) and name in taken}


def _prove_packed(model: Model, images: Sequence[Any], text: str) -> None:
    """Three questions of one image, packed and one by one."""
    prompts = [text, f"{text} Why?", f"{text} Since when, and who says so?"]
    single = [encode(model, [list(images)], [prompt]) for prompt in prompts]
    longest = max(one.inputs["input_ids"].shape[1] for one in single)
    if not model.architecture.facts.get("vision_tower") and why_not_packed(model, longest):
        return
    expected = run(model, SUMS, single)
    for cut in (False, True):
        found = run(model, SUMS, [packed(model, [(list(images), prompts)], cut=cut)])
        for (name, site), value in expected.items():
            _compare(
                found[name, site], value, model.dtype, f"{name} at {site} of packed questions is not that of each alone"
            )


def _compare(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    """Raise `AssertionError` where two tensors differ in shape, or by more than rounding; integers, at all."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = float((found.double() - expected.double()).abs().max())
    allowed = ROUNDING[dtype] * float(expected.double().abs().max()) if found.is_floating_point() else 0
    assert apart <= allowed, f"{what}: they lie {apart:.3g} apart, and rounding explains {allowed:.3g}"


def _logits(model: Model, inputs: Any) -> Tensor:
    with torch.no_grad():
        return model.module(**inputs).logits.cpu()
