"""The dispatcher and its artifact: what is scored, what is named and skipped, and what comes back from disk."""

from __future__ import annotations

import pytest

from mmneuron_lens.artifacts.format import ArtifactError, write_artifact
from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import METRICS, MetricError, Scores, score
from mmneuron_lens.metrics.intervals import estimate


def document(name: str, *answers: str) -> Sample:
    return Sample(name, "document", (), "?", answers, kind="form")


SAMPLES = [document("1", "invoice"), document("2", "12 May"), document("3", "total")]
ANSWERS = {"1": "Invoice", "2": "12 Mai", "3": "nothing"}


def test_every_question_and_all_together():
    scores = score("DocVQA", SAMPLES, ANSWERS, seed=3, facts={"model": "tiny"})
    assert scores.by_question == pytest.approx({"1": 1.0, "2": 1 - 1 / 6, "3": 0.0})
    assert scores.overall == estimate(scores.scores, seed=3)
    assert scores.by_kind == {"form": scores.overall}
    assert (scores.corpus, scores.metric) == ("DocVQA", "ANLS")
    assert scores.parameters == {
        "tau": 0.5,
        "boundary": "strict",
        "interval": "percentile bootstrap over questions",
        "confidence": 0.95,
        "resamples": 2000,
        "seed": 3,
    }
    assert scores.provenance["model"] == "tiny"
    assert "torch" in scores.provenance["versions"]


@pytest.mark.parametrize("name", [*METRICS, "vqav2", "PMC_VQA", "doc vqa", "lingoqa", "rsvqa-hr", "RSVQA_LR"])
def test_a_corpus_is_known_by_any_writing_of_its_name(name):
    with pytest.raises(MetricError, match=r": not one answer can be scored, 0 skipped\.$"):
        score(name, [], {})


def test_unknown_corpora_and_parameters_list_the_choices():
    with pytest.raises(MetricError, match=r"corpus 'gqa'; choose from VQAv2, PMC-VQA, DocVQA, LingoQA, RSVQA\."):
        score("gqa", SAMPLES, ANSWERS)
    with pytest.raises(MetricError, match=r"DocVQA has no parameter 'threshold'; choose from tau, boundary\."):
        score("DocVQA", SAMPLES, ANSWERS, threshold=1.0)
    with pytest.raises(MetricError, match=r"mode is 'loose'; choose from official, evalai\."):
        score("VQAv2", [document("1", *["a"] * 10)], {"1": "a"}, mode="loose")


def test_a_parameter_reaches_the_metric():
    sample, said = document("1", *["Two"] * 10), {"1": "2"}
    assert score("VQAv2", [sample], said).scores == (0.0,)
    assert score("VQAv2", [sample], said, mode="evalai").scores == (1.0,)
    assert score("DocVQA", [document("1", "abc")], {"1": "axyzw"}, tau=1.0).scores == pytest.approx((0.2,))


def test_what_cannot_be_scored_is_named_and_the_rest_counts():
    samples = [*SAMPLES, document("1", "again"), document("4"), document("5", "late"), document("6", "number")]
    scores = score("DocVQA", samples, ANSWERS | {"4": "x", "6": 7, "99": "y"})  # pyright: ignore
    assert scores.ids == ("1", "2", "3")
    assert scores.skipped == (
        "sample '1' stands there twice; the first is scored.",
        "sample '4' has no accepted answers; use a split that publishes them.",
        "sample '5' has no answer; ask it, or leave it out.",
        "sample '6' has the answer 7, not a text.",
        "answer '99' belongs to no sample; score it with its corpus.",
    )
    assert scores.overall == score("DocVQA", SAMPLES, ANSWERS).overall


def test_nothing_to_score_says_why():
    with pytest.raises(MetricError, match=r"1 skipped\. The first: sample '1' has 1 human answer where VQAv2 has ten;"):
        score("VQAv2", [document("1", "yes")], {"1": "yes"})


def test_what_is_saved_comes_back_and_has_the_same_bytes(tmp_path):
    scores = score("DocVQA", [*SAMPLES, document("9", "x")], ANSWERS, facts={"selection": "abc"})
    scores.save(tmp_path / "one.safetensors")
    again = Scores.load(tmp_path / "one.safetensors")
    assert again == scores
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_another_artifact_is_refused(tmp_path):
    write_artifact(tmp_path / "counts.safetensors", "counts", {}, {})
    with pytest.raises(ArtifactError, match=r"kind is 'counts', not 'scores'"):
        Scores.load(tmp_path / "counts.safetensors")


def test_two_conditions_are_compared_question_by_question():
    none = score("DocVQA", SAMPLES, ANSWERS)
    off = score("DocVQA", SAMPLES, ANSWERS | {"1": "?"})
    assert off.minus(none).value == pytest.approx(-100 / 3)
    assert off.minus(none).questions == 3
    assert off.minus(none, of_kinds=True) == off.minus(none)
    with pytest.raises(ValueError, match=r"cannot be compared; score both with the same metric and parameters\."):
        off.minus(score("DocVQA", SAMPLES, ANSWERS, boundary="inclusive"))


def test_they_show_themselves():
    scores = score("DocVQA", [*SAMPLES, document("9", "x")], ANSWERS)
    first, second, last = str(scores).split("\n")
    assert first == f"DocVQA: ANLS {scores.overall}"
    assert second == f"  form: {scores.overall}"
    assert last == "  skipped: 1"
    assert f"<td>ANLS</td><td>{scores.overall}</td>" in scores._repr_html_()
