"""What a model has no positions or embeddings for is refused by its length or its token, before any forward."""

from __future__ import annotations

import copy

import pytest
from conftest import pictures, tiny_lens
from drawn_corpus import row, write_images, write_rows
from refused import LENSES, corpus, lens_with_words, selection_of

from interventions import count_active
from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.ablate import ablate
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.runtime.limits import positions_of
from mmneuron_lens.wire.encode import encode as plainly


@pytest.fixture(params=LENSES)
def any_lens(request) -> tuple[str, Lens]:
    return request.param, lens_with_words(request.param)


def test_an_answer_needs_room_too(lens, tmp_path):
    samples, problems = corpus(tmp_path, {2: "why " * 25}, 3)
    lengths = {one.id: encode(lens, [one], "evaluation")[0].inputs["input_ids"].shape[1] for one in samples}
    selection = selection_of(lens, samples)
    room = 512 - lengths["row 2"]
    assert len(ablate(lens, selection, {"common": samples}, problems=problems, max_new_tokens=room)) == 4 * 5
    assert not len(problems)
    found = ablate(lens, selection, {"common": samples}, problems=problems, max_new_tokens=room + 1)
    assert {one.id for one in found} == {"row 1", "row 3", "row 4"}
    (one,) = problems
    assert one.says == (
        f"the prompt takes {lengths['row 2']} positions and its answer up to {room + 1}, and {lens.name} has 512; "
        "shorten it, or show less."
    )


def test_more_images_than_a_model_has_positions_for(tmp_path):
    lens = tiny_lens("llava")
    write_images(tmp_path, "auto_driving", 40)
    images = [f"images/auto_driving{number}.png" for number in range(40)]
    few = row("auto_driving", 0, image=None, images=images[:3])
    samples, problems = read_folder(
        write_rows(tmp_path, [few, row("auto_driving", 0, "why " * 126, image=None, images=images[:2]), few])
    )
    # Not even one frame fits beside the words of the second.
    counts = count_domain(lens, samples, problems=problems)
    assert (counts.samples, [one.line for one in problems]) == (2, [2])
    # As many frames as fit are shown of forty; side by side they are one image.
    many, problems = read_folder(write_rows(tmp_path, [row("auto_driving", 0, image=None, images=images)]))
    assert count_domain(lens, many, problems=problems).samples == 1
    assert count_domain(lens, many, problems=problems, frames="strip").samples == 1
    with pytest.raises(InvalidValue, match="the prompt takes"):
        encode(lens, many, "identification")


DIRECT = {
    "too long": (
        "w" * 700,
        r"^texts\[1\]: the prompt takes 7\d\d positions, and \w+ has 512; shorten it, or show less\.$",
    ),
    "no embedding": (
        "giraffe",
        r"^texts\[1\]: token 'giraffe' has the id 101, and the embedding of \w+ has 101 rows; w",
    ),
}


@pytest.mark.parametrize("kind", DIRECT)
def test_encoding_names_the_text(any_lens, kind):
    name, lens = any_lens
    text, says = DIRECT[kind]
    images = pictures((32, 32), (32, 40), (40, 32))
    with pytest.raises(InvalidValue, match=says):
        lens.encode(images, ["why", text, "how"])
    alone = says.replace(r"texts\[1\]: ", "")
    with pytest.raises(InvalidValue, match=alone):
        lens.encode(images[:1], text)
    place = r"rows\[1\]: " if lens.architecture.facts["images_in_text"] else r"prompts\[2\]: "
    if lens.architecture.facts["images_in_text"] or name == "instructblip" or name == "blip2":
        with pytest.raises(
            InvalidValue, match=alone.replace("^", f"^{place}").replace(r"\w+ has 512", r"[\w ]+ has 512")
        ):
            lens.pack([([images[0]], ["why", "how"]), ([images[1]], [text, "who"])])


def test_the_q_formers_limits():
    lens = lens_with_words("instructblip")
    images = pictures((32, 32), (32, 40))
    for text, says in {
        "zebra": r"^texts\[1\]: token 'zebra' has the id 101, and the embedding of the Q-Former of \w+ has 101 rows; ",
        "w" * 129: r"^texts\[1\]: the prompt takes 129 positions, and the Q-Former of \w+ has 128; shorten it",
        "is <image> it": r"^texts\[1\]: the text holds '<image>', whose place \w+ chooses itself; leave it out\.$",
    }.items():
        with pytest.raises(InvalidValue, match=says):
            lens.encode(images, ["why", text])
    # All of the Q-Former's positions may be used, beside shorter questions.
    batch = lens.encode(images, ["why", "w" * 128])
    assert lens.run(count_active, batch)


def test_a_prompt_may_fill_all_positions(any_lens):
    _, lens = any_lens
    (image,) = pictures((32, 32))
    facts = lens.architecture.facts
    words = 512 - lens.encode([image], "w").inputs["input_ids"].shape[1] + 1
    if facts["queries"] and "qformer_input_ids" in lens.encode([image], "w").inputs:
        words = 128
    text = ("<image>\n" if facts["images_in_text"] else "") + "w" * words
    made = plainly(lens.processor, [[image]], [text], facts)
    assert lens.encode([image], "w" * words).inputs["input_ids"].shape == made["input_ids"].shape
    if words != 128:
        assert made["input_ids"].shape[1] == 512
    with pytest.raises(InvalidValue, match="the prompt takes"):
        lens.encode([image], "w" * (words + 1))


def test_positions_that_a_rotary_embedding_stretches():
    lens = tiny_lens("llava")
    for given, positions in [
        ({"rope_type": "default", "rope_theta": 1e4}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 512),
    ]:
        module = copy.deepcopy(lens.module)
        module.config.get_text_config().rope_parameters = given
        assert positions_of(Lens.wrap(module, lens.processor).model) == positions
