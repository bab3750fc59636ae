"""Shortcuts hold where they are taken: questions in one row, rows in one batch, inputs that are not the processor's."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens
from transformers import LlamaConfig, LlavaNextForConditionalGeneration, MistralConfig, Qwen2Config

from interventions import count_active_by_kind, count_positions
from mmneuron_lens import Lens
from mmneuron_lens.architectures.sharing import sharable
from mmneuron_lens.runtime import encoding
from mmneuron_lens.runtime.agreement import prove_shortcuts
from mmneuron_lens.runtime.proving import example
from mmneuron_lens.wire import encode as encoding_there
from mmneuron_lens.wire import pack as packing
from mmneuron_lens.wire.positions import positions

GRAPH = count_active_by_kind.at("*.act") | count_positions.at("*.act")
QUESTIONS = ["is it red?", "is it blue?", "how many cars are there?", "x"]
ROWS = [(pictures((40, 56), seed=1), QUESTIONS)]
LONGEST = 95
"""Positions of the longest of these prompts."""

KINDS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}


def text_config(kind, **settings):
    return KINDS[kind](**{**tiny_models.text_sizes(), **settings})


def lens_on(kind, **settings):
    return Lens.wrap(*tiny_models.on("llava_next", text_config(kind, **settings)))


def one_by_one(lens, graph=GRAPH, rows=ROWS):
    return lens.run(graph, [lens.encode([some], [prompt]) for some, prompts in rows for prompt in prompts])


def assert_counts(found, expected):
    """Equal, but for activations that round to either side of zero."""
    for key, counts in expected.items():
        different = int((found[key] != counts).sum())
        assert different <= counts.numel() // 1000, f"{key}: {different} of {counts.numel()} counts differ"


def mistral(window):
    return lens_on("mistral", sliding_window=window)


def half_windowed(window):
    """The first layer sees all, the others a window."""
    return lens_on("qwen2", use_sliding_window=True, sliding_window=window, max_window_layers=1)


@pytest.mark.parametrize("made", [mistral, half_windowed])
def test_no_prompt_longer_than_a_window_is_packed(made):
    with pytest.raises(ValueError, match=rf"^Prompts cannot share a row: layers see 16 positions.*has {LONGEST}; enc"):
        made(16).pack(ROWS)
    with pytest.raises(ValueError, match=rf"layers see {LONGEST - 1} positions"):
        made(LONGEST - 1).pack(ROWS, cut=True)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("made", [mistral, half_windowed])
def test_prompts_within_the_window_are_packed_in_rows_of_any_width(made, cut, monkeypatch):
    monkeypatch.setattr(packing, "LONG", 8)
    monkeypatch.setattr(packing, "PART", 30)
    lens = made(LONGEST)
    batch = lens.pack(ROWS, cut=cut)
    assert batch.inputs["input_ids"].shape[1] > LONGEST
    assert_counts(lens.run(GRAPH, batch), one_by_one(lens))


@pytest.mark.parametrize("made", [mistral, half_windowed])
def test_a_padded_batch_under_a_window_counts_what_its_rows_count(made):
    lens = made(16)
    together = lens.run(GRAPH, lens.encode([ROWS[0][0]] * len(QUESTIONS), QUESTIONS))
    assert_counts(together, one_by_one(lens))


def test_a_lone_prompt_is_packed_whatever_its_length():
    lens = mistral(16)
    rows = [(ROWS[0][0], ["is it red?"])]
    assert_counts(lens.run(GRAPH, lens.pack(rows)), one_by_one(lens, rows=rows))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("llama", {}, {"apart": "", "window": None, "rescaled": None}),
        ("mistral", {"sliding_window": None}, {"apart": "", "window": None, "rescaled": None}),
        ("mistral", {"sliding_window": 7}, {"apart": "", "window": 7, "rescaled": None}),
        ("qwen2", {"sliding_window": 7}, {"apart": "", "window": None, "rescaled": None}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7}, {"apart": "", "window": None, "rescaled": None}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
            {"apart": "", "window": 7, "rescaled": None},
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            {"apart": "", "window": None, "rescaled": None},
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            {"apart": "", "window": None, "rescaled": 512},
        ),
    ],
)
def test_the_condition_is_read_from_the_configuration(kind, settings, expected):
    assert sharable(text_config(kind, **settings)) == expected


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model_type": "bloom"}, "attention of bloom is not known"),
        ({"is_causal": False}, "attention is not causal"),
        ({"use_bidirectional_attention": True}, "attention is not causal"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layers of chunked_attention"),
        ({"layer_types": ["linear_attention"] * 3}, "layers of linear_attention"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}, "three numbers"),
        ({"rope_parameters": {"rope_type": "of tomorrow"}}, "rotary embedding is of tomorrow"),
        ({"rope_parameters": {"full_attention": {"rope_type": "of tomorrow"}}}, "rotary embedding is of tomorrow"),
    ],
)
def test_what_is_not_known_to_hold_is_not_packed(settings, why, monkeypatch):
    # As a later version, or another family, would say it.
    known = {"model_type": "llama", "max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}
    config = SimpleNamespace(**{**known, **settings})
    assert why in sharable(config)["apart"]
    lens = tiny_lens("llava_next")
    facts = lens.architecture.facts
    monkeypatch.setitem(facts, "sharable", sharable(config))
    with pytest.raises(ValueError, match=rf"^Prompts cannot share a row: .*{why}"):
        lens.pack(ROWS)
    monkeypatch.delitem(facts, "sharable")
    with pytest.raises(ValueError, match=r"facts do not say whether its attention is plainly causal"):
        lens.pack(ROWS)


def test_attention_that_takes_no_mask_is_not_packed(monkeypatch):
    lens = tiny_lens("llava_next")
    monkeypatch.setattr(type(lens.model), "attention", "flash_attention_2")
    with pytest.raises(ValueError, match=r"flash_attention_2 attention takes no mask of a packed row; load the model"):
        lens.pack(ROWS)


def test_a_server_refuses_what_is_refused_here():
    lens = mistral(16)
    facts = lens.architecture.facts
    with pytest.raises(ValueError, match=r"layers see 16 positions"):
        packing.pack(lens.processor, [ROWS[0][0]], [["<image>\na", "<image>\nb"]], facts, None, False)
    without = {name: value for name, value in facts.items() if name != "sharable"}
    with pytest.raises(ValueError, match=r"do not say"):
        packing.pack(lens.processor, [ROWS[0][0]], [["<image>\na", "<image>\nb"]], without, None, False)


@pytest.mark.parametrize("made", [mistral, half_windowed])
def test_counting_falls_back_to_one_by_one_and_says_so(made, tmp_path):
    from drawn_corpus import write_corpus

    from mmneuron_lens.corpora.folder import read_folder
    from mmneuron_lens.experiments.count import count_domain, plan_count

    samples, _ = read_folder(write_corpus(tmp_path, ("common",)))
    lens = made(16)
    quick, exact = count_domain(lens, samples), count_domain(lens, samples, exact=True)
    said = "96 questions where no prompt of the domain is longer than 16 positions, else none: attention beyond them is"
    assert quick.provenance["packing"].startswith(said)
    assert exact.provenance["packing"] == "none"
    for site in exact.active:
        assert torch.equal(quick.active[site], exact.active[site])
    assert not plan_count(lens, samples).packs
    assert plan_count(made(400), samples).packs
    assert plan_count(tiny_lens("llava_next"), samples).facts["packing"] == "96 questions"


def test_a_plan_bounds_the_longest_prompt(tmp_path):
    from drawn_corpus import write_corpus

    from mmneuron_lens.batching.encoding import encode
    from mmneuron_lens.batching.shared_rows import longest_prompt
    from mmneuron_lens.corpora.folder import read_folder

    for name in ("llava_next", "llava"):
        samples, _ = read_folder(write_corpus(tmp_path / name, ("common",)))
        lens = tiny_lens(name)
        batch, _ = encode(lens, samples, "identification")
        real = int(batch.inputs["attention_mask"].sum(1).max())
        assert real <= longest_prompt(lens, samples, "identification", "fit", "auto")


def test_rows_whose_position_embedding_depends_on_the_longest_are_not_batched():
    # Frequencies of the long kind once a row has more than 80 positions.
    lens = lens_on("llama", rope_parameters={**LONGROPE, "original_max_position_embeddings": 80, "factor": 6.4})
    assert lens.architecture.facts["sharable"]["rescaled"] == 80
    image = ROWS[0][0]
    short, long = lens.encode([image], ["x"]), lens.encode([image], [QUESTIONS[2]])
    assert short.inputs["input_ids"].shape[1] < 80 < long.inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match=r"depends on the longest, of 95 positions, beyond the model's original conte"):
        lens.encode([image, image], ["x", QUESTIONS[2]])
    with pytest.raises(ValueError, match=r"the original context has 80 positions, and the longest prompt has 95"):
        lens.pack([(image, ["x", QUESTIONS[2]])])
    assert_counts(lens.run(GRAPH, lens.pack([(image, ["x", "y"])])), one_by_one(lens, rows=[(image, ["x", "y"])]))


# What `prove` is for: each of these was silent.


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "llava", "blip2"])
def test_every_architecture_passes(name):
    lens = tiny_lens(name)
    prove_shortcuts(lens.model, example(lens.model))


@pytest.mark.parametrize("made", [mistral, half_windowed])
def test_prove_sees_a_window_that_packing_ignores(made):
    lens = made(16)
    prove_shortcuts(lens.model, example(lens.model))
    lens.architecture.facts["sharable"]["window"] = None
    with pytest.raises(AssertionError, match=r"sum_activations at llm.mlp.act of packed questions is not that of each"):
        lens.prove()


def test_prove_sees_wrong_positions(monkeypatch):
    lens = tiny_lens("llava_next")
    monkeypatch.setattr(encoding_there, "positions", lambda inputs, facts: 2 * positions(inputs, facts))
    with pytest.raises(AssertionError, match=r"logits of lens.encode are not those of the processor's own inputs, for"):
        prove_shortcuts(lens.model, example(lens.model))


def test_prove_sees_padding_that_is_counted_as_positions(monkeypatch):
    lens = tiny_lens("blip2")
    text = copy.deepcopy(lens.module)
    monkeypatch.setattr(encoding_there, "positions", lambda inputs, facts: positions(inputs, facts) ** 2)
    with pytest.raises(AssertionError, match=r"logits of lens.encode are not"):
        prove_shortcuts(Lens.wrap(text, lens.processor).model, example(lens.model))


class Segmented(LlavaNextForConditionalGeneration):
    """Reads segment ids, as PaliGemma and Gemma 3 do."""

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        image_sizes=None,
        attention_mask=None,
        position_ids=None,
        token_type_ids=None,
        **rest,
    ):
        given = {"pixel_values": pixel_values, "image_sizes": image_sizes, "attention_mask": attention_mask}
        output = super().forward(input_ids, **given, position_ids=position_ids, **rest)
        if token_type_ids is not None:
            output.logits = output.logits * 2
        return output


def test_prove_sees_segment_ids_that_encode_drops():
    module, processor = tiny_models.llava_next()
    segmented = Segmented(module.config)
    segmented.load_state_dict(module.state_dict())
    processor = copy.deepcopy(processor)
    lens = Lens.wrap(segmented, processor)
    prove_shortcuts(lens.model, example(lens.model))
    processor.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    lens = Lens.wrap(segmented, processor)
    with pytest.raises(AssertionError, match=r"logits of lens.encode are not those of the processor's own inputs"):
        prove_shortcuts(lens.model, example(lens.model))


def test_prove_sees_a_row_that_its_neighbours_change(monkeypatch):
    lens = tiny_lens("instructblip")
    # The Q-Former's words stay padded on the left, where its positions are absolute.
    monkeypatch.setattr(encoding_there, "to_the_left", lambda *_: None)
    with pytest.raises(AssertionError, match=r"logits of a row in a batch are not its own"):
        prove_shortcuts(lens.model, example(lens.model))


def test_prove_sees_a_vision_tower_shared_wrongly(monkeypatch):
    lens = tiny_lens("blip2")
    real = encoding.share

    def shifted(*given):
        inputs, fields, sharing = real(*given)
        inputs["pixel_values"] = inputs["pixel_values"].flip(-1)
        return inputs, fields, sharing

    monkeypatch.setattr(encoding, "share", shifted)
    with pytest.raises(AssertionError, match=r"sum_activations at vision.mlp.act of packed questions"):
        prove_shortcuts(lens.model, example(lens.model))
