"""Tiny random models in the stock transformers classes, with their processors, built in code for tests."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

LLAVA_NEXT_GRID = [[32, 64], [64, 32], [64, 64]]


def tokenizer(*more: str, **named: str) -> PreTrainedTokenizerFast:
    """A character tokenizer: any text encodes, every character is a token.

    - more: special tokens in place of `<image>`.
    - named: special tokens by the attributes that processors ask for.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", *(more or ["<image>"])]
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(more or ["<image>"]),
        **({"extra_special_tokens": named} if named else {}),
        padding_side="left",
    )
    return made


def _text_config(layers: int = 3) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Give every weight a scale at which each site visibly moves the logits."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
    return model.eval()


@cache
def llava_next():
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=_text_config(),
        image_token_index=4,
        image_grid_pinpoints=LLAVA_NEXT_GRID,
    )
    torch.manual_seed(0)
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=LLAVA_NEXT_GRID
        ),
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return loud(LlavaNextForConditionalGeneration(config)), processor


def on(name: str, text_config):
    """One of these models on another language model, of the sizes of `_text_config`."""
    module, processor = globals()[name]()
    config = copy.deepcopy(module.config)
    config.text_config = text_config
    torch.manual_seed(0)
    return loud(type(module)(config)), processor


def text_sizes() -> dict[str, int]:
    """The sizes of `_text_config`, for a configuration of another language model."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rest = ("num_key_value_heads", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    config = _text_config()
    return {name: getattr(config, name) for name in (*names, *rest)}


@cache
def llava():
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    config = LlavaConfig(vision_config=vision, text_config=_text_config(), image_token_index=4)
    torch.manual_seed(0)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return loud(LlavaForConditionalGeneration(config)), processor


@cache
def instructblip():
    vision = InstructBlipVisionConfig(
        hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    qformer = InstructBlipQFormerConfig(
        vocab_size=101,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=16,
        pad_token_id=0,
        max_position_embeddings=128,
    )
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=_text_config(),
        num_query_tokens=4,
        image_token_index=4,
    )
    torch.manual_seed(0)
    processor = InstructBlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(), tokenizer(), num_query_tokens=4
    )
    return loud(InstructBlipForConditionalGeneration(config)), processor


@cache
def blip2():
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        vocab_size=101,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=16,
        pad_token_id=0,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=_text_config(),
        num_query_tokens=4,
        image_token_index=4,
    )
    torch.manual_seed(0)
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(), num_query_tokens=4)
    return loud(Blip2ForConditionalGeneration(config)), processor


def checkpoint(name: str, folder: Path) -> Path:
    """One of these models with its processor, saved in a folder."""
    for part in globals()[name]():
        part.save_pretrained(folder)
    return folder


def changed_in_the_middle(lens) -> None:
    """The least change of one value that is neither sampled nor near an end."""
    weight = max(lens.module.parameters(), key=torch.Tensor.numel).data.view(-1)
    place = weight.numel() // 2 + 1
    weight[place] = torch.nextafter(weight[place], torch.tensor(9.0))


def saved_by_torch(lens, folder) -> None:
    """As `pytorch_model.bin`; a file that a model has mapped into memory is not written over."""
    weights = {name: value.clone() for name, value in lens.module.state_dict().items()}
    for file in ("model.safetensors", "pytorch_model.bin"):
        (folder / file).unlink(missing_ok=True)
    torch.save(weights, folder / "pytorch_model.bin")


def saved_by_transformers(lens, folder) -> None:
    lens.module.save_pretrained(folder)
