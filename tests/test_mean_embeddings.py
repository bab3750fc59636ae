"""Figure 2 of models whose vision tower pools nothing: the mean of the patches, as plain hooks see them."""

from __future__ import annotations

import newer_models
import pytest
import torch
from drawn_corpus import write_corpus
from hooks import outputs

from mmneuron_lens import Lens
from mmneuron_lens.artifacts.embeddings import MEAN_OVER, Embeddings
from mmneuron_lens.corpora.folder import by_domain, open_images, read_folder
from mmneuron_lens.experiments.embed import embed_images
from mmneuron_lens.paper.corpora import figure_2
from mmneuron_lens.paper.model_run import ModelRun
from mmneuron_lens.runtime.encoding import placeholder_of

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


# The others have CLIP's tower, which pools.
@pytest.mark.parametrize(
    "name", [one for one in newer_models.ARCHITECTURES if one not in ("vipllava", "llava_next_video")]
)
def test_the_mean_of_the_patches_is_that_of_hooks_on_the_processors_own_inputs(name, tmp_path):
    lens = Lens.wrap(*getattr(newer_models, name)())
    samples = by_domain(read_folder(write_corpus(tmp_path, images=3))[0])["medical"]
    found = embed_images(lens, {"medical": samples}, batch_size=2)
    assert found.domain_of == ("medical",) * 3
    assert found.parameters["site"] == "vision.residual"
    path = newer_models.ARCHITECTURES[name][0].format(l=newer_models.VISION_LAYERS - 1)
    layer = path.removesuffix(".mlp.activation_fn").removesuffix(".mlp.act_fn").removesuffix(".mlp.act")
    layer = layer.removesuffix(".feed_forward.act_fn")
    expected = []
    for sample in {sample.images: sample for sample in samples}.values():
        inputs = lens.processor(text=[placeholder_of(lens.model)], images=[open_images(sample)], return_tensors="pt")
        inputs.pop("labels", None)
        (held,) = outputs(lens.module, [layer], lambda inputs=inputs: lens.module(**inputs))[layer]
        held = held[0] if isinstance(held, tuple) else held
        # InternVL has a CLS position before the patches of each tile.
        patches = held[:, 1:] if name in ("internvl", "qianfan_ocr") else held
        expected.append(patches.flatten(0, -2).mean(0))
    near = torch.cdist(found.vectors.double(), torch.stack(expected).double())
    assert sorted(near.argmin(1).tolist()) == [0, 1, 2]
    assert float(near.min(1).values.max()) < 1e-4
    assert float(near.max()) > 1e-2


def test_the_page_says_what_each_models_points_are(tmp_path):
    """A model that pools, one that does not, and both: each caption says what its own points are."""
    runs = {}
    for name, parameters in (("pools", {}), ("averages", {MEAN_OVER: "its patches"})):
        vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
        made = Embeddings(name, vectors, ("common", "medical") * 2, parameters)
        made.save(tmp_path / "embeddings" / f"{name}.safetensors")
        runs[name] = ModelRun(tmp_path, name)
    alone = figure_2([runs["pools"]]).pictures[0].caption
    assert alone == (
        "The vision encoder’s pooled output, centred and not scaled, on its first two principal components; 4 images "
        "of pools. Of an image in tiles, the overview tile. Each model has axes of its own."
    )
    mean = "Of averages, which pools nothing, the mean of its patches."
    other = figure_2([runs["averages"]]).pictures[0].caption
    assert other == (
        "The vision encoder’s output, centred and not scaled, on its first two principal components; 4 images of "
        f"averages. {mean} Each model has axes of its own."
    )
    both = figure_2([runs["pools"], runs["averages"]]).pictures[0].caption
    assert "pooled output" in both
    assert f"the overview tile. {mean} Each" in both
