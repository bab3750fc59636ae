"""Models that are not read are refused on load, before any weight, with the reason."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny_models
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.architectures import ARCHITECTURES, architecture_of
from mmneuron_lens.architectures.language import DECODERS
from mmneuron_lens.architectures.refused import ENCODER_DECODER, EXPERTS, LINEAR, REASONS
from mmneuron_lens.architectures.vision import TOWERS


def test_what_is_read_is_not_refused():
    assert not set(REASONS) & {*ARCHITECTURES, *DECODERS, *TOWERS}


@pytest.mark.parametrize("kind", REASONS)
def test_each_is_named_with_its_reason_and_the_choices(kind):
    with pytest.raises(InvalidValue) as error:
        architecture_of(SimpleNamespace(model_type=kind))
    says = str(error.value)
    assert says.startswith(f"The architecture {kind!r} is not supported: {REASONS[kind]}. Choices: llava_next, ")
    assert "docs/adding-an-architecture.md" in says
    assert "\n" not in says


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mllama", "cross-attention"),
        ("qwen3_vl_moe", "experts"),
        ("llama4", "experts"),
        ("florence2", "encoder-decoder"),
    ],
)
def test_a_folder_without_weights_is_refused_with_the_reason(tmp_path, kind, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    for load in (Lens, Lens.weightless):
        with pytest.raises(InvalidValue, match=rf"'{kind}' is not supported: .*{reason}"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("part", "kind", "reason"),
    [
        ("text_config", "mixtral", "The language model 'mixtral' is not supported: its MLPs are experts"),
        ("text_config", "qwen3_5_text", "The language model 'qwen3_5_text' is not supported: some of its layers"),
        ("vision_config", "timm_wrapper", "The vision tower 'timm_wrapper' is not supported: its vision tower is"),
        ("text_config", "gpt2", "Unknown language model 'gpt2'."),
        ("vision_config", "swin", "Unknown vision tower 'swin'."),
    ],
)
def test_the_parts_of_a_model_are_refused_too(part, kind, reason):
    config = tiny_models.llava()[0].config
    held = {"model_type": "llava", "vision_config": config.vision_config, "text_config": config.text_config}
    changed = SimpleNamespace(**{**vars(config), **held, part: SimpleNamespace(model_type=kind, hidden_size=32)})
    with pytest.raises(InvalidValue) as error:
        architecture_of(changed)
    assert str(error.value).startswith(reason)


def test_reasons_are_true_of_the_installed_classes():
    """Of every model that transformers can load: experts, encoder-decoders and linear attention, by configuration."""
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    for kind in sorted({*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} & {*REASONS, *ARCHITECTURES}):
        if kind not in CONFIG_MAPPING:
            continue
        config = AutoConfig.for_model(kind)
        text = config if config.is_encoder_decoder else config.get_text_config()
        reason = REASONS.get(kind, "")
        assert config.is_encoder_decoder == (reason == ENCODER_DECODER), kind
        assert any(getattr(text, name, None) for name in experts) == (reason == EXPERTS), kind
        if reason not in (EXPERTS, LINEAR):
            assert "linear_attention" not in (getattr(text, "layer_types", None) or ()), kind
