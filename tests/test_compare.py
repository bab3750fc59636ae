"""The comparison of selection methods: against plain transformers with hooks, and formulas written out again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from compared_selectors import drawn_by_tests
from conftest import tiny_lens
from drawn_corpus import write_corpus
from hooks import hooked, neuron_paths

from interventions.errors import InvalidValue, UnknownName
from mmneuron_lens.artifacts.comparison import Compared, NeuronComparison
from mmneuron_lens.batching.prompting import prompt_of
from mmneuron_lens.corpora.folder import Problems, by_domain, open_images, read_folder
from mmneuron_lens.corpora.records import RecordProblems
from mmneuron_lens.evaluation.beyond_random import fraction_of
from mmneuron_lens.evaluation.comparison_claims import comparison_claims
from mmneuron_lens.evaluation.dose_response import doses
from mmneuron_lens.evaluation.faithfulness import areas, curves, faithfulness
from mmneuron_lens.evaluation.specificity import cross_matrix_of, holm, sign_flip, specificities
from mmneuron_lens.experiments import compare as compare_file
from mmneuron_lens.experiments.compare import compare
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.neurons.compared import SHARED, chosen_sets, with_draws, with_strengths
from mmneuron_lens.neurons.observed import observed
from mmneuron_lens.neurons.overlap import half_overlaps, halved, overlaps
from mmneuron_lens.neurons.selectors.registry import selector_named
from mmneuron_lens.runs.compare import compare_stage
from mmneuron_lens.runs.folder import file_of
from mmneuron_lens.runs.store import Store

GENERATION = {"max_new_tokens": 3}


@pytest.fixture(scope="module", params=["llava_next", "instructblip"])
def study(request, tmp_path_factory) -> SimpleNamespace:
    """A tiny model, what was counted, sets of two methods with draws, and their comparison in batches of several."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lens = tiny_lens(request.param)
    corpus = by_domain(read_folder(write_corpus(tmp_path_factory.mktemp("corpus"), images=3))[0])
    seen = observed([count_domain(lens, some) for some in corpus.values()])
    scores = {"dape": selector_named("dape").scores(seen), "drawn": drawn_by_tests(seen, 0)}
    sets = with_strengths(with_draws(chosen_sets(scores, seen.domains, (0.05, 0.2)), 2, 0), (1.0,), (0.2,))
    asked = {domain: some[:3] for domain, some in corpus.items()}
    found = compare(
        lens, sets, asked, methods=("dape", "drawn"), domains=seen.domains, others=(0.2,), accuracy=(0.2,),
        batch_size=2, **GENERATION,
    )  # fmt: skip
    return SimpleNamespace(lens=lens, corpus=corpus, seen=seen, scores=scores, sets=sets, asked=asked, found=found)


def by_hand(lens, sample, one):
    """The answer's log-probability and the last state at the prompt, of one question alone, under plain hooks."""
    prompt = prompt_of(lens, sample, "evaluation")
    tokenizer = lens.processor.tokenizer
    images = open_images(sample, Problems(sample.images[0]))
    given = dict(lens.processor(images=images, text=prompt, return_tensors="pt"))
    answer = tokenizer(prompt + " " + sample.answers[0], add_special_tokens=False)["input_ids"]
    answer = answer[len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
    length = given["input_ids"].shape[1]
    given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([answer])], 1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    hooks = {
        path: lambda out, off=one.masks[site][layer]: torch.where(off, out * (1 + one.strength), out)
        for site, paths in (neuron_paths(lens).items() if one is not None else ())
        if site in one.masks
        for layer, path in enumerate(paths)
    }
    names = dict(lens.module.named_modules())
    norm = next(one for one in ("model.language_model.norm", "language_model.model.norm") if one in names)
    states = []
    with torch.no_grad(), hooked(lens.module, {**hooks, norm: states.append}):
        logits = lens.module(**given).logits[0].double()
    coming = logits[length - 1 : -1].log_softmax(-1)
    return float(sum(coming[place, token] for place, token in enumerate(answer))), states[0][0, :length].double()


def test_every_change_is_that_of_plain_hooks(study):
    found, moved = study.found, 0
    for domain, samples in study.asked.items():
        # The shorter one stands behind padding.
        sample = min(samples, key=lambda one: len(one.question))
        place = found.questions.index((domain, sample.id))
        before, state = by_hand(study.lens, sample, None)
        assert float(found.before[place]) == pytest.approx(before, abs=1e-4)
        for number, one in enumerate(study.sets):
            if one.draw == 0 and one.domain != domain and one.fraction != 0.2:
                assert bool(found.change[number, place].isnan())
                assert bool(found.deviation[number, place].isnan())
                continue
            if bool(found.change[number, place].isnan()):
                assert one.draw > 0
                continue
            after, changed = by_hand(study.lens, sample, one)
            assert float(found.change[number, place]) == pytest.approx(after - before, abs=2e-4), (number, domain)
            ratio = float((state - changed).norm() / state.norm())
            assert float(found.deviation[number, place]) == pytest.approx(ratio, abs=2e-4)
            moved += abs(after - before) > 1e-3
    assert moved > 20


def test_answers_are_generated_where_they_are_asked_for(study):
    found = study.found
    for number, one in enumerate(study.sets):
        for place, (domain, _) in enumerate(found.questions):
            own = one.fraction == 0.2 and one.strength == -1 and one.domain == domain
            if one.draw == 0:
                assert bool(found.right[number, place].isnan()) != own
    assert not bool(found.right_before.isnan().any())


def test_draws_are_matched_and_none_of_what_they_are_matched_to(study):
    sets = study.sets
    for one in sets:
        if one.draw:
            continue
        assert [sets[place].draw for place in one.draws] == [1, 2]
        drawn = [sets[place] for place in one.draws]
        for other in drawn:
            assert (other.neurons, other.strength, other.fraction) == (one.neurons, one.strength, one.fraction)
            assert not any(bool((other.masks[site] & one.masks[site]).any()) for site in one.masks)
            assert other.taken == 0
        different = [bool((drawn[0].masks[site] != drawn[1].masks[site]).any()) for site in one.masks]
        assert any(different) or not sum(one.neurons.values())
    again = with_draws([one for one in sets if one.strength == -1 and not one.draw], 2, 0)
    before = [one for one in sets if one.strength == -1]
    assert all(torch.equal(a.masks[s], b.masks[s]) for a, b in zip(again, before, strict=True) for s in a.masks)


def test_shares_of_draws_and_too_few_left():
    generator = torch.Generator().manual_seed(1)
    scores = {name: {"llm.mlp.act": torch.rand(2, 50, 2, generator=generator).double()} for name in ("a", "b")}
    small = with_draws(chosen_sets(scores, ("x", "y"), (0.05,)), 3)
    # Together 4 x 5 % at most: one group of draws.
    assert {one.draws for one in small if not one.draw} == {(4, 5, 6)}
    assert [one.domain for one in small if one.draw] == ["", "", ""]
    wide = with_draws(chosen_sets(scores, ("x", "y"), (0.2,)), 1)
    union = {one.domain: 0 for one in wide if not one.draw}
    for domain in union:
        masks = [one.masks["llm.mlp.act"] for one in wide if not one.draw and one.domain == domain]
        union[domain] = int(torch.stack(masks).any(0).sum())
    assert all(count > SHARED * 100 for count in union.values())
    assert len({one.draws for one in wide if not one.draw}) == 4
    most = with_draws(chosen_sets({"a": scores["a"]}, ("x", "y"), (0.7,)), 1)
    for one in most[:2]:
        draw = most[one.draws[0]]
        # 30 of 100 are free, and 70 are wanted.
        assert draw.neurons == {"llm.mlp.act": 70}
        assert draw.taken == 40 == int((draw.masks["llm.mlp.act"] & one.masks["llm.mlp.act"]).sum())
    for wrong in ((), (0.1, 0.1), (0.0,), (1.5,)):
        with pytest.raises(InvalidValue, match="fractions are"):
            chosen_sets(scores, ("x", "y"), wrong)


def test_the_most_specific_neurons_are_chosen(study):
    for one in study.sets:
        if one.draw or one.strength != -1:
            continue
        number = study.seen.domains.index(one.domain)
        for site, score in study.scores["dape" if one.method == "dape" else "drawn"].items():
            flat = score[..., number].flatten().tolist()
            order = sorted(range(len(flat)), key=lambda place: (-flat[place], place))
            wanted = [place for place in order[: round(one.fraction * len(flat))] if flat[place] > -torch.inf]
            assert one.masks[site].flatten().nonzero()[:, 0].tolist() == sorted(wanted)
            assert one.wanted[site] == round(one.fraction * len(flat))


def test_what_does_the_same_is_run_once(study, monkeypatch):
    ran = []
    real = type(study.lens).run

    def counted(self, graphs, *given, **settings):
        ran.append(len(graphs))
        return real(self, graphs, *given, **settings)

    monkeypatch.setattr(type(study.lens), "run", counted)
    own = [replace(one, draws=()) for one in study.sets if not one.draw and one.strength == -1 and one.fraction == 0.2]
    nothing = replace(own[0], masks={site: torch.zeros_like(mask) for site, mask in own[0].masks.items()})
    sets = [*own, *(replace(one, method="twin") for one in own), replace(nothing, method="none")]
    domain = own[0].domain
    found = compare(
        study.lens, sets, {domain: study.asked[domain]}, methods=("dape", "drawn", "twin", "none"),
        domains=study.seen.domains, batch_size=4,
    )  # fmt: skip
    # Nothing changed, every different set, and the empty one.
    different = {tuple(mask.numpy().tobytes() for mask in one.masks.values()) for one in own}
    assert ran == [len(different) + 2]
    assert torch.equal(found.change[: len(own)], found.change[len(own) : 2 * len(own)])
    assert not bool(found.change[-1].any())


def test_a_comparison_that_was_stopped_goes_on_to_the_same_bits(study, tmp_path, monkeypatch):
    settings: dict = {
        "methods": ("dape", "random"),
        "fractions": (0.2,),
        "draws": 1,
        "accuracy": (0.2,),
        "batch_size": 2,
    }
    settings |= GENERATION
    whole = compare_stage(study.lens, study.seen, study.asked, Store(None), **settings)
    real, asked = compare_file.encode, []

    def stopped(lens, samples, *given, **how):
        if how.get("answered"):
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append([one.id for one in samples])
        return real(lens, samples, *given, **how)

    monkeypatch.setattr(compare_file, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare_stage(study.lens, study.seen, study.asked, Store(tmp_path), **settings)
    assert not file_of(tmp_path, "comparison", study.lens.name).exists()
    done, asked[:] = len(asked), []
    monkeypatch.setattr(compare_file, "encode", lambda *a, **k: asked.append(1) or real(*a, **k))
    found = compare_stage(study.lens, study.seen, study.asked, Store(tmp_path), **settings)
    steps = sum(-(-len(some) // 2) for some in study.asked.values())
    # Of each batch that was left, once with the answer and once without.
    assert len(asked) == 2 * (steps - done)
    for one in (found, NeuronComparison.load(file_of(tmp_path, "comparison", study.lens.name))):
        assert (one.conditions, one.questions, one.parameters) == (whole.conditions, whole.questions, whole.parameters)
        for name, value in whole.packed()[0].items():
            assert torch.equal(getattr(one, name).nan_to_num(9), value.nan_to_num(9)), name
    said = []
    compare_stage(study.lens, study.seen, study.asked, Store(tmp_path, say=said.append), **settings)
    assert said == [f"already done: {study.lens.name}: comparing the neurons of dape with random ones"]
    with pytest.raises(InvalidValue, match=r"fractions 0 is|holds another value"):
        compare_stage(study.lens, study.seen, study.asked, Store(tmp_path), **{**settings, "seed": 1})


def test_a_question_without_an_answer_is_named_and_left_out(study):
    domain = next(iter(study.asked))
    first, second, _ = study.asked[domain]
    problems = RecordProblems(first.images[0])
    asked = {domain: [replace(first, answers=()), second]}
    sets, domains = [replace(study.sets[0], draws=())], study.seen.domains
    found = compare(study.lens, sets, asked, methods=("dape",), domains=domains, problems=problems)
    assert found.questions == ((domain, second.id),)
    assert "it has no answer, so that of the right one cannot be read" in str(problems)


def test_what_cannot_be_compared_is_refused(study):
    run = {"store": Store(None), "samples_by_domain": study.asked}
    for methods, error, says in (
        (("random",), InvalidValue, "give one or more beside random"),
        (("dape", "dape"), InvalidValue, "each once"),
        (("dap",), UnknownName, "dape"),
    ):
        with pytest.raises(error, match=says):
            compare_stage(study.lens, study.seen, methods=methods, **run)
    with pytest.raises(InvalidValue, match="accuracy is asked for at"):
        compare_stage(study.lens, study.seen, methods=("dape",), fractions=(0.1,), accuracy=(0.01,), **run)


def test_overlaps_are_those_of_sets(study):
    own = [one for one in study.sets if not one.draw and one.strength == -1]
    rows = overlaps(study.sets[: len(own)])
    assert len(rows) == len(own) // 2
    for row in rows:
        pair = [
            {(site, int(place)) for site, mask in one.masks.items() for place in mask.flatten().nonzero()[:, 0]}
            for one in own
            if (one.domain, one.fraction) == (row["domain"], row["fraction"])
        ]
        assert (row["shared"], row["either"]) == (len(pair[0] & pair[1]), len(pair[0] | pair[1]))
    first, second = halved(study.seen)
    for whole, one, other in zip(study.seen.counts, first.counts, second.counts, strict=True):
        for site, active in whole.active.items():
            assert torch.equal(one.active[site] + other.active[site], active)
            assert not bool(((one.tokens[site] > 0) & (other.tokens[site] > 0)).any())
            assert bool((one.tokens[site] > 0).any()) == bool((other.tokens[site] > 0).any()) or active.sum() == 0
    same = half_overlaps(own, own)
    assert all(row["shared"] == row["either"] and row["other"] == "half" for row in same)


# The evaluation: a made comparison, and every number again with plain loops.

FRACTIONS = (0.01, 0.1)


@pytest.fixture(scope="module")
def made() -> NeuronComparison:
    """Two methods and domains at two fractions, three draws each, eight questions a domain, of random numbers."""
    noise = numpy.random.default_rng(3)
    domains, conditions = ("x", "y"), []
    for method in ("a", "b"):
        for fraction in FRACTIONS:
            for domain in domains:
                place = 8 + 3 * len(conditions)
                conditions.append(
                    Compared(method, domain, fraction, {"s": 5}, {"s": 5}, draws=(place, place + 1, place + 2))
                )
    for one in list(conditions):
        conditions += [Compared("random", one.domain, one.fraction, {"s": 5}, draw=draw) for draw in (1, 2, 3)]
    questions = tuple((domain, f"q{number}") for domain in domains for number in range(8))
    change = noise.normal(0, 0.1, (len(conditions), len(questions))).astype("float32")
    # The neurons that method a gives for x matter to x.
    change[[0, 2], :8] -= 1.0
    change[5, 8:] += 2.0
    unknown = torch.full((len(conditions), len(questions)), torch.nan)
    return NeuronComparison(
        "m", domains, ("a", "b"), tuple(conditions), questions, -torch.ones(16), torch.from_numpy(change),
        torch.from_numpy(change).abs(), torch.full((16,), torch.nan), unknown,
    )  # fmt: skip


def differences(made, place, domain):
    """Question by question: the change less the mean of the three draws."""
    asked = [number for number, (own, _) in enumerate(made.questions) if own == domain]
    found = []
    for question in asked:
        draws = [float(made.change[draw, question]) for draw in made.conditions[place].draws]
        found.append(float(made.change[place, question]) - sum(draws) / 3)
    return found


def resampled(values, statistic, count=20000):
    noise = numpy.random.default_rng(11)
    drawn = [statistic(*[numpy.array(one)[noise.integers(0, 8, (8,))] for one in values]) for _ in range(count)]
    return numpy.percentile(drawn, [2.5, 97.5])


def test_curves_and_areas_by_hand(made):
    frame, area = curves(made), areas(made)
    assert len(frame) == 8 * 2
    own, others = (
        frame.filter((frame["method"] == "a") & (frame["domain"] == "x") & (frame["on"] == on)).sort("fraction")
        for on in ("own", "others")
    )
    row = own.row(0, named=True)
    assert row["difference"] == pytest.approx(numpy.mean(differences(made, 0, "x")), abs=1e-6)
    assert row["change"] == pytest.approx(float(made.change[0, :8].mean()), abs=1e-6)
    assert row["difference"] == pytest.approx(row["change"] - row["random"], abs=1e-6)
    low, high = resampled([differences(made, 0, "x")], lambda one: one.mean(), 4000)
    assert (row["difference_low"], row["difference_high"]) == (
        pytest.approx(low, abs=0.02),
        pytest.approx(high, abs=0.02),
    )
    others = frame.filter((frame["method"] == "a") & (frame["domain"] == "x") & (frame["on"] == "others"))
    assert others.sort("fraction")["difference"][0] == pytest.approx(numpy.mean(differences(made, 0, "y")), abs=1e-6)
    one = area.filter((area["method"] == "a") & (area["domain"] == "x") & (area["on"] == "own")).row(0, named=True)
    first, second = differences(made, 0, "x"), differences(made, 2, "x")
    # One decade between the two fractions, so the trapezoid is the mean of its two sides.
    each = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
    assert one["area"] == pytest.approx(numpy.mean(each), abs=1e-6)
    low, high = resampled([each], lambda some: some.mean(), 4000)
    assert [one["area_low"], one["area_high"]] == pytest.approx([low, high], abs=0.02)
    assert (one["first"], one["last"], one["questions"]) == (0.01, 0.1, 8)
    single = replace(
        made, conditions=tuple(replace(one, fraction=0.01) for one in made.conditions[:2]), change=made.change[:2]
    )
    assert fraction_of(single) == 0.01


def test_matrix_specificity_and_tests_by_hand(made):
    frame = cross_matrix_of(made, 0.01).filter(cross_matrix_of(made, 0.01)["method"] == "a")
    cells = {(row["neurons_of"], row["domain"]): row for row in frame.iter_rows(named=True)}
    expected = {}
    for place, own in ((0, "x"), (1, "y")):
        for domain in ("x", "y"):
            expected[own, domain] = differences(made, place, domain)
    for pair, values in expected.items():
        assert cells[pair]["change"] == pytest.approx(numpy.mean(values), abs=1e-6)
        flips = [abs(numpy.mean(numpy.array(values) * signs)) for signs in itertools.product((1, -1), repeat=8)]
        exact = numpy.mean([flip >= abs(numpy.mean(values)) - 1e-12 for flip in flips])
        assert cells[pair]["p"] == pytest.approx(exact, abs=1e-9)
        assert sign_flip(numpy.array(values)) == pytest.approx(exact, abs=1e-9)
    assert cells["x", "x"]["p"] == pytest.approx(2 / 256)
    adjusted = [cells[pair]["p_holm"] for pair in cells]
    assert adjusted == pytest.approx(adjusted_by_rejection([cells[pair]["p"] for pair in cells]), abs=2e-4)
    found = specificities(made, 0.01)
    row = found.filter((found["method"] == "a") & (found["domain"] == "x")).row(0, named=True)
    own, other = numpy.array(expected["x", "x"]), numpy.array(expected["x", "y"])
    assert row["specificity"] == pytest.approx(own.mean() - other.mean(), abs=1e-6)
    low, high = resampled([own, other], lambda a, b: a.mean() - b.mean(), 4000)
    assert (row["specificity_low"], row["specificity_high"]) == (
        pytest.approx(low, abs=0.02),
        pytest.approx(high, abs=0.02),
    )


def adjusted_by_rejection(values):
    """Holm's procedure as its text says it, at every level: the smallest level at which each is rejected."""
    levels = numpy.linspace(0, 1, 10001)
    found = [1.0] * len(values)
    for level in reversed(levels):
        order = sorted(range(len(values)), key=lambda place: values[place])
        for step, place in enumerate(order):
            if values[place] > level / (len(values) - step):
                break
            found[place] = level
    return found


def test_holm_where_it_is_hard():
    values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.03]
    assert holm(values) == pytest.approx(adjusted_by_rejection(values), abs=2e-4)
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_claims_hold_or_not_or_are_not_decided(made):
    said = {one.number: one.findings[0] for one in comparison_claims([made])}
    assert said["a x"].verdict == "holds"
    assert said["a x"].value == pytest.approx(numpy.mean(differences(made, 0, "x")), abs=1e-6)
    assert said["b y"].verdict == "does not hold"
    assert said["b x"].verdict == "not decided"
    # Neurons that change nothing do not matter more than random ones that help when they are off.
    change = made.change.clone()
    change[0, :8], change[list(made.conditions[0].draws), :8] = 0, 0.5
    finding = {one.number: one.findings[0] for one in comparison_claims([replace(made, change=change)])}["a x"]
    assert finding.high is not None
    assert finding.high < 0
    assert finding.verdict == "not decided"


def test_doses_and_faithfulness(study):
    frame = doses(study.found)
    assert set(frame["strength"]) == {-1.0, 1.0}
    assert set(frame["fraction"]) == {0.2}
    one = frame.filter((frame["method"] == "drawn") & (frame["strength"] == 1.0)).row(0, named=True)
    place = study.found.place("drawn", one["domain"], 0.2, 1.0)
    values = study.found.change[place, study.found.asked(one["domain"])]
    assert one["change"] == pytest.approx(float(values.double().mean()), abs=1e-6)
    clean, without, only = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -6.0]), torch.tensor([-2.0, -3.0])
    assert faithfulness(clean, without, only) == pytest.approx((0.5 + 0.75) / 2)
    with pytest.raises(InvalidValue, match="change nothing on 1 of 2 questions"):
        faithfulness(clean, torch.tensor([-1.0, -6.0]), only)


def test_a_damaged_comparison_is_refused(made, tmp_path):
    made.save(tmp_path / "c.safetensors")
    again = NeuronComparison.load(tmp_path / "c.safetensors")
    assert (again.conditions, again.questions) == (made.conditions, made.questions)
    assert again.to_frame().equals(made.to_frame())
    broken = {
        "right has values beside 0 and 1": {"right": torch.full_like(made.right, 0.5)},
        "deviation has values below 0": {"deviation": -made.deviation - 1},
        "of other questions": {"deviation": torch.full_like(made.deviation, torch.nan)},
        "before has log-probabilities above 0": {"before": torch.ones(16)},
        "name one of them twice": {"questions": (made.questions[0],) * 16},
        "is no domain of it": {"questions": (("z", "q"), *made.questions[1:])},
        "is not matched to it": {"conditions": (replace(made.conditions[0], draws=(1,)), *made.conditions[1:])},
        "of 32 conditions": {"conditions": (replace(made.conditions[0], draws=(99,)), *made.conditions[1:])},
        "was not compared": {"conditions": (replace(made.conditions[0], method="c"), *made.conditions[1:])},
        "outside": {"conditions": (replace(made.conditions[0], fraction=2.0), *made.conditions[1:])},
        "not torch.float32": {"change": made.change.double()},
    }
    for says, fields in broken.items():
        with pytest.raises(InvalidValue, match=says):
            replace(made, **fields).check()


def test_padding_and_the_answer_do_not_move_the_state():
    before, after = torch.tensor([[[9.0], [3.0], [4.0], [7.0]]]), torch.tensor([[[1.0], [3.0], [1.0], [0.0]]])
    moved = compare_file.state_change(after, before, torch.tensor([[0, 1, 1, 1]]), prompt=3)
    assert moved.tolist() == pytest.approx([3 / 5])
