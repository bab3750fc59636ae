"""Knock-out curves of a domain: against attention masks edited by hand, and what is kept, drawn and refused."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from conftest import tiny_lens
from drawn_corpus import write_corpus

from interventions import Graph
from interventions.errors import InvalidValue
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Memory
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments import flow
from mmneuron_lens.experiments.flow import flow_rows, read_flow
from mmneuron_lens.lens import Lens
from mmneuron_lens.report import figures
from mmneuron_lens.report.flow_figure import flow_figure


def answered(lens, samples):
    """The samples with what the model says as the accepted answer, but for the first."""
    found = []
    for number, sample in enumerate(samples):
        batch, _ = encode(lens, [sample], "evaluation")
        assert batch is not None
        (text,) = lens.generate(Graph(), batch, max_new_tokens=flow.NEW_TOKENS, do_sample=False).text
        found.append(replace(sample, answers=("not this",) if number == 0 else ("neither", text)))
    return found


@pytest.fixture(scope="module", params=["llava_next", "instructblip"])
def asked(request, tmp_path_factory):
    """A lens, questions of one domain of which it answers all but the first, and their curves."""
    lens = tiny_lens(request.param)
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), ("medical",), images=2)
    samples = answered(lens, by_domain(read_folder(folder)[0])["medical"])
    return lens, samples, read_flow(lens, samples, window=2, batch_size=3)


def by_hand(lens, batch, queries, keys, layers):
    """The next token's distribution of one question, its mask made by hand: causal, and the queries blind to the keys
    in some layers.
    """
    length = batch.prompt_length
    cut = queries[:, None] & keys[None] & ~torch.eye(length, dtype=torch.bool)
    language = lens.module.model if hasattr(lens.module, "model") else lens.module.language_model.model
    blocks = getattr(language, "language_model", language).layers

    def masked(layer):
        def before(_, positional, keywords):
            allowed = torch.ones(length, length, dtype=torch.bool).tril()
            allowed = allowed & ~cut if layer in layers else allowed
            return positional, {**keywords, "attention_mask": allowed[None, None]}

        return before

    handles = [
        block.self_attn.register_forward_pre_hook(masked(layer), with_kwargs=True) for layer, block in enumerate(blocks)
    ]
    with torch.no_grad():
        logits = lens.module(**batch.inputs).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits.double().softmax(-1)


def test_every_curve_is_a_mask_edited_by_hand(asked):
    lens, samples, found = asked
    assert found.questions == tuple(sorted(one.id for one in samples[1:]))
    assert found.routes == ("image to question", "image to last", "question to last")
    assert (found.asked, found.missing, found.cut.shape) == (4, "", (3, 3, 3))
    by_id, worst = {one.id: one for one in samples}, 0.0
    for number, name in enumerate(found.questions):
        batch, _ = encode(lens, [by_id[name]], "evaluation")
        assert batch is not None
        token, length = int(found.tokens[number]), batch.prompt_length
        image = torch.tensor([kind == "image" for kind in batch.kind[0]])
        last = torch.arange(length) == length - 1
        question = (torch.arange(length) > int(image.nonzero().max())) & ~last
        plain = by_hand(lens, batch, last, image, ())
        assert token == int(plain.argmax())
        assert float(found.plain[number]) == pytest.approx(float(plain[token]), rel=1e-4)
        for route, (queries, keys) in enumerate(((question, image), (last, image), (last, question))):
            for layer, layers in enumerate(((0,), (0, 1), (1, 2))):
                left = by_hand(lens, batch, queries, keys, layers)[token]
                assert float(found.cut[route, layer, number]) == pytest.approx(float(left), rel=1e-3)
                change = float(100 * (left - plain[token]) / plain[token])
                assert float(found.change()[route, layer, number]) == pytest.approx(change, rel=1e-2, abs=1e-2)
                worst = max(worst, abs(change))
    assert worst > 1


def test_stopped_it_goes_on_and_gives_the_same_bits(asked, monkeypatch):
    lens, samples, found = asked
    keeper, real, left = Memory(), flow._probabilities, [1]

    def stopping(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(*arguments)

    monkeypatch.setattr(flow, "_probabilities", stopping)
    with pytest.raises(KeyboardInterrupt):
        read_flow(lens, samples, window=2, batch_size=3, keeper=keeper)
    calls = []
    monkeypatch.setattr(flow, "_probabilities", lambda *some: calls.append(1) or real(*some))
    again = read_flow(lens, samples, window=2, batch_size=3, keeper=keeper)
    assert len(calls) == 1
    assert again.questions == found.questions
    assert torch.equal(again.cut, found.cut)
    assert torch.equal(again.plain, found.plain)


def test_rows_are_means_over_questions_with_intervals(asked):
    frame = flow_rows([asked[2]])
    assert frame.columns == ["model", "domain", "route", "layer", "change", "low", "high", "questions"]
    assert len(frame) == 9
    row = frame.row(5, named=True)
    assert (row["route"], row["layer"], row["questions"]) == ("image to last", 2, 3)
    values = asked[2].change()[1, 2]
    assert row["change"] == pytest.approx(float(values.mean()))
    assert row["low"] <= row["change"] <= row["high"]
    assert row["low"] == pytest.approx(float(values.min()))
    assert row["high"] == pytest.approx(float(values.max()))


def test_what_cannot_be_measured_says_why(asked, monkeypatch):
    lens, samples, _ = asked
    wrong = read_flow(lens, [samples[0]])
    assert wrong.missing == "it answers none of 1 questions right."
    assert (wrong.questions, wrong.window) == ((), 1)
    assert wrong.cut.shape == (3, 3, 0)
    assert flow_rows([wrong]).is_empty()
    monkeypatch.setattr(Lens, "attention", property(lambda _: "flash_attention_2"))
    uncut = read_flow(lens, samples)
    assert uncut.missing.startswith("it runs flash_attention_2 attention, which takes no mask; load it with")
    uncut.check()
    with pytest.raises(InvalidValue, match="knock-out curves are of one domain"):
        read_flow(lens, [])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figure_has_a_panel_a_domain_and_a_line_a_route(asked, theme):
    rows = flow_rows([asked[2]])
    frame = pl.concat([rows.with_columns(pl.lit(name).alias("domain")) for name in ("medical", "common", "$x$")])
    drawn = flow_figure(frame, theme)
    assert [axis.get_title("left") for axis in drawn.axes] == ["Medical", "Common Scenes", "$x$"]
    for axis in drawn.axes:
        lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 3]
        assert [line.get_ydata().tolist() for line in lines] == [
            frame.filter((pl.col("domain") == "medical") & (pl.col("route") == route))["change"].to_list()
            for route in frame["route"].unique(maintain_order=True)
        ]
        assert len(axis.collections) == 3
    assert figures.png(drawn)[:4] == b"\x89PNG"
