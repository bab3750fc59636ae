"""Questions of several frames, as LingoQA's, are counted in every architecture as they are asked one by one."""

from __future__ import annotations

import newer_models
import pytest
import torch
from conftest import pictures
from test_image_lengths import lens_of

from interventions import count_active_by_kind, count_positions
from mmneuron_lens.batching.frames import with_frames_that_fit
from mmneuron_lens.corpora.frames import strip
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.runtime.encoding import placeholder_of

# transformers' own, see test_newer_architectures.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

COUNTS = count_active_by_kind.at("*.act") | count_positions.at("*.act")
STRIPS = ("qwen2_5_vl", "llava_onevision", "paligemma", "pixtral")


@pytest.mark.parametrize(
    ("name", "frames"), [*((name, "fit") for name in newer_models.ARCHITECTURES), *((name, "strip") for name in STRIPS)]
)
def test_questions_of_the_same_frames_are_counted(name, frames, tmp_path):
    lens, seen = lens_of(name), pictures((40, 56), (64, 30), (33, 31))
    files = tuple(tmp_path / f"{number}.png" for number in range(len(seen)))
    for picture, file in zip(seen, files, strict=True):
        picture.save(file)
    questions = ("is it red?", "is it so?", "why")
    samples = [Sample(text, "auto_driving", files, text, ("yes",)) for text in questions]
    (fitted,) = with_frames_that_fit(lens, samples[:1], "identification")
    shown = [strip(seen)] if frames == "strip" else [seen[files.index(file)] for file in fitted.images]
    assert frames == "strip" or len(shown) > 1
    counts = count_domain(lens, samples, frames=frames)
    assert counts.samples == 3
    text = placeholder_of(lens.model) * len(shown)
    expected = lens.run(COUNTS, [lens.encode([shown], [text + question]) for question in questions])
    for site, found in counts.active.items():
        # Float rounding at zero may turn an activation.
        active = expected["count_active_by_kind", site]
        difference = (found.sum(0).reshape(-1)[: active.numel()] - active[..., : found.shape[2], :].reshape(-1)).abs()
        assert int(difference.max()) <= 1, site
        assert int(difference.sum()) <= 3, site
        positions = expected["count_positions", site].reshape(-1, expected["count_positions", site].shape[-1])[0]
        assert torch.equal(counts.tokens[site].sum(0), positions[: found.shape[2]]), site
