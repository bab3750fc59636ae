"""Of several images as many are shown as fit, in every architecture: one more would be beyond the context."""

from __future__ import annotations

from dataclasses import replace

import newer_models
import pytest
import tiny_models
from conftest import pictures

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import with_frames_that_fit
from mmneuron_lens.batching.image_positions import ImagePositions
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.frames import evenly_spaced
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.wire.positions import lengths

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

MAKERS = {name: newer_models for name in newer_models.ARCHITECTURES} | {"llava": tiny_models, "llava_next": tiny_models}


@pytest.fixture
def frames(tmp_path) -> Sample:
    files = []
    for number, picture in enumerate(pictures(*[(40, 56)] * 90)):
        files.append(str(tmp_path / f"{number}.png"))
        picture.save(files[-1])
    return Sample("one", "common", tuple(files), "why?", "x")


@pytest.mark.parametrize("name", MAKERS)
def test_one_frame_more_would_not_fit(name, frames):
    lens = Lens.wrap(*getattr(MAKERS[name], name)())
    context = lens.module.config.get_text_config().max_position_embeddings
    (shown,) = with_frames_that_fit(lens, [frames], "identification")
    count = len(shown.images)
    assert 1 < count < 90, "the corpus is too short, or too long, to tell"
    fits, _ = encode(lens, [shown], "identification")
    assert fits is not None
    places = evenly_spaced(count + 1, 90)
    more = replace(frames, images=tuple(frames.images[place] for place in places))
    with pytest.raises(InvalidValue, match=rf"{context}"):
        encode(lens, [more], "identification")


@pytest.mark.parametrize("name", MAKERS)
def test_positions_add_up_to_those_of_the_batch(name, frames):
    lens = Lens.wrap(*getattr(MAKERS[name], name)())
    text = prompt_of(lens, frames, "identification", 3)
    positions, size = ImagePositions(lens), (56, 40)
    (found,) = lengths(lens.encode([pictures(*[(40, 56)] * 3)], [text]).inputs["position_ids"]).tolist()
    assert positions.of_text(text, 3, size) + 3 * positions.of(size) == found
