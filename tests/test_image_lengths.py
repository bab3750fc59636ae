"""As many frames as fit, by the true length of what is encoded, for every architecture."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import newer_models
import pytest
import tiny_models
from conftest import pictures
from PIL import Image

from mmneuron_lens import Lens
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.frames import token_count, with_frames_that_fit
from mmneuron_lens.batching.image_lengths import ImageLengths
from mmneuron_lens.batching.prompting import Prompt, prompt_of
from mmneuron_lens.corpora.frames import evenly_spaced
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.corpora.token_count import LLAVA_NEXT

# transformers' own, see test_newer_architectures.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = (*newer_models.ARCHITECTURES, "llava_next", "llava")
ANSWERING = ("qwen2_5_vl", "llava_onevision", "paligemma", "idefics3", "llava")
"""Also asked by the longer prompt."""

SIZES = ((40, 56), (64, 30), (33, 31), (20, 90), (200, 150))
"""Width and height."""

FRAMES = 80


@cache
def lens_of(name: str) -> Lens:
    return Lens.wrap(*getattr(newer_models if name in newer_models.ARCHITECTURES else tiny_models, name)())


def length(lens: Lens, sample: Sample, prompt: Prompt) -> int:
    """Positions of one sample as it is encoded."""
    batch, kept = encode(lens, [sample], prompt)
    assert batch is not None
    assert len(kept) == 1
    return int(batch.inputs["attention_mask"].sum())


@pytest.fixture
def frames(tmp_path):
    files = []
    for number in range(FRAMES):
        files.append(tmp_path / f"{number}.png")
        pictures(SIZES[number % len(SIZES)], seed=number)[0].save(files[-1])
    return tuple(files)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_takes_what_it_takes_among_several(name):
    lens = lens_of(name)
    lengths = ImageLengths(lens)
    text = lengths.placeholder
    for size in SIZES[2:]:
        other = Image.new("RGB", (32, 48), "red")
        few, more = ([Image.new("RGB", size)] * count + [other] * 2 for count in (1, 2))
        asked = [lens.encode([some], [text * len(some) + "which?"]) for some in (few, more)]
        taken = [int(batch.inputs["attention_mask"].sum()) for batch in asked]
        around = lengths.words(text * 4 + "which?") - lengths.words(text * 3 + "which?")
        assert lengths(size) + around == taken[1] - taken[0], size
    # And beside images and words there is no more than this.
    assert taken[1] == lengths.words(text * 4 + "which?") + 2 * (lengths(size) + lengths((32, 48))) + lengths.beside


@pytest.mark.parametrize(
    ("name", "prompt"), [*((name, "identification") for name in NAMES), *((name, "evaluation") for name in ANSWERING)]
)
def test_as_many_frames_as_fit_and_not_one_more(name, prompt, frames, monkeypatch):
    lens = lens_of(name)
    sample = Sample("a", "auto_driving", frames, "which of them is red?", ("yes",))
    short = replace(sample, images=frames[:3])
    for context in (420, 300) if name in ANSWERING else (360,):
        monkeypatch.setattr(lens.module.config.get_text_config(), "max_position_embeddings", context)
        (fitted,) = with_frames_that_fit(lens, [sample], prompt, 20)
        count, room = len(fitted.images), context - 20
        assert fitted.images == tuple(frames[place] for place in evenly_spaced(count, FRAMES))
        monkeypatch.undo()
        assert count == 1 or length(lens, fitted, prompt) <= room
        assert count < FRAMES
        wider = replace(sample, images=tuple(frames[place] for place in evenly_spaced(count + 1, FRAMES)))
        monkeypatch.setattr(lens.module.config.get_text_config(), "max_position_embeddings", 5000)
        assert length(lens, wider, prompt) > room
        monkeypatch.undo()
    # Where there is room they stay as they are.
    monkeypatch.setattr(lens.module.config.get_text_config(), "max_position_embeddings", 5000)
    assert with_frames_that_fit(lens, [short], prompt) == [short]
    assert prompt_of(lens, short, prompt).count(str(lens.processor.image_token)) == 3


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "gemma3", "llava_next_video"])
def test_a_budget_is_counted_in_llava_next_tokens(name):
    lens = lens_of(name)
    own = name == "llava_next_video"
    assert token_count(lens).facts == (lens.architecture.facts if own else LLAVA_NEXT)
