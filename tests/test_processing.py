"""A processor and its model are made for each other, or a lens is not made."""

from __future__ import annotations

import copy
import json

import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens

from interventions import count_active_by_kind, count_positions
from mmneuron_lens import Lens
from mmneuron_lens.architectures import loading
from mmneuron_lens.runtime.compile import results_over
from mmneuron_lens.runtime.remote import travelling
from mmneuron_lens.runtime.run import job_of
from mmneuron_lens.wire.job import run_job

GRAPH = count_active_by_kind.at("*.act") | count_positions.at("*.act")
MISSING = [
    ("blip2", {"num_query_tokens": None}),
    ("instructblip", {"num_query_tokens": None}),
    ("llava", {"patch_size": None}),
    ("llava", {"num_additional_image_tokens": 0}),
    ("llava", {"vision_feature_select_strategy": None}),
    ("llava", {"patch_size": None, "num_additional_image_tokens": 0, "vision_feature_select_strategy": None}),
    ("llava_next", {"patch_size": None}),
    ("llava_next", {"num_additional_image_tokens": 0}),
    ("llava_next", {"patch_size": None, "num_additional_image_tokens": 0, "vision_feature_select_strategy": None}),
]


def parts(name, **changes):
    """A model, and a processor of its own that says other things."""
    module, processor = getattr(tiny_models, name)()
    processor = copy.deepcopy(processor)
    for setting, value in changes.items():
        setattr(processor, setting, value)
    return module, processor


def logits(lens, picture):
    batch = lens.encode([picture], ["what is it?"])
    with torch.no_grad():
        return lens.module(**batch.inputs).logits


@pytest.mark.parametrize(("name", "changes"), MISSING)
def test_what_a_processor_leaves_out_is_filled_from_the_configuration(name, changes):
    module, processor = parts(name, **changes)
    lens, whole = Lens.wrap(module, processor), tiny_lens(name)
    one, other = pictures((40, 56), (64, 30))
    assert torch.equal(logits(lens, one), logits(whole, one))
    assert not torch.equal(logits(lens, one)[:, -1], logits(lens, other)[:, -1])
    # The one given stays as it is, and the fingerprint tells what is used.
    assert {setting: getattr(processor, setting) for setting in changes} == changes
    assert lens.model.missing.keys() == changes.keys()
    assert lens.model.fingerprint == whole.model.fingerprint
    rows = [([one], ["is it red?", "why?"])]
    packed, exact = lens.run(GRAPH, lens.pack(rows)), lens.run(GRAPH, lens.encode([one] * 2, rows[0][1]))
    for key, counts in exact.items():
        assert int((packed[key] != counts).sum()) <= counts.numel() // 1000, key


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "llava", "blip2"])
def test_a_whole_processor_is_used_itself(name):
    module, processor = getattr(tiny_models, name)()
    assert Lens.wrap(module, processor).processor is processor


@pytest.mark.parametrize(("name", "changes"), MISSING)
def test_a_server_fills_the_same(name, changes):
    lens = Lens.wrap(*parts(name, **changes))
    batch = lens.encode(pictures((40, 56)), ["what is it?"])
    plans, _ = travelling(GRAPH, lens.model)
    job = {**job_of(lens.model, {}, False), "overs": results_over(GRAPH, lens.architecture)}
    # What is loaded there is the checkpoint's own.
    there = loading.wrap(*parts(name, **changes), "tiny", None)
    found = run_job(there, plans, [{**batch.travelling(), "source": None}], job)["values"]
    here = lens.run(GRAPH, batch)
    assert set(found) == set(here)
    assert all(torch.equal(found[key], here[key]) for key in here)


@pytest.mark.parametrize(("name", "lacking"), [("blip2", "num_query_tokens"), ("llava_next", "patch_size")])
def test_a_folder_is_completed_with_weights_and_without(name, lacking, tmp_path):
    folder = tiny_models.checkpoint(name, tmp_path)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    del settings[lacking]
    file.write_text(json.dumps(settings))
    for lens in (Lens(folder), Lens.weightless(folder)):
        assert getattr(lens.processor, lacking) == getattr(tiny_lens(name).processor, lacking)
        batch = lens.encode(pictures((40, 56)), ["what is it?"])
        assert bool(batch.fields["llm"]["kind"][..., 0].any())


def test_a_padding_token_is_the_configurations_or_asked_for():
    module, processor = parts("llava_next")
    processor.tokenizer.pad_token = None
    lens = Lens.wrap(module, processor)
    assert (lens.processor.tokenizer.pad_token, processor.tokenizer.pad_token) == ("<pad>", None)
    assert lens.encode(pictures((40, 56)) * 2, ["a", "longer"]).rows == 2
    module = copy.deepcopy(module)
    module.config.pad_token_id = module.config.text_config.pad_token_id = None
    with pytest.raises(ValueError, match=r"neither tokenizer nor configuration names a padding token; set one, proc"):
        Lens.wrap(module, processor)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llava", {"patch_size": 4}, r"patch_size is 4 by the processor and 8 by the model's configuration; give"),
        ("llava_next", {"patch_size": 16}, r"patch_size is 16 by the processor and 8 by"),
        ("llava", {"vision_feature_select_strategy": "full"}, r"select_strategy is full by the processor and default"),
        ("llava_next", {"num_additional_image_tokens": 2}, r"num_additional_image_tokens is 2 by the processor and 1"),
        ("blip2", {"num_query_tokens": 3}, r"num_query_tokens is 3 by the processor and 4 by"),
        ("instructblip", {"num_query_tokens": 32}, r"num_query_tokens is 32 by the processor and 4 by"),
        ("llava", {"image_token": "a"}, r"image token 'a' is 70 by the processor and 4 by"),
        ("llava", {"tokenizer": None}, r"LLaVA needs a processor with tokenizer, and a LlavaProcessor has none"),
        ("instructblip", {"qformer_tokenizer": None}, r"needs a processor with qformer_tokenizer, and a"),
    ],
)
def test_contradictions_are_one_line(name, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        Lens.wrap(*parts(name, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llava", {"crop_size": {"height": 24, "width": 24}}, r"size of an image in pixels is \[24, 24\] by the proc"),
        ("blip2", {"size": {"height": 40, "width": 40}}, r"size of an image in pixels is \[40, 40\] by the processor"),
        (
            "llava_next",
            {"image_grid_pinpoints": [[32, 64]]},
            r"image_grid_pinpoints is \[\[32, 64\]\] by the processor",
        ),
    ],
)
def test_pixels_are_those_of_the_tower(name, changes, said):
    module, processor = parts(name)
    for setting, value in changes.items():
        kind = type(getattr(processor.image_processor, setting))
        setattr(processor.image_processor, setting, kind(**value) if isinstance(value, dict) else value)
    with pytest.raises(ValueError, match=said):
        Lens.wrap(module, processor)


@pytest.mark.parametrize(("name", "of"), [("llava_next", "llava"), ("llava", "llava_next"), ("instructblip", "blip2")])
def test_the_processor_of_another_architecture_is_refused(name, of):
    with pytest.raises(ValueError, match=r"by the processor and|needs a processor with qformer_tokenizer"):
        Lens.wrap(parts(name)[0], parts(of)[1])


def test_tokens_of_every_prompt_have_an_embedding():
    module, processor = parts("llava_next")
    processor.tokenizer.add_tokens(["<mine>"], special_tokens=True)
    processor.tokenizer.pad_token = "<mine>"
    with pytest.raises(ValueError, match=r"the language model has 101 tokens, 0 to 100, and of its tokenizer '<mine>'"):
        Lens.wrap(module, processor)
    module = copy.deepcopy(tiny_models.blip2()[0])
    processor = copy.deepcopy(tiny_models.blip2()[1])
    module.config.image_token_index = 101
    with pytest.raises(ValueError, match=r"image token '<image>' is 4 by the processor and 101 by the model's"):
        Lens.wrap(module, processor)
    module, processor = parts("instructblip")
    processor.qformer_tokenizer.add_tokens(["<mine>"], special_tokens=True)
    processor.qformer_tokenizer.pad_token = "<mine>"
    with pytest.raises(ValueError, match=r"the Q-Former has 101 tokens, 0 to 100, and of its tokenizer '<mine>' is 10"):
        Lens.wrap(module, processor)
