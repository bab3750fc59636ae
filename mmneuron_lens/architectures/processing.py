"""Processing: that a processor makes what its model takes, filled from the configuration where it says too little.

What a processor does not say it does not do: without `num_query_tokens` a BLIP-2 is never given its image, and two
different pictures have the same logits. So each setting is compared, then an image and a prompt are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image

from interventions.errors import InvalidValue
from mmneuron_lens.architectures.architecture import Architecture
from mmneuron_lens.wire import layout
from mmneuron_lens.wire.encode import completed, encode
from mmneuron_lens.wire.tiles import anyres_length


def fitted(architecture: Architecture, module: torch.nn.Module, processor: Any) -> tuple[Any, dict[str, Any]]:
    """A processor that says everything its model needs, and what was filled in; works on meta.

    Where nothing is missing it is the one given; otherwise a copy, so that the one given stays as it is. Raises
    `InvalidValue` naming the setting, what the processor and what the configuration say, where they contradict one
    another or what is missing cannot be known.
    """
    _check_parts(architecture, processor)
    missing: dict[str, Any] = {}
    for name, expected, absent in _settings(architecture, module):
        found = getattr(processor, name, None)
        if found in absent:
            missing[name] = expected
        elif found != expected:
            raise _contradiction(architecture, name, found, expected)
    if processor.tokenizer.pad_token is None:
        missing["pad_token"] = _padding(architecture, module, processor.tokenizer)
    filled = completed(processor, missing)
    _check_tokens(architecture, module, filled)
    _check_pixels(architecture, module, filled)
    return filled, missing


def _settings(architecture: Architecture, module: torch.nn.Module) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Attributes of the processor: name, value by the configuration, and the values that say nothing."""
    config: Any = module.config
    facts = architecture.facts
    if facts["queries"]:
        yield "num_query_tokens", config.num_query_tokens, (None,)
    elif facts["tiling"] in ("one", "anyres") and facts["cls"]:
        yield "patch_size", config.vision_config.patch_size, (None,)
        # VipLlava always drops CLS, and its configuration does not say so.
        strategy = getattr(config, "vision_feature_select_strategy", "default")
        yield "vision_feature_select_strategy", strategy, (None,)
        # 0 is what a processor says unless it is told.
        yield "num_additional_image_tokens", facts["cls"], (None, 0)


def _check_parts(architecture: Architecture, processor: Any) -> None:
    needed = ["tokenizer", "image_processor"]
    needed += ["qformer_tokenizer"] if "qformer.text.act" in architecture.places else []
    lacking = [name for name in needed if getattr(processor, name, None) is None]
    if lacking:
        raise InvalidValue(
            f"{architecture.name} needs a processor with {' and '.join(lacking)}, and a {type(processor).__name__} "
            "has none; give the checkpoint's own, AutoProcessor.from_pretrained(...)."
        )


def _check_tokens(architecture: Architecture, module: torch.nn.Module, processor: Any) -> None:
    """The image token is the model's, and every prompt's own tokens have an embedding."""
    tokenizer, expected = processor.tokenizer, architecture.facts["image_token"]
    # Gemma 3 and Aya Vision have one token for an image in a text, and another for each of its positions.
    own = (processor.image_token, getattr(tokenizer, "image_token", None), getattr(processor, "img_patch_token", None))
    names = {str(name) for name in own if name}
    tokens = {name: tokenizer.convert_tokens_to_ids(name) for name in sorted(names)}
    if expected not in tokens.values():
        token, found = next(iter(tokens.items()))
        raise _contradiction(architecture, f"image token {token!r}", found, expected)
    rows = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    _check_rows(architecture, tokenizer, tokens, rows, "language model")
    if "qformer.text.act" in architecture.places:
        words: Any = module.config.qformer_config.vocab_size  # type: ignore[union-attr]
        _check_rows(architecture, processor.qformer_tokenizer, {}, words, "Q-Former")


def _check_rows(architecture: Architecture, tokenizer: Any, tokens: Mapping[str, int], rows: int, what: str) -> None:
    """That the tokens which stand in every prompt or batch have a row of the embedding."""
    always = [*tokenizer("")["input_ids"], *([] if tokenizer.pad_token is None else [tokenizer.pad_token_id])]
    named = {**tokens, **{str(tokenizer.convert_ids_to_tokens(token)): token for token in always}}
    beyond = [f"{name!r} is {token}" for name, token in named.items() if token >= rows]
    if beyond:
        raise InvalidValue(
            f"{architecture.name}: the {what} has {rows} tokens, 0 to {rows - 1}, and of its tokenizer {beyond[0]}; "
            "give the tokenizer of this checkpoint, or model.resize_token_embeddings(len(tokenizer))."
        )


def _padding(architecture: Architecture, module: torch.nn.Module, tokenizer: Any) -> str:
    """The configuration's padding token."""
    config: Any = module.config
    known = [getattr(one, "pad_token_id", None) for one in (config, config.get_text_config())]
    number = next((one for one in known if one is not None and 0 <= one < len(tokenizer)), None)
    if number is None:
        raise InvalidValue(
            f"{architecture.name}: neither tokenizer nor configuration names a padding token; set one, "
            "processor.tokenizer.pad_token = processor.tokenizer.eos_token."
        )
    return tokenizer.convert_ids_to_tokens(number)


def _check_pixels(architecture: Architecture, module: torch.nn.Module, processor: Any) -> None:
    """One image is made: of the tower's size, and with as many positions in a prompt as the model gives it."""
    facts, config = architecture.facts, module.config
    tower: Any = config.vision_config  # type: ignore[union-attr]
    side = _one(tower.image_size) if facts["patches"] else 4 * _one(tower.patch_size)
    grid = facts.get("grid_pinpoints")
    tiles: Any = getattr(processor.image_processor, "image_grid_pinpoints", None)
    if grid is not None and _plain(tiles) != _plain(grid):
        raise _contradiction(architecture, "image_grid_pinpoints", _plain(tiles), _plain(grid))
    text = str(processor.image_token) if facts["images_in_text"] else "a"
    with torch.device("cpu"):
        made = encode(processor, [[Image.new("RGB", (side, side))]], [text], facts)
    if facts["patches"]:
        shape, axes = list(made["pixel_values"].shape[-2:]), made["pixel_values"].ndim
        if (
            axes not in ((4, 5) if facts["tiling"] == "several" else (4,) if grid is None else (5,))
            or shape != [side] * 2
        ):
            raise _contradiction(architecture, "size of an image in pixels", shape or None, [side, side])
    found = int((made["input_ids"] == facts["image_token"]).sum())
    if facts["tiling"] == "several":
        # Tiles are counted by their positions; here by their pixels.
        expected = int((made["pixel_values"].flatten(-3) != 0).any(-1).sum()) * facts["patches"] // facts["merged"]
    elif facts["tiling"] == "anyres":
        expected = anyres_length([side, side], facts)
    elif facts["queries"]:
        expected = facts["queries"]
    else:
        expected = sum(layout.tower_positions(made, facts, [found])) // facts["merged"]
    if found != expected:
        raise _contradiction(architecture, "number of positions of an image", found, expected)


def _one(size: Any) -> int:
    return size[0] if isinstance(size, list | tuple) else size


def _plain(sizes: Any) -> list[list[int]] | None:
    return None if sizes is None else [list(size) for size in sizes]


def _contradiction(architecture: Architecture, what: str, found: Any, expected: Any) -> InvalidValue:
    return InvalidValue(
        f"{architecture.name}: {what} is {found} by the processor and {expected} by the model's configuration; give "
        "the processor of this checkpoint, or correct the one that is wrong."
    )
