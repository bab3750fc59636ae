"""`lens.prove()` fails for every planted wrong, and says in its certificate what it saw of a right model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
from conftest import pictures, tiny_lens

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.certificate import Certificate
from mmneuron_lens.artifacts.format import ArtifactError
from mmneuron_lens.runtime import encoding
from mmneuron_lens.runtime.proving import prove
from mmneuron_lens.wire import encode as encoding_there
from mmneuron_lens.wire import layout, share

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def lens_of(name: str) -> Lens:
    """One of the tiny models, with facts of its own."""
    return Lens.wrap(*getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)())


def red(lens: Lens, match: str) -> None:
    with pytest.raises(AssertionError, match=match):
        lens.prove()


# What encoding forgets.

OWN = r"logits of lens.encode are not those of the processor's own inputs"


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_positions_on_one_axis(name, monkeypatch):
    real = encoding_there.positions
    counted = lambda inputs, facts: real(inputs, {**facts, "positions": "row"})  # noqa: E731
    monkeypatch.setattr(encoding_there, "positions", counted)
    red(lens_of(name), OWN)


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v"])
def test_rows_and_columns_changed_about(name, monkeypatch):
    real = encoding_there.positions
    monkeypatch.setattr(encoding_there, "positions", lambda inputs, facts: real(inputs, facts)[[0, 2, 1]])
    red(lens_of(name), OWN)


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2"])
def test_dropped_token_type_ids(name, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setitem(lens.architecture.facts, "token_ids", {})
    # Without them, PaliGemma takes all of a prompt for its prefix, padding too.
    red(lens, r"logits of a row in a batch are not its own" if name == "paligemma" else OWN)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "internvl"])
def test_images_of_a_batch_changed_about(name, monkeypatch):
    real = encoding_there.pictures_of
    monkeypatch.setattr(encoding_there, "pictures_of", lambda images, facts: real(images[::-1], facts))
    red(lens_of(name), r"logits of a row in a batch are not its own")


def test_images_of_packed_rows_changed_about(monkeypatch):
    real = share.stacked
    monkeypatch.setattr(encoding, "pack", _swapped(encoding.pack))
    monkeypatch.setattr(share, "stacked", lambda pixels: real(pixels[::-1]))
    for name in ("llava", "internvl", "paligemma"):
        red(lens_of(name), r"of packed questions is not that of each alone")


def _swapped(real: Callable[..., Any]) -> Callable[..., Any]:
    def pack(processor, images, *rest):
        return real(processor, images[::-1], *rest)

    return pack


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "mistral3"])
def test_padding_on_the_wrong_side(name, monkeypatch):
    lens = lens_of(name)
    real = encoding_there.encode

    def padded(processor, images, texts, facts):
        inputs = dict(real(processor, images, texts, facts))
        for key in ("input_ids", "attention_mask", *facts["token_ids"]):
            if key in inputs:
                kept = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
                inputs[key] = inputs[key].gather(1, kept)
        inputs["position_ids"] = encoding_there.positions(inputs, facts)
        return inputs

    monkeypatch.setattr(encoding, "encode_inputs", padded)
    red(lens, r"padding stands behind a prompt|logits of a row in a batch")


WINDOWED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "Mistral": lambda: tiny_models.on("llava_next", newer_models.text_config("MistralConfig", 101, sliding_window=16)),
    "Gemma 2": lambda: tiny_models.on(
        "llava", newer_models.text_config("Gemma2Config", 101, sliding_window=16, query_pre_attn_scalar=8)
    ),
    "Gemma 3": lambda: _gemma3(16),
}


def _gemma3(window: int) -> tuple[Any, Any]:
    module, processor = newer_models.gemma3()
    config = copy.deepcopy(module.config)
    config.text_config.sliding_window = window
    torch.manual_seed(0)
    return tiny_models.loud(type(module)(config)), processor


@pytest.mark.parametrize("decoder", WINDOWED)
def test_a_mask_without_its_window(decoder):
    lens = Lens.wrap(*WINDOWED[decoder]())
    sharable = lens.architecture.facts["sharable"]
    assert sharable["window"] == 16
    sharable["window"] = None
    red(lens, r"of packed questions is not that of each alone")


# What a table has wrong.

SWAPPED: dict[str, tuple[str, dict[str, str], str]] = {
    "before the activation": (
        "gemma3",
        {"vision.mlp.act": "model.vision_tower.encoder.layers.{l}.mlp.fc1"},
        r"vision.mlp.act is at '.*layers.0.mlp.fc1', which is no activation module",
    ),
    "the other branch": (
        "qwen2_vl",
        {"llm.mlp.act": "model.language_model.layers.{l}.mlp.up_proj"},
        r"llm.mlp.act is at '.*layers.0.mlp.up_proj', which is no activation module",
    ),
    "before the projector's": (
        "llava",
        {"projector.act": "model.multi_modal_projector.linear_1"},
        r"projector.act is at '.*linear_1', which is no activation module",
    ),
    "one layer for all": (
        "internvl",
        {"vision.mlp.act": "model.vision_tower.encoder.layer.0.mlp.activation_fn"},
        r"vision.mlp.act is at '.*layer.0.mlp.activation_fn', and so is vision.mlp.act",
    ),
    "the tower's": (
        "llava",
        {"llm.mlp.act": "model.vision_tower.encoder.layers.{l}.mlp.activation_fn"},
        r"llm.mlp.act is at '.*', which is outside the language model",
    ),
    "the language model's": (
        "blip2",
        {"vision.residual": "language_model.model.layers.{l}"},
        r"vision.residual is at '.*', which is in the language model",
    ),
    "the merger's first": (
        "glm4v",
        {"projector.act": "model.visual.merger.act1"},
        r"projector.act layer None: shape",
    ),
    "queries and keys of the tower": (
        "gemma3",
        {"vision.attention.q": "k_proj", "vision.attention.k": "q_proj"},
        r"vision.attention.q: changed at position \d+, it moved heads' outputs at .*; a query moves its own alone",
    ),
    "keys and values of the tower": (
        "idefics3",
        {"vision.attention.k": "v_proj", "vision.attention.v": "k_proj"},
        r"vision.attention.v: twice these are not twice the heads' outputs",
    ),
    "keys and values": (
        "qwen3_vl",
        {"llm.attention.k": "v_proj", "llm.attention.v": "k_proj"},
        r"llm.attention.v: twice these are not twice the heads' outputs",
    ),
    "what attention and the MLP add": (
        "mistral3",
        {
            "llm.attention.out": "model.language_model.layers.{l}.mlp",
            "llm.mlp.out": "model.language_model.layers.{l}.self_attn.o_proj",
        },
        r"llm.mlp.act: a change of it moved llm.attention.out, which comes before it",
    ),
    "what the projector's second layer is given": (
        "llava",
        {"projector.output": "model.multi_modal_projector.linear_1"},
        r"projector.output: a change of it moved projector.act, which comes before it",
    ),
    "the last residual": (
        "qwen2_5_vl",
        {"llm.norm": "model.language_model.layers.2"},
        r"llm.norm is not what llm.unembed is given",
    ),
    "a norm for what attention adds": (
        "llava_next",
        {"llm.attention.out": "model.language_model.layers.{l}.input_layernorm"},
        r"llm.attention.out and llm.mlp.out are not what llm.residual gains in the first layer",
    ),
    "the residual of one branch": (
        "gemma3",
        {"llm.mlp.out": "model.language_model.layers.{l}.mlp"},
        r"llm.attention.out and llm.mlp.out are not what llm.residual gains in the first layer",
    ),
}


def with_paths(lens: Lens, paths: dict[str, str]) -> Any:
    """The model with sites at other paths; a name without dots is beside the module that was there."""
    places = dict(lens.architecture.places)
    for site, path in paths.items():
        own = path if "." in path else f"{places[site].path.rpartition('.')[0]}.{path}"
        places[site] = replace(places[site], path=own)
    return replace(lens.model, architecture=replace(lens.architecture, places=places))


@pytest.mark.parametrize("name", SWAPPED)
def test_a_site_at_another_module_of_the_same_width(name):
    model, paths, said = SWAPPED[name]
    with pytest.raises(AssertionError, match=said):
        prove(with_paths(lens_of(model), paths))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "instructblip", "blip2"])
def test_columns_of_a_fused_projection_changed_about(name):
    lens = lens_of(name)
    places = dict(lens.architecture.places)
    for one, other in (("q", "k"), ("k", "q")):
        site = f"vision.attention.{one}"
        places[site] = replace(places[site], view=lens.architecture.places[f"vision.attention.{other}"].view)
    with pytest.raises(AssertionError, match=r"vision.attention.q: changed at position"):
        prove(replace(lens.model, architecture=replace(lens.architecture, places=places)))


# Patches in another order.

PATCHES = r"vision.attention.q: position \d+ of tile 0 does not show its own patch of the image"


def test_a_windowed_tower_taken_for_a_plain_one(monkeypatch):
    plain = lambda grids, windows: torch.arange(int(grids.prod(1).sum()))  # noqa: E731
    monkeypatch.setattr(layout, "windowed_order", plain)
    red(lens_of("qwen2_5_vl"), PATCHES)


def test_windows_of_another_size(monkeypatch):
    lens = lens_of("qwen2_5_vl")
    monkeypatch.setitem(lens.architecture.facts, "windows", {"merged": 2, "window": 1})
    red(lens, PATCHES)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_a_plain_tower_taken_for_a_windowed_one(name, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setitem(lens.architecture.facts, "windows", {"merged": 2, "window": 1})
    places = {
        site: replace(place, view=(("ordered", 1), *place.view)) if site.startswith("vision.") else place
        for site, place in lens.architecture.places.items()
    }
    real = layout.windowed_order
    monkeypatch.setattr(layout, "windowed_order", lambda *given: real(*given).flip(0))
    with pytest.raises(AssertionError, match=PATCHES):
        prove(replace(lens.model, architecture=replace(lens.architecture, places=places)))


@pytest.mark.parametrize("site", ["vision.attention.z", "vision.mlp.act", "vision.residual", "projector.act"])
def test_one_site_of_a_windowed_tower_taken_for_a_plain_one(site):
    lens = lens_of("qwen2_5_vl")
    places = dict(lens.architecture.places)
    places[site] = replace(places[site], view=tuple(step for step in places[site].view if step[0] != "ordered"))
    with pytest.raises(AssertionError, match=r"changed at p\w+ \d+, it moved"):
        prove(replace(lens.model, architecture=replace(lens.architecture, places=places)))


# What a certificate says.


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return lens_of("glm4v").prove()


def test_a_certificate_says_what_was_seen_and_what_was_not(certificate):
    lens = lens_of("glm4v")
    assert certificate.unnamed == ("model.visual.merger.act1",)
    assert {proof.site for proof in certificate} | set(certificate.unread) == set(lens.sites)
    assert certificate.activations["model.visual.blocks.{l}.mlp.act_fn"] == "vision.mlp.act"
    assert certificate.provenance["fingerprint"] == lens.model.fingerprint
    assert {"torch", "transformers"} <= certificate.provenance["versions"].keys()
    assert [one.why_not for one in certificate.comparisons] == [""] * 8
    text = str(certificate)
    assert "activation module without a site: model.visual.merger.act1" in text
    assert "logits of a batch and of its rows alone: " in text
    assert all(proof.site in text and proof.site in certificate._repr_html_() for proof in certificate)
    assert repr(certificate).count("\n") == 0
    assert len(repr(certificate)) < 200


def test_a_certificate_is_read_as_it_was_written(certificate, tmp_path):
    for name in ("one.json", "two.json"):
        certificate.save(tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    found = Certificate.load(tmp_path / "one.json")
    assert found == certificate
    assert found.digest == certificate.digest
    assert replace(found, unread={}).digest != certificate.digest
    damaged = (tmp_path / "one.json").read_text().replace("GLM-4V", "GLM-4W")
    (tmp_path / "one.json").write_text(damaged)
    with pytest.raises(ArtifactError, match="is damaged"):
        Certificate.load(tmp_path / "one.json")


def test_a_certificate_says_why_questions_do_not_share_a_row():
    lens = Lens.wrap(*WINDOWED["Mistral"]())
    (one,) = [one for one in lens.prove().comparisons if one.apart is None]
    assert one.what == "activations of packed questions and of each alone"
    assert one.why_not.startswith("layers see 16 positions")


def test_text_alone_is_proved_and_what_that_leaves_out_is_said():
    lens = tiny_lens("llava_next")
    made = lens.prove(lens.encode(None, ["text alone", "or not"]))
    assert made.unread["vision.mlp.act"] == "the batch has no image"
    assert [one.why_not for one in made.comparisons if one.apart is None] == ["the batch has no image"] * 2


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "llava_onevision", "internvl", "mistral3"])
def test_images_of_one_batch_may_have_as_many_tiles_as_they_like(name):
    """Tiles that pad a batch are no patches."""
    lens = Lens.wrap(*getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)())
    batch = lens.encode(pictures((32, 32), (64, 64), (30, 60)), ["what is this?", "why", "is it red?"])
    assert {proof.site for proof in lens.prove(batch)} >= {"vision.mlp.act", "llm.mlp.act"}
