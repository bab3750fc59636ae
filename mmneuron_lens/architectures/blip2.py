"""BLIP-2: a ViT, a Q-Former of queries alone, one linear layer, a language model."""

from __future__ import annotations

from typing import Any

from interventions.errors import InvalidValue
from mmneuron_lens.architectures import language, qformer, vision
from mmneuron_lens.architectures.architecture import Architecture, Place
from mmneuron_lens.architectures.facts import facts


def architecture(config: Any) -> Architecture:
    """From a `Blip2Config`."""
    return queried(config, "BLIP-2", instruction=False)


def queried(config: Any, name: str, instruction: bool) -> Architecture:
    """A model whose language model sees queries. Raises `ValueError` for encoder-decoder language models (T5)."""
    if not config.use_decoder_only_language_model:
        raise InvalidValue(f"{name} with {config.text_config.model_type}: only decoder-only language models.")
    hidden = config.text_config.hidden_size
    return Architecture(
        name=name,
        places=vision.places(config.vision_config, "vision_model")
        | qformer.places(config.qformer_config, "qformer", instruction)
        | {
            "projector.output": Place(
                "language_projection",
                None,
                {"hidden": hidden, "query": config.num_query_tokens},
                axes="batch query hidden",
            )
        }
        | language.places(config.text_config, "language_model.model", "language_model.lm_head"),
        facts=facts(
            config.text_config,
            image_token=config.image_token_index,
            **vision.tile(config.vision_config),
            cls=1,
            images_in_text=False,
            text_only=False,
            queries=config.num_query_tokens,
            vision_tower="vision_model",
        ),
    )
