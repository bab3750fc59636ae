"""Agreement: every shortcut compared with what it stands for, on the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from interventions import Graph, count_positions, sum_activations
from interventions.errors import ProofFailed
from mmneuron_lens.artifacts.certificate import Comparison
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


def prove_shortcuts(model: Model, batch: Batch) -> list[Comparison]:
    """Compare, on the prompts of a batch, what is computed for speed with what it stands for.

    - the logits of `encode` with those of the processor's own inputs, prompt by prompt
    - the logits of a padded batch with those of each of its rows alone
    - sums of activations of packed questions with those of each question alone, where they may share work

    Returns what was compared, and what was not with the reason. Raises `ProofFailed` naming the first that differs,
    by more than rounding.
    """
    asked = asked_in(batch)
    alone = [encode(model, [list(images)], [text]).to(model.device) for images, text in asked]
    expected = [_logits(model, one.inputs) for one in alone]
    what = "logits of lens.encode and of the processor's own inputs"
    apart = []
    for (images, text), found in zip(asked, expected, strict=True):
        own = _logits(model, own_inputs(model, images, text))
        said = "logits of lens.encode are not those of the processor's own inputs"
        apart.append(compare(found, own, model.dtype, f"{said}, for {text!r:.60}"))
    return [Comparison(what, max(apart)), _prove_rows(model, asked, expected), _prove_packed(model, asked)]


def _prove_rows(model: Model, asked: Sequence[Asked], expected: Sequence[Tensor]) -> Comparison:
    """A padded batch and each of its rows."""
    what = "logits of a batch and of its rows alone"
    if len(asked) < 2:
        return Comparison(what, why_not="the batch has one prompt")
    together = encode(model, [list(images) for images, _ in asked], [text for _, text in asked]).to(model.device)
    logits, real = _logits(model, together.inputs), together.fields["llm"]["weight"].bool().cpu()
    require(
        bool(real[:, -1].all()), "padding stands behind a prompt: the last column is not the last token of every row"
    )
    apart = []
    for row, (one, (_, text)) in enumerate(zip(expected, asked, strict=True)):
        said = f"logits of a row in a batch are not its own, for {text!r:.60}"
        apart.append(compare(logits[row][real[row]][None], one, model.dtype, said))
    return Comparison(what, max(apart))


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
    made = processed(model.module, model.processor, [decode(image) for image in images], text)
    return {name: value.to(model.device) for name, value in made.items()}


def processed(module: Any, processor: Any, pictures: Sequence[Image.Image], text: str) -> dict[str, Tensor]:
    """The same of a module and its processor, on the CPU; pictures are as `decode` makes them."""
    with torch.device("cpu"):
        made = processor(text=[text], return_tensors="pt", **({"images": list(pictures)} if pictures else {}))
    taken = inspect.signature(module.forward).parameters
    return {name: value for name, value in made.items() if isinstance(value, Tensor) and name in taken}


def _prove_packed(model: Model, asked: Sequence[Asked]) -> Comparison:
    """Questions of the first images, packed and one by one."""
    what = "activations of packed questions and of each alone"
    rows = [
        (list(images), [text, f"{text} Why?", f"{text} Since when, and who says so?"])
        for images, text in asked
        if images
    ][:2]
    if not rows:
        return Comparison(what, why_not="the batch has no image")
    single = [encode(model, [images], [prompt]) for images, prompts in rows for prompt in prompts]
    longest = max(one.inputs["input_ids"].shape[1] for one in single)
    why_not = "" if model.architecture.facts.get("vision_tower") else why_not_packed(model, longest)
    if why_not:
        return Comparison(what, why_not=why_not)
    expected = run(model, SUMS, single)
    apart = []
    for cut in (False, True):
        found = run(model, SUMS, [packed(model, rows, cut=cut)])
        for (name, site), value in expected.items():
            said = f"{name} at {site} of packed questions is not that of each alone"
            apart.append(compare(found[name, site], value, model.dtype, said))
    return Comparison(what, max(apart))


def require(holds: bool, said: str) -> None:
    """Raise `ProofFailed` where something does not hold."""
    if not holds:
        raise ProofFailed(f"{said}.")


def compare(found: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> float:
    """How far apart two tensors lie, as a share of the largest value.

    Raises `ProofFailed` where they differ in shape, or by more than rounding; integers, at all.
    """
    require(found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    apart, largest = float((found.double() - expected.double()).abs().max()), float(expected.double().abs().max())
    allowed = ROUNDING[dtype] * largest if found.is_floating_point() else 0
    require(apart <= allowed, f"{what}: they lie {apart:.3g} apart, and rounding explains {allowed:.3g}")
    return apart / largest if largest else apart


def _logits(model: Model, inputs: Any) -> Tensor:
    with torch.no_grad():
        return model.module(**inputs).logits.cpu()
