"""Public calls that are given something else say so in a line, before anything is loaded, run or sent."""

from __future__ import annotations

import json

import nnsight
import numpy
import pytest
import tiny_models
import torch
import transformers
from conftest import mixed_batch, pictures, tiny_lens
from transformers import BertConfig, Blip2Config, LlamaConfig, T5Config

from interventions import count_active, keep, patch_activations
from interventions.errors import FileMissing, InvalidType, InvalidValue, MMNeuronError, OutOfRange, UnknownName
from mmneuron_lens import Lens


@pytest.fixture
def untouchable(monkeypatch):
    """A lens whose model must not run, and a batch."""
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    # nnsight takes hold of a module once, of one that tests share as it is; not of what is put in its place here.
    assert lens.model.nnsight is not None

    def forward(*_arguments, **_keywords):
        raise AssertionError("the model ran")

    monkeypatch.setattr(lens.module, "forward", forward)
    return lens, batch


IMAGE = pictures((32, 32))[0]
MADE = r"is made with lens\.encode\(images, texts\) or lens\.pack\(rows\), not "

CALLS = {
    "several graphs to check": (
        lambda lens, b: lens.check([keep, count_active], b),
        InvalidType,
        r"not a list of 2; join them",
    ),
    "none of several graphs": (
        lambda lens, b: lens.run([], b),
        InvalidValue,
        r"There is no graph to run; Graph\(\) is",
    ),
    "a number among graphs": (
        lambda lens, b: lens.run([keep, 3], b),
        InvalidType,
        r"graphs\[1\]: A graph or an interv",
    ),
    "rows of one graph": (
        lambda lens, b: lens.run(keep, b, max_rows=3),
        InvalidValue,
        "max_rows=3 bounds a forward of several graphs, and this is one",
    ),
    "too few rows": (
        lambda lens, b: lens.run([keep], b, max_rows=2),
        InvalidValue,
        "max_rows=2 is below the 3 rows of a batch",
    ),
    "half a row": (
        lambda lens, b: lens.run([keep], b, max_rows=2.5),
        InvalidType,
        r"max_rows is a whole number, not 2\.5",
    ),
    "a forward of no row": (
        lambda lens, b: lens.run([keep], b, max_rows=0),
        InvalidValue,
        "max_rows is 0; a forward has at least 1",
    ),
    "a wrong layer in one of several": (
        lambda lens, b: lens.run([keep, keep.at(layers=7)], b),
        OutOfRange,
        r"graphs\[1\]: keep: llm\.residual has layers 0 to 2, not 7",
    ),
    "a wrong position in one of several": (
        lambda lens, b: lens.run([keep, keep.at(positions=999)], b),
        OutOfRange,
        r"graphs\[1\]: keep at llm\.residual: there is no position 999",
    ),
    "every beam of several": (
        lambda lens, b: lens.generate([keep, keep.at(steps="all", all_beams=True)], b, max_new_tokens=2),
        InvalidValue,
        r"graphs\[1\]: keep at llm\.residual: all_beams sees as many steps as the longest answer",
    ),
    "sources of several that do not rewire": (
        lambda lens, b: lens.run([keep, keep], b, sources=b),
        InvalidValue,
        "sources are given and nothing",
    ),
    "a row that is not there": (
        lambda lens, b: lens.run(keep.at(rows=3), b),
        OutOfRange,
        r"keep at llm\.residual: there is no row 3; the batch has rows 0 to 2",
    ),
    "a row twice": (lambda lens, b: lens.run(keep.at(rows=[1, 1]), b), InvalidValue, "rows names 1 twice"),
    "a function": (lambda lens, b: lens.run(len, b), InvalidType, "A graph or an intervention is run, not builtin"),
    "no graph": (lambda lens, b: lens.check(None, b), InvalidType, "A graph or an intervention is run, not None"),
    "a graph's name": (lambda lens, b: lens.run("keep", b), InvalidType, "is run, not 'keep'"),
    "an image": (lambda lens, b: lens.run(keep, [IMAGE]), InvalidType, f"a batch {MADE}Image"),
    "a text": (lambda lens, b: lens.run(keep, "is it red?"), InvalidType, f"a batch {MADE}'is it red\\?'"),
    "inputs": (lambda lens, b: lens.run(keep, dict(b.inputs)), InvalidType, f"a batch {MADE}dict"),
    "no batch": (lambda lens, b: lens.run(keep, []), InvalidValue, "There is no batch to run"),
    "none of a stream": (lambda lens, b: lens.run(keep, iter([])), InvalidValue, "There is no batch to run"),
    "nothing": (lambda lens, b: lens.generate(keep, None, max_new_tokens=1), InvalidType, f"a batch {MADE}None"),
    "one text among batches": (lambda lens, b: lens.run(keep, [b, "x"]), InvalidType, f"a batch {MADE}'x'"),
    "batches to check": (lambda lens, b: lens.check(keep, [b]), InvalidType, f"a batch {MADE}list"),
    "a text to cache": (lambda lens, b: lens.run_with_cache("x"), InvalidType, f"a batch {MADE}'x'"),
    "no site to cache": (lambda lens, b: lens.run_with_cache(b, []), InvalidValue, "No site is named"),
    "a number to cache": (lambda lens, b: lens.run_with_cache(b, 3), InvalidType, "named by its text, not int 3"),
    "a text to trace": (lambda lens, b: lens.trace("x"), InvalidType, f"a batch {MADE}'x'"),
    "batches to scan": (lambda lens, b: lens.scan([b]), InvalidType, f"a batch {MADE}list"),
    "batches to prove": (lambda lens, b: lens.prove([b]), InvalidType, f"a batch {MADE}list"),
    "an envoy by number": (lambda lens, b: lens[3], UnknownName, r"Unknown site 3\."),
    "tokens as text": (
        lambda lens, b: lens.generate(keep, b, max_new_tokens="3"),
        InvalidType,
        "max_new_tokens is a whole number, not '3'",
    ),
    "half a token": (
        lambda lens, b: lens.generate(keep, b, max_new_tokens=2.5),
        InvalidType,
        r"max_new_tokens is a whole number, not 2\.5",
    ),
    "a flag of tokens": (
        lambda lens, b: lens.check(keep, b, max_new_tokens=True),
        InvalidType,
        "max_new_tokens is a whole number, not True",
    ),
    "no beam": (
        lambda lens, b: lens.generate(keep, b, max_new_tokens=1, num_beams=0),
        InvalidValue,
        "num_beams is 0; there is at least 1 beam",
    ),
    "a server's number": (lambda lens, b: lens.run(keep, b, remote=5), InvalidType, "a server's URL, not 5"),
    "no sources": (lambda lens, b: lens.run(patch_activations, b), InvalidType, r"sources=\[\.\.\.\]"),
    "sources of nothing": (lambda lens, b: lens.run(keep, b, sources=b), InvalidValue, "nothing in this graph rewires"),
    "too few sources": (
        lambda lens, b: lens.run(patch_activations, [b, b], sources=[b]),
        InvalidValue,
        "2 batches and 1 sources",
    ),
    "a text as source": (
        lambda lens, b: lens.run(patch_activations, b, sources=["x"]),
        InvalidType,
        f"a source {MADE}'x'",
    ),
    "sources of other rows": (
        lambda lens, b: lens.run(patch_activations, b, sources=lens.encode([IMAGE], ["why"])),
        InvalidValue,
        r"patch_activations at llm\.residual: the source batch has shape \[1, \d+, 32\] there and this batch \[3, 81",
    ),
    "sources of other columns": (
        lambda lens, b: lens.run(patch_activations.at(positions=-1), b, sources=lens.encode([IMAGE] * 3, ["a"] * 3)),
        InvalidValue,
        r"encode both with as many rows, and prompts and images of equal length",
    ),
    "sources of other tiles": (
        lambda lens, b: lens.run(
            patch_activations.at("vision.residual"),
            lens.encode(pictures((32, 32)), ["a"]),
            sources=lens.encode(pictures((64, 64)), ["a"]),
        ),
        InvalidValue,
        r"patch_activations at vision\.residual: the source batch has shape",
    ),
    "no text and no image": (lambda lens, b: lens.encode([], []), InvalidValue, "There is no text to encode"),
    "no texts": (lambda lens, b: lens.encode(None, None), InvalidType, "texts is a list of texts, not None"),
    "a number for a text": (lambda lens, b: lens.encode(None, ["a", 3]), InvalidType, r"texts\[1\] is text, not 3"),
    "bytes for texts": (lambda lens, b: lens.encode(None, b"a"), InvalidType, "texts is a list of texts, not bytes"),
    "no row": (lambda lens, b: lens.pack([]), InvalidValue, "There is no row to pack"),
    "a row of text": (
        lambda lens, b: lens.pack([("a.png", "what is it?")]),
        InvalidType,
        r"rows\[0\] is \(list of images, list of prompts\), not 'a\.png', 'what is it\?'",
    ),
    "a row of a prompt": (lambda lens, b: lens.pack([([IMAGE], "what")]), InvalidType, r"rows\[0\] is .* 'what'"),
    "a row alone": (lambda lens, b: lens.pack(([IMAGE], ["what"])), InvalidType, r"rows\[0\] is .*, not Image"),
    "a number for a prompt": (lambda lens, b: lens.pack([([IMAGE], [3])]), InvalidType, r"texts\[0\] is text, not 3"),
    "a field of the batch": (
        lambda lens, b: b.with_fields(weight=torch.zeros(3, 81)),
        InvalidValue,
        "Field 'weight' is the batch's own",
    ),
    "a list for a field": (lambda lens, b: b.with_fields(mark=[1]), InvalidType, "Field 'mark' is a tensor"),
    "no model": (
        lambda lens, b: Lens.wrap("folder", lens.processor),
        InvalidType,
        "takes a transformers model, not str",
    ),
    "a tokenizer for a processor": (
        lambda lens, b: Lens.wrap(lens.module, lens.processor.tokenizer),
        InvalidType,
        "takes the model's AutoProcessor, not ",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_line(untouchable, name):
    call, error, text = CALLS[name]
    with pytest.raises(error, match=text) as caught:
        call(*untouchable)
    assert isinstance(caught.value, MMNeuronError)
    assert "\n" not in str(caught.value)


def test_sources_of_a_stream_are_counted_as_they_come(lens):
    batch = mixed_batch(lens)
    with pytest.raises(InvalidValue, match="1 sources for more batches than that"):
        lens.run(patch_activations, iter([batch, batch]), sources=iter([batch]))
    with pytest.raises(InvalidValue, match="more sources than batches"):
        lens.run(patch_activations, iter([batch]), sources=iter([batch, batch]))
    assert lens.run(patch_activations, iter([batch]), sources=iter([batch])) == {}


def with_another_vocabulary():
    module, processor = tiny_models.llava_next()
    tokenizer = tiny_models.tokenizer()
    tokenizer.add_tokens(["more"])
    other = type(processor)(
        processor.image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Lens.wrap(module, other)


def test_a_batch_of_another_lens_is_refused():
    lens = tiny_lens("llava_next")
    for other, what in (
        (tiny_lens("instructblip"), "other images in text"),
        (tiny_lens("llava"), "other tiling, grid pinpoints, tile size"),
        (with_another_vocabulary(), "another vocabulary"),
    ):
        batch = mixed_batch(other)
        for call in (
            lambda batch: lens.check(keep, batch),
            lambda batch: lens.run(keep, batch),
            lambda batch: lens.run(keep, [batch], remote="http://127.0.0.1:1"),
            lambda batch: lens.generate(keep, batch, max_new_tokens=1),
            lambda batch: lens.run(patch_activations, mixed_batch(lens), sources=batch),
            lens.run_with_cache,
            lens.trace,
            lens.scan,
            lens.prove,
        ):
            with pytest.raises(InvalidValue, match=f"This batch was made for another model than Llava.*{what}"):
                call(batch)


def test_a_batch_of_the_same_model_loaded_again_is_not(lens, tmp_path):
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    light = Lens.weightless(tmp_path)
    one, other = lens.run(keep, mixed_batch(light)), lens.run(keep, mixed_batch(lens))
    assert torch.equal(one["keep"][0], other["keep"][0])


# Loading.


def text_model(folder):
    LlamaConfig().save_pretrained(folder)


def bert(folder):
    BertConfig().save_pretrained(folder)


def t5(folder):
    config = tiny_models.blip2()[0].config
    parts = {name: getattr(config, name).to_dict() for name in ("vision_config", "qformer_config")}
    Blip2Config(text_config=T5Config().to_dict(), **parts).save_pretrained(folder)


def changed(**config):
    def make(folder):
        tiny_models.checkpoint("llava_next", folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))

    return make


def without_processor(folder):
    tiny_models.checkpoint("llava_next", folder)
    for file in folder.iterdir():
        if "process" in file.name or "token" in file.name:
            file.unlink()


VISION = {"model_type": "vit", "hidden_size": 16, "image_size": 32, "patch_size": 8}
FOLDERS = {
    "a text model": (text_model, InvalidValue, "Unknown architecture 'llama'"),
    "a text encoder": (bert, InvalidValue, "Unknown architecture 'bert'"),
    "an encoder and decoder": (t5, InvalidValue, "BLIP-2 with t5: only decoder-only language models"),
    "another vision tower": (changed(vision_config=VISION), InvalidValue, "Unknown vision tower 'vit'"),
    "another language model": (
        changed(text_config={"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4}),
        InvalidValue,
        "Unknown language model 'gpt_neox'",
    ),
    "no processor": (without_processor, FileMissing, "its files cannot be read"),
    "an empty folder": (lambda folder: None, FileMissing, r"has no config\.json"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_checkpoint_is_refused_before_its_weights_are_read(tmp_path, monkeypatch, name):
    make, error, text = FOLDERS[name]
    make(tmp_path)

    def loaded(*_arguments, **_keywords):
        raise AssertionError("weights were read")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", loaded)
    for load in (Lens, Lens.weightless):
        with pytest.raises(error, match=text) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_table_that_does_not_fit_is_seen_before_weights_are_read(tmp_path, monkeypatch):
    from mmneuron_lens.architectures import loading

    folder = tiny_models.checkpoint("llava_next", tmp_path)

    def misfit(architecture, module):
        assert next(module.parameters()).is_meta
        raise InvalidValue(f"{architecture.name}: a site is not where the table says")

    monkeypatch.setattr(loading, "check_places", misfit)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    with pytest.raises(InvalidValue, match="LLaVA-NeXT: a site is not where the table says"):
        Lens(folder)


def test_weights_of_other_sizes_are_one_line(tmp_path):
    config = tiny_models.llava_next()[0].config.text_config.to_dict()
    changed(text_config={**config, "intermediate_size": 64})(tmp_path)
    with pytest.raises(InvalidValue, match=r"its weights have other sizes than its config\.json says"):
        Lens(tmp_path)


@pytest.mark.parametrize("given", ["", " ", None, 5, b"folder", ["folder"], 1.5])
def test_what_names_no_model(given):
    for load in (Lens, Lens.weightless):
        with pytest.raises(InvalidType, match="A model is a folder, a hub id like owner/model, or one of embedded/"):
            load(given)


def test_a_folder_or_file_that_is_no_model(tmp_path):
    with pytest.raises(FileMissing, match="/nope: no such folder"):
        Lens("/nope")
    file = tmp_path / "config.json"
    file.write_text("{}")
    with pytest.raises(FileMissing, match=r"config\.json is a file; give the folder"):
        Lens(file)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"dtype": "float8"}, "Unknown dtype 'float8'"),
        ({"dtype": torch.int64}, r"Unknown dtype 'torch\.int64'"),
        ({"dtype": 5}, "Unknown dtype '5'"),
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"device": torch.device("cuda", 63)}, "Unknown device 'cuda:63'"),
    ],
)
def test_settings_of_loading_are_refused_first(tmp_path, monkeypatch, settings, text):
    folder = tiny_models.checkpoint("llava_next", tmp_path)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    with pytest.raises(InvalidValue, match=text):
        Lens(folder, **settings)


# Without weights.


@pytest.mark.parametrize("name", ["llava_next", "instructblip", "llava", "blip2"])
def test_shapes_without_weights_are_those_with_them(tmp_path, name):
    lens, light = tiny_lens(name), Lens.weightless(tiny_models.checkpoint(name, tmp_path))
    shapes = []
    for one in (lens, light):
        batch = mixed_batch(one)
        with one.scan(batch):
            shape = nnsight.save([tuple(one[site][0].output.shape) for site in ("vision.mlp.act", "llm.mlp.act")])
        shapes.append(shape)
    assert shapes[0] == shapes[1]
    assert (
        shapes[0][1] == tuple(lens.run(keep.at("llm.mlp.act"), mixed_batch(lens))["keep"][0].shape[1:])
        or name == "blip2"
    )


def test_what_needs_weights_says_so(tmp_path):
    light = Lens.weightless(tiny_models.checkpoint("llava_next", tmp_path))
    batch = mixed_batch(light)
    for call in (
        lambda: light.run(keep, batch),
        lambda: light.generate(keep, batch, max_new_tokens=1),
        lambda: light.run_with_cache(batch),
        light.prove,
        lambda: light.prove(batch),
    ):
        with pytest.raises(InvalidValue, match=r"has no weights here; .*load it with Lens\(\.\.\.\)"):
            call()


def test_an_array_is_one_image(lens):
    array = numpy.asarray(IMAGE)
    one, other = lens.encode(array, "why"), lens.encode([IMAGE], ["why"])
    assert torch.equal(one.inputs["pixel_values"], other.inputs["pixel_values"])
