"""The models that benchmarks run on: embedded, real parts with tiles of 224 pixels, and random ones of chosen size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)
from transformers.initialization import no_init_weights

from mmneuron_lens import Lens

MODELS = ("embedded", "real-parts", "300m")

SIZES = {"embedded": (96, 128), "real-parts": (448, 448), "300m": (672, 672)}
"""Height and width of the images asked about; the larger two fill 2 x 2 tiles, nothing is cut off."""

ROWS = {"embedded": 8, "real-parts": 1, "300m": 1}
"""Rows in a batch of the methods that ask one question a row."""

GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Pixels of the anyres tilings of the published LLaVA-NeXT, height first."""


def load(name: str, dtype: str) -> Lens:
    """One of `MODELS`. dtype: "float32" or "bfloat16"."""
    kind = getattr(torch, dtype)
    if name == "embedded":
        return Lens.embedded("llava-next", dtype=kind)
    if name == "real-parts":
        return Lens(real_parts(), dtype=kind)
    if name == "300m":
        text = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16}
        vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
        return random_llava_next(text, vision, kind)
    raise KeyError(f"no model {name!r}; choose from {', '.join(MODELS)}.")


def prepare(name: str) -> None:
    """What is made once, before several processes load it."""
    if name == "real-parts":
        real_parts()


def real_parts() -> Path:
    """DINOv2-small and SmolLM2-135M joined with tiles of 224 pixels, in the cache; the connector is random."""
    from mmneuron_lens.embedded.smol import assemble, dinov2, fetch, save, smollm2

    folder = fetch.cache_folder() / "assembled" / "tiles-of-224" / "smol"
    if not (folder / "config.json").is_file():
        with fetch.unpacked(fetch.DINOV2) as file:
            vision = dinov2.read_dinov2(file, 224)
        with fetch.unpacked(fetch.SMOLLM2) as file:
            language, tokenizer = smollm2.read_smollm2(file), smollm2.read_tokenizer(file)
        torch.manual_seed(0)
        save(*assemble.join(vision, language, tokenizer), folder)
    return folder


def random_llava_next(
    text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, name: str | None = None, **settings: Any
) -> Lens:
    """A stock LLaVA-NeXT with tiles of 336 pixels, patches of 14 and random weights, built in its own dtype.

    text, vision: settings of `LlamaConfig` and `CLIPVisionConfig`; settings: of `LlavaNextConfig`. The tokenizer is the
    embedded model's; the rows of the vocabulary above it are never asked for.
    """
    tokenizer = Lens.embedded("llava-next").processor.tokenizer
    tokenizer.model_max_length = 8192
    token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, projection_dim=vision["hidden_size"], **vision),
        text_config=LlamaConfig(vocab_size=32_000, max_position_embeddings=8192, pad_token_id=0, **text),
        image_token_index=token,
        image_grid_pinpoints=GRID,
        **settings,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():
            model = LlavaNextForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    fill(model)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=GRID
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return Lens.wrap(model, processor, name)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Norms are 1, biases 0, everything else pieces of one block of normal numbers, scaled by the inputs' number."""
    generator = torch.Generator().manual_seed(0)
    # Its length is prime, so that rows of a weight do not repeat each other.
    block = torch.randn(1_048_583, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.fill_(1)
        elif parameter.ndim == 1 and name.endswith("bias"):
            parameter.zero_()
        else:
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            piece = (block * scale).to(parameter.dtype)
            for some in parameter.view(-1).split(len(block)):
                some.copy_(piece[: len(some)])


def pictures(name: str, count: int) -> list[Image.Image]:
    """Noise images of the size that goes with a model."""
    generator = torch.Generator().manual_seed(0)
    shape = (*SIZES[name], 3)
    return [
        Image.fromarray(torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator).numpy())
        for _ in range(count)
    ]


def asked(image: int, count: int) -> list[str]:
    """So many different questions of one image."""
    kinds = ("What is shown here?", "Is there anything red in the picture?", "How many objects are there?")
    return [f"{kinds[(image + number) % 3]} {number}" for number in range(count)]
