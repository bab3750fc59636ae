"""Discovering: the sites and facts of a model without a table, measured on the processor's own inputs, then proved."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
from PIL import Image
from torch import Tensor

from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.architectures import language, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.discovery import discover
from mmneuron_lens.architectures.facts import facts
from mmneuron_lens.architectures.measuring import shapes_of
from mmneuron_lens.architectures.outline import Neurons, Outline, outline
from mmneuron_lens.model import Model, model_of
from mmneuron_lens.runtime.agreement import processed
from mmneuron_lens.runtime.proving import prove
from mmneuron_lens.wire.encode import TAKEN
from mmneuron_lens.wire.facts_types import Facts

SIDES = ((64, 64), (40, 56), (96, 32))
"""Height and width in pixels of the images that are measured."""

OF_TEXT = ("mm_token_type_ids",)
"""Ids beside `input_ids` that are 0 for text, and so for an answer."""


def discovered_model(module: Any, processor: Any, *, repo: str, name: str, revision: str | None) -> Model:
    """A model whose sites are discovered and proved at once.

    Raises `InvalidValue` with the reason for a model on which discovery is not enough.
    """
    kind = module.config.model_type
    try:
        architecture = discovered_architecture(module, processor)
        model = model_of(module, processor, repo=repo, name=name, revision=revision, architecture=architecture)
        return replace(model, proof=prove(replace(model, proof="")).digest)
    except (MMNeuronError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InvalidValue(
            f"{kind}: discovery is not enough for this architecture: {said:.300} "
            "`mmneuron describe` writes a table to start from."
        ) from error


def discovered_architecture(module: Any, processor: Any) -> Architecture:
    """Sites by discovery, facts by measurement. Raises `InvalidValue` for what cannot be told."""
    config, found = module.config, discover(module)
    paths = [path for pattern in found.activations for path in found.paths(pattern)]
    measured = [_inputs(module, processor, side) for side in SIDES]
    shapes = [shapes_of(module, paths, _to(module, inputs)) for inputs in measured]
    parts = outline(config, found, shapes[0])
    if parts.llm is None:
        raise InvalidValue("the neurons of the language model are not one activation module in each of its layers.")
    places = language.places(config.get_text_config(), parts.body, parts.head, _decoder(module, parts, parts.llm))
    if parts.base:
        read_at = getattr(config, "vision_feature_layer", None)
        places |= vision.places(config.vision_config, parts.base, read_at)
    elif parts.tower:
        places["vision.mlp.act"] = _place(parts.tower)
    if parts.projector:
        places["projector.act"] = _place(parts.projector)
    tower = None if parts.tower is None else found.paths(parts.tower.path)[0]
    rows = [None if tower is None else one[tower] for one in shapes]
    return Architecture(type(config).__name__.removesuffix("Config"), places, _facts(module, processor, measured, rows))


def _decoder(module: Any, parts: Outline, neurons: Neurons) -> language.Decoder | None:
    """How the modules of a layer are named that is of no family with a table."""
    if parts.family:
        return None
    layer = module.get_submodule(parts.body).layers[0]
    names = {name for name, _ in layer.named_modules()}
    inside = neurons.path.partition(".{l}.")[2]
    out = next((name for name in ("o_proj", "out_proj") if f"self_attn.{name}" in names), "o_proj")
    down = f"{inside.rpartition('.')[0]}.down_proj"
    needed = [*(f"self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj", out)), down]
    if lacking := [name for name in needed if name not in names]:
        raise InvalidValue(f"a layer of the language model has no {', '.join(lacking)}.")
    made = language.Decoder(out=out, act=inside, down=down)
    if "post_feedforward_layernorm" in names:
        made = replace(made, attention_out=language.GEMMA.attention_out, mlp_out=language.GEMMA.mlp_out)
    return made


def _facts(module: Any, processor: Any, measured: list[dict[str, Tensor]], rows: list[Any]) -> Facts:
    """Facts of images in a prompt. rows: the shape of the tower's neurons for each of the measured inputs."""
    config, text = module.config, module.config.get_text_config()
    token = _image_token(module, processor, measured[0])
    counts = [int((inputs["input_ids"] == token).sum()) for inputs in measured]
    beside = [name for name, value in measured[0].items() if value.shape == measured[0]["input_ids"].shape]
    beside = [name for name in beside if name not in TAKEN]
    strange = sorted({*measured[0]} - {*TAKEN, *OF_TEXT})
    if strange:
        raise InvalidValue(f"its forward is given {', '.join(strange)}, which lens.encode does not make.")
    own: dict[str, Any] = {"image_token": token, "token_ids": dict.fromkeys(beside, 0)}
    own["nested"] = _nested(processor, token, counts[1:])
    # Nothing proves that its towers look at each image by itself.
    own["once"] = ()
    if any(row is None for row in rows):
        raise InvalidValue("which activation modules are the vision tower's cannot be told.")
    if len({row[-2] for row in rows}) > 1:
        own |= _packed(config, measured, rows, counts)
        if any("mrope_section" in str(getattr(text, name, "")) for name in ("rope_parameters", "rope_scaling")):
            own["positions"] = "grid"
    else:
        own |= _tiled(config, rows, counts)
    return facts(text, **own)


def _tiled(config: Any, rows: list[Any], counts: list[int]) -> dict[str, Any]:
    tile = vision.tile(config.vision_config)
    patches = tile["patches"]
    cls = rows[0][1] - patches
    per_tile = {(tiles * patches) / count for (tiles, _, _), count in zip(rows, counts, strict=True)}
    merged = per_tile.pop()
    if per_tile or cls < 0 or merged != int(merged):
        seen = ", ".join(f"{count} of {row[0]} x {row[1]}" for row, count in zip(rows, counts, strict=True))
        raise InvalidValue(f"image positions do not follow from tiles and patches: {seen}.")
    one = all(row[0] == 1 for row in rows)
    return {**tile, "cls": cls, "merged": int(merged), "tiling": "one" if one else "several"}


def _packed(config: Any, measured: list[dict[str, Tensor]], rows: list[Any], counts: list[int]) -> dict[str, Any]:
    merged = {math.prod(row[:-1]) / count for row, count in zip(rows, counts, strict=True)}
    tiling = "grid" if "image_grid_thw" in measured[0] else "sizes" if "image_sizes" in measured[0] else ""
    if len(merged) > 1 or not tiling or math.isqrt(int(max(merged))) ** 2 != max(merged):
        raise InvalidValue("image positions do not follow from patches, or the inputs name no grid of them.")
    patch_size = config.vision_config.patch_size
    return {"patches": 0, "merged": int(merged.pop()), "tiling": tiling, "patch_size": patch_size}


def _image_token(module: Any, processor: Any, inputs: dict[str, Tensor]) -> int:
    """The id of an image position: the commonest of those that text alone does not have."""
    alone = set(processed(module, processor, [], "what is this?")["input_ids"].flatten().tolist())
    ids = [token for token in inputs["input_ids"].flatten().tolist() if token not in alone]
    token = max(set(ids), key=ids.count, default=-1)
    names = ("image_token_id", "image_token_index")
    said = next(
        (getattr(module.config, name) for name in names if getattr(module.config, name, None) is not None), token
    )
    if token != said:
        raise InvalidValue(f"the image token is {token} by its prompts and {said} by its configuration.")
    return token


def _nested(processor: Any, token: int, counts: list[int]) -> bool:
    """Whether the processor takes a list of images per text."""
    pictures = [_picture(side) for side in SIDES[1:]]
    texts = [f"{processor.image_token}\nwhat is this?"] * len(pictures)
    said = ""
    for nested in (False, True):
        images = [[picture] for picture in pictures] if nested else pictures
        try:
            made = processor(text=texts, images=images, return_tensors="pt", padding=True)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            said = " ".join(str(error).split())
            continue
        if (made["input_ids"] == token).sum(1).tolist() == counts:
            return nested
    raise InvalidValue(f"its processor takes no batch of prompts with an image each ({said:.100}).")


def _inputs(module: Any, processor: Any, side: tuple[int, int]) -> dict[str, Tensor]:
    if not getattr(processor, "image_token", None):
        raise InvalidValue(f"its {type(processor).__name__} names no image_token that stands for an image in a text.")
    return processed(module, processor, [_picture(side)], f"{processor.image_token}\nwhat is this?")


def _to(module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(module.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


def _picture(side: tuple[int, int]) -> Image.Image:
    drawn = numpy.random.default_rng(0).integers(0, 255, (*side, 3), dtype=numpy.uint8)
    return Image.fromarray(drawn)


def _place(neurons: Neurons) -> Place:
    view: Any = (("packed",),) if neurons.packed else ()
    return Place(neurons.path, neurons.layers, {"neuron": neurons.width}, view=view)
