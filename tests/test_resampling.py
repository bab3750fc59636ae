"""Neurons turned up or given other samples' values, and attention cut by kinds of positions, against plain hooks."""

from __future__ import annotations

import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens

from interventions import (
    amplify_neurons,
    keep,
    knock_out_attention,
    per_layer,
    resample_ablate_neurons,
    zero_neurons,
)
from interventions.attention import layers_around
from interventions.errors import InvalidValue, OutOfRange, UnknownName
from mmneuron_lens.experiments.knock_out import knock_out_curve, knocked_out, part_of
from mmneuron_lens.experiments.resampling import Bank, bank_of

NEURONS = torch.arange(3 * 48).reshape(3, 48) % 3 == 0


def downs(lens) -> list[str]:
    return [path for _, path in lens.architecture.place("llm.mlp.post").paths()]


def with_inputs(lens, change, batch) -> torch.Tensor:
    """Logits with `change(layer, z)` as what each down projection is given."""
    handles = [
        lens.module.get_submodule(path).register_forward_pre_hook(
            lambda _module, inputs, layer=layer: (change(layer, inputs[0]),)
        )
        for layer, path in enumerate(downs(lens))
    ]
    with torch.no_grad():
        logits = lens.module(**batch.inputs).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("strength", [-1.5, -1.0, 0.0, 2.0])
def test_amplification_scales_what_the_down_projection_is_given(lens, strength):
    batch = mixed_batch(lens)
    graph = amplify_neurons.bind(neurons=per_layer(NEURONS), strength=strength)
    expected = with_inputs(lens, lambda layer, z: z + strength * z * NEURONS[layer], batch)
    found = lens.run(graph, batch, logits=True).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if strength == -1:
        off = zero_neurons.bind(neurons=per_layer(NEURONS)).at("llm.mlp.post")
        assert torch.equal(found, lens.run(off, batch, logits=True).logits[0])


def test_resampled_neurons_take_the_values_of_the_bank(lens):
    others = [lens.encode(pictures((32, 32), seed=one), ["what is that thing?"]) for one in (5, 6)]
    bank, batch = bank_of(lens, others, size=7), mixed_batch(lens)
    drawn = bank.draw(batch, seed=3)
    draw = drawn.fields["llm"]["draw"]
    graph = resample_ablate_neurons.bind(neurons=per_layer(NEURONS), bank=per_layer(bank.values)).at(steps="prompt")

    def resampled(layer, z):
        z = z.clone()
        for row in range(z.shape[0]):
            for token in range(z.shape[1]):
                z[row, token, NEURONS[layer]] = bank.values[layer, draw[row, token], NEURONS[layer]]
        return z

    real = batch.fields["llm"]["weight"] > 0
    expected = with_inputs(lens, resampled, batch)[real]
    torch.testing.assert_close(lens.run(graph, drawn, logits=True).logits[0][real], expected, rtol=1e-4, atol=1e-4)
    plain = with_inputs(lens, lambda _layer, z: z, batch)[real]
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_a_bank_holds_values_of_its_batches_by_kind(lens):
    others = [lens.encode(pictures((40, 56), seed=one), ["what?"]) for one in (5, 6)]
    bank = bank_of(lens, others, size=4, seed=1)
    assert bank.values.shape == (3, 2 * (4 + 4), 48)
    assert bank.kinds.bincount().tolist() == [8, 8]
    start = 0
    for batch in others:
        values = lens.run(keep.at("llm.mlp.post"), batch)["keep", "llm.mlp.post"][0]
        for number in range(2):
            inside = values[:, batch.fields["llm"]["kind"][..., number]]
            for one in (start + (bank.kinds[start : start + 8] == number).nonzero().flatten()).tolist():
                assert (inside == bank.values[:, one, None]).all(-1).all(0).any()
        start += 8


def test_a_bank_has_every_position_once_at_most_and_no_padding(lens):
    batch = mixed_batch(lens)
    bank = bank_of(lens, batch, size=10**6)
    assert len(bank.kinds) == bank.values.shape[1] == int((batch.fields["llm"]["weight"] > 0).sum())


def test_a_position_is_given_values_of_its_own_kind_the_same_with_the_same_seed(lens):
    bank, batch = bank_of(lens, lens.encode(pictures((32, 32), seed=5), ["what is it?"]), size=6), mixed_batch(lens)
    draw = bank.draw(batch, seed=1).fields["llm"]["draw"]
    real, kind = batch.fields["llm"]["weight"] > 0, batch.fields["llm"]["kind"].int().argmax(-1)
    assert torch.equal(bank.kinds[draw][real], kind[real])
    assert len(draw[real].unique()) > len(bank.kinds) / 2
    assert torch.equal(draw, bank.draw(batch, seed=1).fields["llm"]["draw"])
    assert not torch.equal(draw, bank.draw(batch, seed=2).fields["llm"]["draw"])


def test_a_bank_without_a_kind_that_is_needed_is_refused(lens):
    whole, batch = bank_of(lens, mixed_batch(lens), size=3), mixed_batch(lens)
    text = whole.kinds == 1
    with pytest.raises(InvalidValue, match="This batch has image positions and the bank has none"):
        Bank(whole.values[:, text], whole.kinds[text]).draw(batch)


def test_generated_tokens_have_no_draw_and_it_says_so(lens):
    bank, batch = bank_of(lens, mixed_batch(lens), size=3), mixed_batch(lens)
    graph = resample_ablate_neurons.bind(neurons=per_layer(NEURONS), bank=per_layer(bank.values))
    with pytest.raises(UnknownName, match=r"field 'draw' is not known for generated tokens; narrow"):
        lens.generate(graph, bank.draw(batch), max_new_tokens=2)
    assert len(lens.generate(graph.at(steps="prompt"), bank.draw(batch), max_new_tokens=2).text) == 3


def test_parts_of_a_prompt():
    lens = tiny_lens("llava_next")
    batch = lens.encode(pictures((40, 56), (32, 32)), ["ab <image> is it red?", "<image> why"])
    kinds = batch.kind
    expected = {name: [[False] * len(row) for row in kinds] for name in ("image", "text", "question", "last")}
    for row, names in enumerate(kinds):
        for column, name in enumerate(names):
            if name in ("image", "text"):
                expected[name][row][column] = True
        expected["last"][row][-1] = True
        for column in range(max(c for c, n in enumerate(names) if n == "image") + 1, len(names) - 1):
            expected["question"][row][column] = True
    for name, marks in expected.items():
        assert part_of(batch, name).tolist() == marks, name
    assert part_of(batch, "question")[0].sum() == len(" is it red?") - 1


def test_image_to_question_is_cut_in_a_window():
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    cut = knocked_out(lens, batch, queries="question", keys="image", around=2, window=2)
    assert cut.layers == (1, 2)
    real, kinds = batch.inputs["attention_mask"].bool(), batch.kind
    length = real.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, :]
    for row, names in enumerate(kinds):
        end = max(column for column, name in enumerate(names) if name == "image")
        for query in range(end + 1, length - 1):
            for key in range(length):
                if names[key] == "image":
                    allowed[row, query, key] = False

    def masked(_module, positional, keywords):
        return positional, {**keywords, "attention_mask": allowed[:, None]}

    paths = [path for _, path in lens.architecture.place("llm.attention.mask").paths()]
    handles = [
        lens.module.get_submodule(path).register_forward_pre_hook(masked, with_kwargs=True) for path in paths[1:]
    ]
    with torch.no_grad():
        expected = lens.module(**batch.inputs).logits
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        plain = lens.module(**batch.inputs).logits
    found = lens.run(cut, batch, logits=True).logits[0]
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain[:, -1], expected[:, -1], atol=1e-2)


def test_a_curve_is_the_formula_over_questions_answered_right():
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    with torch.no_grad():
        plain = lens.module(**batch.inputs).logits[:, -1].double().softmax(-1)
    answers = plain.argmax(-1).tolist()
    answers[1] = (answers[1] + 1) % 101
    found = knock_out_curve(lens, batch, answers, queries="last", keys="image", window=2)
    assert found.columns == ["layer", "first", "last", "change", "low", "high", "questions"]
    assert found.select("first", "last").rows() == [(0, 0), (0, 1), (1, 2)]
    assert found["questions"].to_list() == [2, 2, 2]
    for layer, first, last, change in found.select("layer", "first", "last", "change").iter_rows():
        cut = knock_out_attention.bind(queries=part_of(batch, "last"), keys=part_of(batch, "image"))
        left = lens.run(cut.at(layers=range(first, last + 1)), batch, logits=True).logits[0][:, -1].double().softmax(-1)
        losses = [100 * (left[row, answers[row]] / plain[row, answers[row]] - 1) for row in (0, 2)]
        assert change == pytest.approx(float(sum(losses)) / 2, rel=1e-4), layer
    assert found["change"].abs().max() > 1
    with pytest.raises(InvalidValue, match="The batch has 3 rows, and there are 2 answers"):
        knock_out_curve(lens, batch, answers[:2], queries="last", keys="image")
    wrong = [(one + 1) % 101 for one in plain.argmax(-1).tolist()]
    with pytest.raises(InvalidValue, match="answers none of these rows right"):
        knock_out_curve(lens, batch, wrong, queries="last", keys="image")


def test_windows_are_clipped_at_the_ends_and_say_so():
    assert [list(layers_around(layer, 3, 5)) for layer in (0, 2, 4, -1)] == [[0, 1], [1, 2, 3], [3, 4], [3, 4]]
    assert list(layers_around(5, 4, 32)) == [3, 4, 5, 6]
    assert list(layers_around(1, 9, 3)) == [0, 1, 2]
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    whole = knocked_out(lens, batch, queries="last", keys="image", around=1, window=3)
    clipped = knocked_out(lens, batch, queries="last", keys="image", around=0, window=3)
    assert whole.name == "image to last cut in layers 0 to 2"
    assert clipped.name == "image to last cut in layers 0 to 1, a window of 3 clipped"
    assert knocked_out(lens, batch, queries="last", keys="image").layers is None
    assert knocked_out(lens, batch, queries="last", keys="image", layers=[0, 2]).layers == (0, 2)


def test_what_could_not_be_cut_is_refused():
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    with pytest.raises(UnknownName, match=r"Unknown part 'images'. Did you mean 'image'"):
        knocked_out(lens, batch, queries="last", keys="images")
    with pytest.raises(InvalidValue, match="around and layers both say where"):
        knocked_out(lens, batch, queries="last", keys="image", around=1, layers=[1])
    with pytest.raises(OutOfRange, match="There is no layer 3; there are 0 to 2"):
        knocked_out(lens, batch, queries="last", keys="image", around=3)
    with pytest.raises(InvalidValue, match="a window has at least 1 layer"):
        layers_around(1, 0, 3)
    with pytest.raises(InvalidValue, match="Row 0 of this batch has no image positions"):
        part_of(lens.encode(None, ["a question alone"]), "image")
    packed = lens.pack([(pictures((32, 32)), ["is it red?", "why"])])
    with pytest.raises(InvalidValue, match="A packed batch has several prompts in a row"):
        part_of(packed, "last")


def test_generated_tokens_are_cut_off_too_where_that_is_asked():
    lens = tiny_lens("llava_next")
    batch = mixed_batch(lens)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6}
    answers = [
        lens.generate(knocked_out(lens, batch, queries="last", keys="image", generated=flag), batch, **settings)
        for flag in (False, True)
    ]
    assert all(len(one.text) == 3 for one in answers)
    assert [a.tolist() for a in answers[0].tokens] != [a.tolist() for a in answers[1].tokens]
