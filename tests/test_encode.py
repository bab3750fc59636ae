"""Encoding: images in any form, one layout per position, padded rows as good as rows alone."""

from __future__ import annotations

import io

import numpy
import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens

from interventions import keep


def test_all_forms_of_an_image_are_one(lens, tmp_path):
    picture = pictures((40, 50))[0]
    path = tmp_path / "picture.png"
    picture.save(path)
    forms = [picture, path, str(path), path.read_bytes(), numpy.asarray(picture), numpy.asarray(picture) / 255.0]
    batches = [lens.encode([form], ["is it red?"]) for form in forms]
    for batch in batches[1:]:
        assert torch.equal(batch.inputs["pixel_values"], batches[0].inputs["pixel_values"])


def test_what_is_no_image_is_named(lens, tmp_path):
    broken = tmp_path / "broken.jpg"
    buffer = io.BytesIO()
    pictures((64, 64))[0].save(buffer, format="JPEG")
    broken.write_bytes(buffer.getvalue()[:400])
    with pytest.raises(ValueError, match=r"broken\.jpg: not an image that can be read"):
        lens.encode([broken], ["is it red?"])
    with pytest.raises(ValueError, match=r"nowhere\.png: no such image file"):
        lens.encode([tmp_path / "nowhere.png"], ["is it red?"])
    with pytest.raises(ValueError, match="2 entries of images for 1 texts"):
        lens.encode(pictures((32, 32), (32, 32)), ["is it red?"])
    with pytest.raises(ValueError, match=r"not \[40, 50, 7\]"):
        lens.encode([numpy.zeros((40, 50, 7), dtype=numpy.uint8)], ["is it red?"])


def test_every_position_is_named(lens):
    batch = mixed_batch(lens)
    for row, (words, kinds) in enumerate(zip(batch.tokens, batch.kind, strict=True)):
        assert len(words) == len(kinds) == batch.prompt_length
        images = [word for word, kind in zip(words, kinds, strict=True) if kind == "image"]
        assert images == [f"<image 1: {place}>" for place in range(len(images))]
        assert all(word == "<pad>" for word, kind in zip(words, kinds, strict=True) if kind == "padding")
        text = "".join(word for word, kind in zip(words, kinds, strict=True) if kind == "text")
        assert text.endswith(["Is␣it␣red?", "how␣many␣cars␣are␣there?", "why"][row])


def test_several_images_per_question_and_text_alone():
    lens = tiny_lens("llava_next")
    one, two, three = pictures((40, 56), (64, 30), (32, 32))
    batch = lens.encode([[one, two], None, three], ["compare", "no picture", "one"])
    assert batch.images == (2, 0, 1)
    names = {word.split(":")[0] for word in batch.tokens[0] if word.startswith("<image ")}
    assert names == {"<image 1", "<image 2"}
    assert not any("image" in kind for kind in batch.kind[1])
    lengths = [[len(span) for span in batch.image_spans(row)] for row in range(batch.rows)]
    features = lens.module.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_sizes"]).pooler_output
    assert [length for row in lengths for length in row] == [feature.shape[0] for feature in features]
    placed = lens.encode([[one, two]], ["first <image> second <image> compare"])
    assert placed.tokens[0][:6] == list("first␣") or placed.tokens[0][1:7] == list("first␣")
    with pytest.raises(ValueError, match="1 <image> in the text for 2 images"):
        lens.encode([[one, two]], ["first <image>"])


def test_instructblip_takes_one_image():
    lens = tiny_lens("instructblip")
    with pytest.raises(ValueError, match=r"InstructBLIP takes exactly one image per text; these have \[0\]"):
        lens.encode(None, ["text alone"])
    with pytest.raises(ValueError, match=r"these have \[2\]"):
        lens.encode([pictures((32, 32), (32, 32))], ["two"])


@pytest.mark.parametrize("size", [(40, 56), (64, 30), (30, 64), (32, 32), (20, 90), (90, 20), (33, 31)])
def test_anyres_spans_follow_the_model(size):
    lens = tiny_lens("llava_next")
    batch = lens.encode(pictures(size), ["x"])
    feature = lens.module.get_image_features(batch.inputs["pixel_values"], batch.inputs["image_sizes"]).pooler_output[0]
    assert [len(span) for span in batch.image_spans(0)] == [feature.shape[0]]
    assert batch.fields["vision"]["weight"].shape[0] == lens.module.model.vision_tower(
        torch.cat(list(batch.inputs["pixel_values"]))
    ).last_hidden_state.shape[0] - padding_tiles(batch)


def padding_tiles(batch):
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    rows = batch.inputs["pixel_values"].shape
    real = sum(
        image_size_to_num_patches(size.tolist(), batch.facts["grid_pinpoints"], batch.facts["tile_size"])
        for size in batch.inputs["image_sizes"]
    )
    return rows[0] * rows[1] - real


def test_a_padded_row_computes_what_it_does_alone(lens):
    sizes = [(40, 56), (64, 30), (32, 32)]
    texts = ["Is it red?", "how many cars are there?", "why"]
    together = lens.run(keep.at("llm.residual"), mixed_batch(lens))["keep", "llm.residual"][0]
    for row, (picture, text) in enumerate(zip(pictures(*sizes), texts, strict=True)):
        alone = lens.encode([picture], [text])
        values = lens.run(keep.at("llm.residual"), alone)["keep", "llm.residual"][0][:, 0]
        real = mixed_batch(lens).fields["llm"]["weight"][row].bool()
        torch.testing.assert_close(together[:, row][:, real], values, rtol=1e-3, atol=1e-3)


def test_batches_describe_themselves(lens):
    assert "3 rows, 3 images" in repr(mixed_batch(lens))
    with pytest.raises(ValueError, match="Field 'mark' starts with"):
        mixed_batch(lens).with_fields(mark=torch.zeros(1, 1))
