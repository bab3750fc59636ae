"""Newer architectures, tiny and random: everything is what plain hooks see on the processor's own inputs."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import newer_models
import pytest
import torch
from conftest import pictures
from hooks import hooked, outputs

from interventions import (
    count_active,
    count_active_by_kind,
    count_positions,
    keep,
    logit_lens,
    per_layer,
    zero_neurons,
)
from mmneuron_lens import Lens
from mmneuron_lens.runtime.encoding import packed as packing_of
from mmneuron_lens.runtime.encoding import placeholder_of
from mmneuron_lens.wire import pack as packing

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = tuple(newer_models.ARCHITECTURES)
SIZES = ((40, 56), (64, 30), (33, 31))
QUESTIONS = ("Is it red?", "how many cars are there?", "why")
COUNTS = count_active_by_kind.at("*.act") | count_positions.at("*.act")
BEAMS: dict[str, Any] = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@cache
def lens_of(name: str) -> Lens:
    return Lens.wrap(*getattr(newer_models, name)())


@pytest.fixture(params=NAMES)
def newer(request):
    return request.param, lens_of(request.param)


def neuron_paths(name: str) -> dict[str, list[str]]:
    """Module paths of the neurons, written out by hand."""
    vision, projector, deep, llm = newer_models.ARCHITECTURES[name]
    paths = {
        "vision.mlp.act": [vision.format(l=layer) for layer in range(newer_models.VISION_LAYERS)],
        "projector.deep.act": [deep.format(l=layer) for layer in range(2)] if deep else [],
        "projector.act": [projector] if projector else [],
        "llm.mlp.act": [llm.format(l=layer) for layer in range(newer_models.LAYERS)],
    }
    return {site: some for site, some in paths.items() if some}


def own_inputs(lens: Lens, images: list[Any], text: str) -> dict[str, torch.Tensor]:
    """What the processor alone makes of one prompt and its images."""
    made = lens.processor(text=[text], images=[images], return_tensors="pt")
    made.pop("labels", None)
    return dict(made)


def hooked_counts(name: str, lens: Lens, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, list[int]]]:
    """By site: int64 [layer, kind, neuron] of one prompt without padding, and positions by kind."""
    image = inputs["input_ids"][0] == lens.architecture.facts["image_token"]
    found = {}
    for site, paths in neuron_paths(name).items():
        seen = outputs(lens.module, paths, lambda: lens.module(**inputs))
        acts = torch.stack([torch.cat(seen[path]) for path in paths])
        acts = acts.flatten(1, -2) if site.startswith("projector") or acts.shape[1] != 1 else acts[:, 0]
        acts = acts.flatten(1, -2)
        every = torch.ones(acts.shape[1], dtype=torch.bool)
        if site == "llm.mlp.act":
            kinds = [image, ~image, ~every]
        elif site == "vision.mlp.act":
            cls = ~every
            if lens.architecture.facts["cls"]:
                # One before the 16 patches of each tile.
                cls[::17] = True
            kinds = [cls, ~cls]
        else:
            kinds = [every]
        by_kind = torch.stack([(acts[:, kind] > 0).sum(1) for kind in kinds], dim=1)
        found[site] = (by_kind, [int(kind.sum()) for kind in kinds])
    return found


def test_every_site_is_proved(newer):
    _, lens = newer
    proofs = {proof.site: proof for proof in lens.prove()}
    # Attention weights are never used again, and nothing reads the pooled embedding.
    reached = {site for site in lens.sites if not site.endswith(("pattern", "vision.pooled"))}
    assert reached <= set(proofs)
    assert all(proofs[site].moved and not proofs[site].dead for site in reached)


def test_counts_are_those_of_hooks_on_the_processors_own_inputs(newer):
    name, lens = newer
    images = pictures(*SIZES)
    out = lens.run(COUNTS, lens.encode(images, list(QUESTIONS)))
    assert {site for _, site in out} == set(neuron_paths(name))
    alone = [
        hooked_counts(name, lens, own_inputs(lens, [image], placeholder_of(lens.model) + question))
        for image, question in zip(images, QUESTIONS, strict=True)
    ]
    for site in neuron_paths(name):
        expected = sum(one[site][0] for one in alone)
        positions = torch.tensor([one[site][1] for one in alone]).sum(0)
        layered = lens.architecture.place(site).layers is not None
        found = out["count_active_by_kind", site]
        assert torch.equal(found if layered else found[None], expected), site
        assert torch.equal(out["count_positions", site], positions.expand(found.shape[:-1])), site


def test_several_images_a_question(newer):
    name, lens = newer
    images, text = pictures(*SIZES[:2]), placeholder_of(lens.model) * 2 + "which?"
    batch = lens.encode([images], [text])
    out = lens.run(COUNTS, batch)
    for site, (expected, _) in hooked_counts(name, lens, own_inputs(lens, images, text)).items():
        found = out["count_active_by_kind", site]
        assert torch.equal(found.reshape(expected.shape), expected), site
    spans = batch.image_spans(0)
    assert len(spans) == 2
    assert sorted(column for span in spans for column in span) == [
        column for column, kind in enumerate(batch.kind[0]) if kind == "image"
    ]
    assert max(spans[0]) < min(spans[1])
    # Each image takes what it takes alone.
    if name != "llava_onevision":
        single = [len(lens.encode([image], ["which?"]).image_spans(0)[0]) for image in images]
        assert [len(span) for span in spans] == single


def test_questions_of_an_image_share_work(newer):
    _, lens = newer
    images, questions = pictures(*SIZES[:2]), [["what?", "what is it?", "why is it so?"], ["who?", "who was there?"]]
    packed = lens.pack(list(zip([[image] for image in images], questions, strict=True)))
    asked = [(image, question) for image, some in zip(images, questions, strict=True) for question in some]
    alone = lens.run(COUNTS, [lens.encode([image], [question]) for image, question in asked])
    together = lens.run(COUNTS, packed)
    for key, expected in alone.items():
        # Float rounding at zero may turn an activation.
        apart = (together[key] - expected).abs()
        assert int(apart.max()) <= 1, key
        assert int(apart.sum()) <= 2, key


def test_text_alone(newer):
    name, lens = newer
    if not lens.architecture.facts["text_only"]:
        with pytest.raises(ValueError, match=r"PaliGemma takes at least one image per text; these have \[0\]"):
            lens.encode(None, ["text alone"])
        return
    batch = lens.encode(None, ["text alone", "or not"])
    paths = neuron_paths(name)["llm.mlp.act"]
    expected = torch.zeros(newer_models.LAYERS, 48, dtype=torch.int64)
    for text in ("text alone", "or not"):
        inputs = dict(lens.processor(text=[text], return_tensors="pt"))
        seen = outputs(lens.module, paths, lambda inputs=inputs: lens.module(**inputs))
        expected += torch.stack([(seen[path][0] > 0).sum((0, 1)) for path in paths])
    assert torch.equal(lens.run(count_active, batch)["count_active", "llm.mlp.act"], expected)


def test_zeroing_under_beam_search_is_that_of_hooks(newer):
    name, lens = newer
    images = pictures(*SIZES)
    batch = lens.encode(images, list(QUESTIONS))
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for site in neuron_paths(name):
        place = lens.architecture.place(site)
        shape = (place.layers or 1, place.sizes["neuron"])
        masks[site] = torch.rand(shape, generator=generator) < 0.3
    bound = {site: mask if lens.architecture.place(site).layers else mask[0] for site, mask in masks.items()}
    out = lens.generate(zero_neurons.at("*.act").bind(neurons=per_layer(bound)), batch, **BEAMS)
    hooks = {
        path: (lambda act, mask=mask: act.masked_fill(mask, 0))
        for site, paths in neuron_paths(name).items()
        for path, mask in zip(paths, masks[site], strict=True)
    }
    given = lens.processor(
        text=[placeholder_of(lens.model) + question for question in QUESTIONS],
        images=[[image] for image in images],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    given.pop("labels", None)

    def generated() -> list[list[int]]:
        ids = lens.module.generate(**given, **BEAMS)[:, given["input_ids"].shape[1] :]
        return [[token for token in row if token != 0] for row in ids.tolist()]

    with hooked(lens.module, hooks):
        expected = generated()
    assert expected != generated(), "the neurons make no difference, so this test could not fail"
    assert [tokens.tolist() for tokens in out.tokens] == expected


def test_answers_are_read_as_they_are_generated(newer):
    name, lens = newer
    batch = lens.encode(pictures(SIZES[0]), [QUESTIONS[1]])
    greedy = {**BEAMS, "num_beams": 1}
    out = lens.generate(keep.at("llm.residual", layers=1, steps="generated"), batch, **greedy)
    layer = neuron_paths(name)["llm.mlp.act"][1].rpartition(".mlp.")[0]
    inputs = {key: value for key, value in batch.inputs.items() if key != "position_ids"}
    seen = outputs(lens.module, [layer], lambda: lens.module.generate(**inputs, **greedy))[layer]
    expected = torch.cat([one[0] if isinstance(one, tuple) else one for one in seen[1:]], dim=1)
    found = out["keep", "llm.residual"][0].reshape(1, -1, expected.shape[-1])
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, rtol=1e-3, atol=1e-4)


def test_the_lens_is_the_models_own_head(newer):
    name, lens = newer
    batch = lens.encode(pictures(SIZES[0]), [QUESTIONS[0]])
    out = lens.run(logit_lens.bind(top_k=3), batch)["logit_lens", "llm.residual"][0]
    layer = neuron_paths(name)["llm.mlp.act"][0].rpartition(".layers.")[0]
    inputs = own_inputs(lens, pictures(SIZES[0]), placeholder_of(lens.model) + QUESTIONS[0])
    paths = [f"{layer}.layers.{number}" for number in range(newer_models.LAYERS)]
    seen = outputs(lens.module, paths, lambda: lens.module(**inputs))
    norm, head = lens.module.get_submodule(f"{layer}.norm"), lens.module.lm_head
    for number, path in enumerate(paths):
        held = seen[path][0]
        with torch.no_grad():
            logits = head(norm(held[0] if isinstance(held, tuple) else held)).float()
        probabilities, tokens = logits.softmax(-1).topk(3)
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        assert torch.equal(out["tokens"][number], tokens)
        torch.testing.assert_close(out["probabilities"][number], probabilities, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out["entropy"][number], entropy, rtol=1e-4, atol=1e-4)


def test_patches_stand_in_the_order_of_the_image(newer):
    """A query of the first layer depends on its own patch alone, so a changed patch changes its own position."""
    name, lens = newer
    (image,) = pictures((64, 64))
    before = lens.encode([image], ["x"])
    changed = dict(before.inputs)
    pixels = changed["pixel_values"].clone()
    facts = lens.architecture.facts
    if facts["tiling"] == "grid":
        # A row a patch, as the processor lays them out.
        # In the second window of one that attends in windows.
        place, total = 10, pixels.shape[0]
        pixels[place] += 1
    else:
        # The second patch of the second row of patches, of the first tile.
        across = (pixels.shape[-1] if facts["tiling"] == "sizes" else math.isqrt(facts["patches"]) * 8) // 8
        place, total = facts["cls"] + across + 1, None
        pixels[(0,) * (pixels.ndim - 3)][..., 8:16, 8:16] += 1
    changed["pixel_values"] = pixels
    site = keep.at("vision.attention.q", layers=0)
    values = []
    for inputs in (before.inputs, changed):
        batch = type(before)(**{**before.__dict__, "inputs": inputs})
        values.append(lens.run(site, batch)["keep", "vision.attention.q"][0][0])
    moved = (values[0] != values[1]).flatten(2).any(-1)
    assert moved[0].nonzero().flatten().tolist() == [place], (name, total)
    assert int(moved.sum()) == 1


# Elsewhere a prefix has positions that see later ones, and is one pass.
@pytest.mark.parametrize("name", [name for name in NAMES if "gemma" not in name])
def test_long_rows_run_in_parts(name, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setattr(packing, "LONG", 1)
    monkeypatch.setattr(packing, "PART", 16)
    (image,), questions = pictures(SIZES[0]), ["what?", "what is it?", "why is it so?", "who was there with it?"]
    batch = packing_of(lens.model, [([image], questions)], cut=True)
    assert len(batch.sharing["cuts"]) > 2, name
    alone = lens.run(COUNTS, [lens.encode([image], [question]) for question in questions])
    together = lens.run(COUNTS, batch)
    for key, expected in alone.items():
        # Float rounding at zero may turn an activation.
        assert int((together[key] - expected).abs().sum()) <= 2, key


def test_rows_with_and_without_an_image_share_a_batch(newer):
    name, lens = newer
    if not lens.architecture.facts["text_only"]:
        with pytest.raises(ValueError, match=r"PaliGemma takes at least one image per text; these have \[1, 0\]"):
            lens.encode([*pictures(SIZES[0]), None], ["with", "without"])
        return
    one, two = pictures(*SIZES[:2])
    given, texts = [None, [one], [], [two, one]], ["without", "with one", "without again", "with two"]
    together = lens.run(count_active_by_kind, lens.encode(given, texts))["count_active_by_kind", "llm.mlp.act"]
    batches = [lens.encode([some], [text]) for some, text in zip(given, texts, strict=True)]
    assert torch.equal(together, lens.run(count_active_by_kind, batches)["count_active_by_kind", "llm.mlp.act"]), name
