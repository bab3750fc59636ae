"""The lens, its entropies and the embeddings against plain transformers: output_hidden_states=True, and by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from html import escape

import numpy
import pytest
import torch
from conftest import pictures, tiny_lens
from drawn_corpus import write_corpus
from IPython.core.interactiveshell import InteractiveShell

from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.embed import component_rows, embed_images, principal_components
from mmneuron_lens.experiments.entropy import entropy_rows, read_entropy
from mmneuron_lens.experiments.fit_on_samples import fit_on_samples
from mmneuron_lens.experiments.trace import trace_sample
from mmneuron_lens.report import heat
from mmneuron_lens.report.heat_figure import heat_figure
from mmneuron_lens.report.lettering import lettered
from mmneuron_lens.report.notebook import register
from mmneuron_lens.runtime.patches import boxes_of


@pytest.fixture
def corpus(tmp_path):
    return by_domain(read_folder(write_corpus(tmp_path, images=3))[0])


def plain_distributions(lens, batch, matrices=None):
    """Log probabilities of the next token at every layer, [layer, token, vocabulary], from transformers alone.

    transformers returns its last hidden state after the final norm, so that one is unembedded as it is. Others are
    multiplied by a matrix each, if there are any.
    """
    with torch.no_grad():
        out = lens.module(**batch.inputs, output_hidden_states=True)
        states = getattr(out, "hidden_states", None) or out.language_model_outputs.hidden_states
        language = lens.module.model.language_model if hasattr(lens.module, "model") else None
        norm = language.norm if language is not None else lens.module.language_model.model.norm
        head = lens.module.lm_head if language is not None else lens.module.language_model.lm_head
        first = [state[0] for state in states[:-1]]
        first = first if matrices is None else [one @ matrix.T for one, matrix in zip(first, matrices, strict=False)]
        logits = [head(norm(state)) for state in first] + [head(states[-1][0])]
        torch.testing.assert_close(logits[-1], out.logits[0])
    return torch.stack(logits).double().log_softmax(-1)


def test_a_trace_equals_plain_transformers(lens, corpus):
    sample = corpus["medical"][1]
    trace = trace_sample(lens, sample, top_k=3)
    batch, _ = encode(lens, [sample], "evaluation")
    assert batch is not None
    logs = plain_distributions(lens, batch)
    assert len(logs) == len(trace.layers) == 4
    assert trace.layers == ("embedding", "1", "2", "3")
    expected = logs.exp().topk(3, dim=-1)
    assert torch.equal(trace.tokens, expected.indices)
    torch.testing.assert_close(trace.probabilities.double(), expected.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.entropy.double(), -(logs.exp() * logs).sum(-1), atol=1e-4, rtol=1e-4)
    assert list(trace.kinds) == batch.kind[0]
    assert trace.labels[-1] == lens.processor.tokenizer.decode(batch.inputs["input_ids"][0, -1:])
    assert trace.best(len(trace.labels) - 1) == trace.words[str(int(expected.indices[-1, -1, 0]))]


def test_chosen_positions_and_what_they_are(lens, corpus):
    sample = corpus["medical"][0]
    whole, some = trace_sample(lens, sample), trace_sample(lens, sample, positions=[2, -1])
    assert some.labels == (whole.labels[2], whole.labels[-1])
    assert torch.equal(some.tokens, whole.tokens[:, [2, -1]])
    assert whole.labels[whole.position("image", 1)].endswith("<image 1: 1>")
    assert whole.last("text") == len(whole.labels) - 1
    with pytest.raises(KeyError, match="no 'cls' position was read; choose from"):
        whole.last("cls")
    with pytest.raises(IndexError, match="image positions, no number 9999"):
        whole.position("image", 9999)
    with pytest.raises(IndexError, match=r"positions \[-9999\] are not in this prompt of \d+ tokens"):
        trace_sample(lens, sample, positions=[-9999])


def test_a_trace_survives_the_disk(lens, corpus, tmp_path):
    trace = trace_sample(lens, corpus["common"][0])
    trace.save(tmp_path / "one.safetensors")
    again = LensTrace.load(tmp_path / "one.safetensors")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert again.document() == trace.document()
    document = trace.document()
    words = [document["words"][number] for number in document["tokens"][3][-1]]
    assert words == list(heat.heat_of(trace, len(trace.labels) - 1).words[3])
    assert heat.heat_of(trace, 0, even=True).rows == ("layer 2",)


def test_jupyter_shows_a_trace_as_two_heatmaps(lens, corpus, monkeypatch):
    trace = trace_sample(lens, corpus["common"][0])
    shell = InteractiveShell()
    monkeypatch.setattr(InteractiveShell, "_instance", None)
    assert "text/html" not in shell.display_formatter.format(trace)[0]
    for _ in range(2):
        register(shell)
    html = shell.display_formatter.format(trace)[0]["text/html"]
    assert html.count("<table") == 2
    # Four layers of five candidates, twice.
    assert html.count("<td") == 40
    assert f"{100 * float(trace.probabilities[-1, -1, 0]):.1f} %" in html
    assert escape(f"{trace.labels[-1]} → {trace.best(-1)}") in html


def test_registering_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell\n"
        "from mmneuron_lens.report.notebook import register; register(InteractiveShell())\n"
        "print([name for name in ('torch', 'matplotlib', 'polars') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_even_layers_and_colours():
    assert (heat.colour(0.0), heat.colour(1.0), heat.colour(2.0)) == ("#ffffff", "#4f93d2", "#4f93d2")
    assert (heat.colour(0.0, "dark"), heat.colour(0.5, "dark")) == ("#17191d", "#1c4066")
    assert lettered("a→漢\n") == "a→U+6F22U+000A"
    one = heat.Heat(("layer 2",), (("<b>", "$x$"),), ((0.75, 0.25),))
    assert re.findall(r">([^<>]*)</td>", heat.heat_table(one)) == ["&lt;b&gt;", "$x$"]
    figure = heat_figure([("$ and 漢", one)])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["<b>", "$x$"]
    assert [patch.get_facecolor()[2] for patch in axes.patches] == [
        pytest.approx(int(heat.colour(value)[5:], 16) / 255) for value in (0.75, 0.25)
    ]


def test_the_box_of_a_patch_is_the_part_of_the_image_that_moves_it(lens):
    """Paint one box of the picture black: of the overview's patches, only that one's pixels change."""
    (picture,) = pictures((64, 30))
    batch = lens.encode([picture], ["why"])
    boxes = boxes_of(batch)
    if not batch.facts["images_in_text"]:
        assert torch.isnan(boxes).all()
        return
    is_image = torch.tensor([kind == "image" for kind in batch.kind[0]])
    assert torch.isnan(boxes[~is_image]).all()
    boxes = boxes[is_image]
    side = 4
    assert boxes[6].tolist() == [0.0, 0.5, 0.25, 0.75, 0.5]
    # Behind the overview: rows of detail, each closed by a newline position that is nowhere.
    detail = boxes[side * side :]
    newlines = torch.isnan(detail[:, 0]).nonzero().squeeze(1)
    columns = int(newlines[0])
    assert newlines.tolist() == [columns + row * (columns + 1) for row in range(len(newlines))]
    # A picture half as wide as high: its patches are squares again once the padding is gone.
    assert columns / len(newlines) == pytest.approx(30 / 64, abs=0.1)
    # The 30 columns of pixels lie behind one of padding, so the first patch of 8 has 7 of them.
    assert detail[0].tolist() == pytest.approx([0, 0, 0, 7 / 30, 1 / len(newlines)])
    painted = picture.copy()
    left, top, right, bottom = (boxes[6][1:] * torch.tensor([30, 64, 30, 64])).round().int().tolist()
    painted.paste((0, 0, 0), (left + 2, top + 4, right - 2, bottom - 4))
    first, second = (lens.encode([one], ["why"]).inputs["pixel_values"][0, 0] for one in (picture, painted))
    change = (first - second).abs().sum(0).unflatten(0, (side, 8)).unflatten(-1, (side, 8)).sum((1, 3))
    assert change.argmax().item() == 6
    assert float(change.flatten()[6]) > 0.9 * float(change.sum())


def test_entropies_equal_plain_transformers(lens, corpus, tmp_path):
    samples = corpus["medical"]
    found = read_entropy(lens, samples, batch_size=4)
    assert found.kinds == ("image", "text")
    total = torch.zeros(4, 2, dtype=torch.float64)
    tokens = torch.zeros(2, dtype=torch.int64)
    confidence = torch.zeros(2, dtype=torch.float64)
    below = torch.zeros(2, dtype=torch.int64)
    for sample in samples:
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        logs = plain_distributions(lens, batch)
        entropy = -(logs.exp() * logs).sum(-1)
        for number, kind in enumerate(("image", "text")):
            here = torch.tensor([one == kind for one in batch.kind[0]])
            total[:, number] += entropy[:, here].sum(1)
            tokens[number] += int(here.sum())
            best = logs[-1, here].exp().amax(-1)
            confidence[number] += best.sum()
            below[number] += int((best < 0.4).sum())
    assert torch.equal(found.tokens.sum(0), tokens)
    torch.testing.assert_close(found.mean(), total / tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.confidence.sum(0), confidence, atol=1e-4, rtol=1e-5)
    assert torch.equal(found.below.sum(0), below)
    rows = entropy_rows([found])
    assert len(rows) == 4 * 2
    assert rows[0] | {"entropy": 0} == {
        "model": found.model,
        "domain": "medical",
        "kind": "image",
        "layer": 0,
        "entropy": 0,
        "tokens": int(tokens[0]),
    }
    found.save(tmp_path / "e.safetensors")
    assert torch.equal(Entropies.load(tmp_path / "e.safetensors").mean(), found.mean())
    with pytest.raises(ValueError, match="entropies are of one domain"):
        read_entropy(lens, [*samples, *corpus["common"]])


def test_pooled_embeddings_are_those_of_the_whole_image(lens, corpus, tmp_path):
    found = embed_images(lens, corpus, batch_size=2)
    assert found.domain_of == ("common",) * 3 + ("medical",) * 3
    for domain in corpus:
        expected = []
        for image in dict.fromkeys(sample.images[0] for sample in corpus[domain]):
            inputs = lens.encode([image], ["why"]).inputs
            # One picture alone: its first (or only) tile is the overview.
            pixels = inputs["pixel_values"].flatten(0, -4)[:1]
            vision = lens.module.model.vision_tower if hasattr(lens.module, "model") else lens.module.vision_model
            with torch.no_grad():
                expected.append(vision(pixels).pooler_output[0])
        mine = found.vectors[[one == domain for one in found.domain_of]]
        near = torch.cdist(mine.double(), torch.stack(expected).double())
        assert sorted(near.argmin(1).tolist()) == [0, 1, 2]
        assert float(near.min(1).values.max()) < 1e-4
    found.save(tmp_path / "v.safetensors")
    assert torch.equal(Embeddings.load(tmp_path / "v.safetensors").vectors, found.vectors)
    assert len(component_rows(found)) == 6


def test_principal_components_by_the_covariance():
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor([5.0, 3, 1, 1, 1, 1]) + 7
    points, share = principal_components(vectors)
    centred = vectors.double().numpy() - vectors.double().numpy().mean(0)
    values, directions = numpy.linalg.eigh(centred.T @ centred)
    assert share == pytest.approx((values[::-1] / values.sum())[:2])
    for number in range(2):
        other = centred @ directions[:, -1 - number]
        assert min(abs(points[:, number] - other).max(), abs(points[:, number] + other).max()) < 1e-9
    again, _ = principal_components(vectors.flip(0))
    assert again[::-1] == pytest.approx(points)


@pytest.mark.parametrize("name", ["llava_next", "instructblip"])
def test_entropies_of_the_jacobian_lens_are_those_of_the_states_it_maps(corpus, name):
    """unembed(J h) of plain hidden states with torch alone, position by position."""
    lens = tiny_lens(name)
    samples = corpus["medical"][:3]
    made = fit_on_samples(lens, samples)
    found = read_entropy(lens, samples, batch_size=2, fitted=made)
    assert found.parameters["lens"] == "jacobian lens"
    matrices = [made.embedding, *made.jacobian]
    total, counted = torch.zeros(len(matrices), 2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    for sample in samples:
        batch, _ = encode(lens, [sample], "identification")
        assert batch is not None
        logs = plain_distributions(lens, batch, matrices)
        entropy = -(logs.exp() * logs).sum(-1)
        for number, kind in enumerate(("image", "text")):
            chosen = torch.tensor([one == kind for one in batch.kind[0]])
            total[:, number] += entropy[:, chosen].sum(1)
            counted[number] += int(chosen.sum())
    assert torch.equal(found.tokens.sum(0), counted)
    torch.testing.assert_close(found.mean(), total / counted, rtol=1e-4, atol=1e-5)
    plain = read_entropy(lens, samples, batch_size=2)
    assert torch.equal(plain.mean()[-1], found.mean()[-1])
    assert not torch.allclose(plain.mean()[1], found.mean()[1], rtol=1e-3)
