"""Lingo-Judge: its whole path on a tiny model of the published class, against plain transformers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from mmneuron_lens.corpora.sample import Sample
from mmneuron_lens.metrics import LingoJudge, MetricError, Scores, score

with warnings.catch_warnings():
    # The published class's own module still uses torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

QUESTION = "Is the Light Red?"
PREDICTIONS = ("Yes", " no, it is GREEN ", "stop", "a lorry ahead", "I slow down", "")


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_judge(tmp_path_factory.mktemp("tiny-judge"))


def tiny_judge(path: Path) -> Path:
    """A judge with its tokenizer, saved in a folder."""
    torch.manual_seed(3)
    config = DebertaV2Config(
        vocab_size=101,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=160,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        num_labels=1,
        initializer_range=0.5,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def judge(folder) -> LingoJudge:
    return LingoJudge.load(folder)


def plain_logit(folder, question: str, reference: str, prediction: str) -> float:
    """One pair at a time, with plain transformers and no padding; the text is written out."""
    read = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = "[CLS]\nQuestion: " + question + "\nAnswer: " + reference.lower().strip()
    text += "\nStudent: " + prediction.lower().strip()
    tokens = read(text)["input_ids"]
    tokens = tokens if len(tokens) <= 128 else [*tokens[:127], read.sep_token_id]
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([tokens])).logits[0, 0])


def sample(name: str, *references: str) -> Sample:
    return Sample(name, "auto_driving", (), QUESTION, references)


def test_the_score_is_the_highest_logit_over_the_references_and_counts_above_zero(folder, judge):
    references = ("It is Red ", "Yes, I stop because the light is red")
    samples = [sample(str(number), *references) for number in range(len(PREDICTIONS))]
    answers = {str(number): text for number, text in enumerate(PREDICTIONS)}
    scores = score("LingoQA", samples, answers, judge=judge)
    expected = [max(plain_logit(folder, QUESTION, one, text) for one in references) for text in PREDICTIONS]
    assert scores.details["logit"] == pytest.approx(expected, abs=1e-5)
    assert scores.scores == tuple(float(logit > 0) for logit in expected)
    assert scores.parameters["judge"] == folder.name


def test_a_logit_of_zero_is_wrong_and_a_better_reference_is_enough(judge, monkeypatch):
    logits = {"good": 0.1, "zero": 0.0, "bad": -2.0}
    monkeypatch.setattr(
        judge, "logits", lambda texts: torch.tensor([logits[text.split("\n")[2][8:]] for text in texts])
    )
    asked = [sample("1", "bad", "good"), sample("2", "zero", "bad"), sample("3", "good", "bad")]
    scores = score("lingoqa", asked, dict.fromkeys("123", "x"), judge=judge)
    assert scores.scores == (1.0, 0.0, 1.0)
    assert scores.details["logit"] == pytest.approx([0.1, 0.0, 0.1])


def test_only_the_answers_are_lower_cased_and_stripped(judge):
    text = judge.text(" Is It? ", " REF ", "\tSaid\n")
    assert text == "[CLS]\nQuestion:  Is It? \nAnswer: ref\nStudent: said"


@pytest.fixture
def seen(judge, monkeypatch):
    """The token ids that reach the model."""
    calls = []
    judge.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"]), with_kwargs=True
    )
    return calls


def test_both_cls_tokens_reach_the_model_and_at_most_128_tokens(judge, seen):
    judge.score(QUESTION, ["short", "long " * 60], "yes")
    (tokens,) = seen
    assert tokens.shape == (2, 128)
    assert tokens[:, :3].tolist() == [[1, 1, 99], [1, 1, 99]]
    assert tokens[0, -1] == 0
    assert tokens[1, -1] == 2


def test_what_lies_beyond_128_tokens_is_not_read(judge):
    long = "x" * 120
    assert judge.score(QUESTION, [long], "yes") == judge.score(QUESTION, [long], "no")
    assert judge.score(QUESTION, ["x"], "yes") != judge.score(QUESTION, ["x"], "no")


def test_the_scores_are_saved_without_the_folders_path(judge, tmp_path, folder):
    scores = score("LingoQA", [sample("1", "yes")], {"1": "yes"}, judge=judge)
    scores.save(tmp_path / "scores.safetensors")
    assert Scores.load(tmp_path / "scores.safetensors") == scores
    assert str(folder.parent).encode() not in (tmp_path / "scores.safetensors").read_bytes()


def test_without_a_judge_the_next_step_is_said():
    with pytest.raises(MetricError, match=r"none was given; pass judge=LingoJudge.load\('wayveai/Lingo-Judge'\), or"):
        score("LingoQA", [sample("1", "yes")], {"1": "yes"})


def test_a_folder_without_a_judge_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetricError, match=r"empty: no judge can be loaded .*give wayveai/Lingo-Judge, or a folder"):
        LingoJudge.load(tmp_path / "empty")


def test_a_classifier_of_several_classes_and_a_tokenizer_without_cls_are_refused(judge):
    model = DebertaV2ForSequenceClassification(
        DebertaV2Config(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=3)
    )
    with pytest.raises(MetricError, match=r"three: the judge has 3 logits, not 1; load wayveai/Lingo-Judge\."):
        LingoJudge(model, judge.tokenizer, "three")
    judge.tokenizer.cls_token = None
    with pytest.raises(MetricError, match=r"bare: the judge's tokenizer has no CLS token; load wayveai/Lingo-Judge\."):
        LingoJudge(judge.model, judge.tokenizer, "bare")
