"""A flipped bit or a cut file of any artifact is an error that names the file and the cure, and never a value."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pkgutil
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

import mmneuron_lens
from interventions.errors import StorageFailed
from mmneuron_lens.artifacts.answers import Answer, Answers
from mmneuron_lens.artifacts.artifact import Artifact
from mmneuron_lens.artifacts.attributions import Attributions
from mmneuron_lens.artifacts.comparison import Compared, NeuronComparison
from mmneuron_lens.artifacts.controls import FalseDiscovery, HalvesOverlap
from mmneuron_lens.artifacts.counts import BUCKETS, Counts
from mmneuron_lens.artifacts.deviations import MEASURES, Deviations
from mmneuron_lens.artifacts.effect_sizes import Effect, EffectSizes, Interval
from mmneuron_lens.artifacts.embeddings import Embeddings
from mmneuron_lens.artifacts.entropies import Entropies
from mmneuron_lens.artifacts.flow import KnockOutFlow
from mmneuron_lens.artifacts.format import ArtifactError, read_lines
from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.artifacts.layer_probes import LayerProbes
from mmneuron_lens.artifacts.lens_trace import LensTrace
from mmneuron_lens.artifacts.means import Means
from mmneuron_lens.artifacts.moments import Moments
from mmneuron_lens.artifacts.neighbours import Neighbours, TextPlace
from mmneuron_lens.artifacts.neuron_effects import NeuronEffects
from mmneuron_lens.artifacts.neuron_examples import AROUND, SIDE, NeuronExamples, ShownSample
from mmneuron_lens.artifacts.neuron_words import NeuronTokens, WrittenWords
from mmneuron_lens.artifacts.official_scores import OfficialScores
from mmneuron_lens.artifacts.selection import Selection, groups_of
from mmneuron_lens.artifacts.text_states import TextStates
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.artifacts.tuned_lens import TunedLens
from mmneuron_lens.batching.gather import Held, Piece
from mmneuron_lens.corpora.sample_list import SampleList
from mmneuron_lens.runs.pieces import KeptPiece

SITE, FLAT = "llm.mlp.act", "projector.act"
SMALL = 2000
"""Bytes of a file that is damaged at every one of them, and not only where a die says."""


def counts(neurons: int = 1) -> Counts:
    active = torch.arange(BUCKETS * 2 * neurons).view(BUCKETS, 1, 2, neurons) % 5
    tokens = torch.full((BUCKETS, 2), 7)
    return Counts("m", "medical", {SITE: active}, {SITE: tokens}, {SITE: ("image", "text")}, 3, {"seed": 1})


def moments() -> Moments:
    tokens = torch.full((BUCKETS, 2), 4)
    value = torch.arange(BUCKETS * 4, dtype=torch.float64).view(BUCKETS, 1, 2, 2) % 3 + 0.5
    held = {"positive": (value > 0) * 4, "above": (value > 0.1) * 4, "sums": value * 4, "squares": value**2 * 4}
    by_name: dict[str, Any] = {**held, "maximum": value.float(), "tokens": tokens}
    by_name = {name: {SITE: one} for name, one in by_name.items()}
    return Moments("m", "medical", kinds={SITE: ("image", "text")}, samples=3, provenance={"seed": 1}, **by_name)


def piece_of_moments() -> KeptPiece:
    whole = moments()
    names = {"active": whole.positive, "above": whole.above, "sums": whole.sums, "squares": whole.squares}
    tensors = {f"{name}/{SITE}": one[SITE][3] for name, one in {**names, "maximum": whole.maximum}.items()}
    tensors[f"tokens/{SITE}"] = whole.tokens[SITE][3]
    facts = {"steps": 5, "kinds": {SITE: ["image", "text"]}}
    return KeptPiece(Held(2, 4, Piece(3, tensors, ("1", "2"), ("3",), facts)), "1/2")


def selection() -> Selection:
    masks = {SITE: torch.tensor([[[True, False], [False, True]]]), FLAT: torch.tensor([[[True, True]]])}
    values = {site: torch.full(mask.shape, 0.25, dtype=torch.float64) for site, mask in masks.items()}
    entropy = {site: value.sum(-1) for site, value in values.items()}
    tokens = {site: torch.tensor([5, 6]) for site in masks}
    numbers = {FLAT: 1, SITE: 2}
    return Selection(
        "m", ("common", "medical"), masks, entropy, values, tokens, {FLAT: 0.5, SITE: 0.25}, numbers, {"method": "dape"}
    )


def attributions() -> Attributions:
    questions = torch.tensor([2] + [0] * (BUCKETS - 1))
    sums = (torch.arange(BUCKETS * 3).double() - 20).view(BUCKETS, 1, 3) / 8
    named: list[Any] = [{site: value for site in (FLAT, SITE)} for value in (questions, sums, sums.abs())]
    return Attributions("m", "medical", questions, *named, {"alpha": 1.0}, 2, {"seed": 1})


def entropies() -> Entropies:
    summed = torch.rand(BUCKETS, 2, 1, dtype=torch.float64)
    column = torch.rand(BUCKETS, 1, dtype=torch.float64)
    return Entropies("m", "medical", ("text",), summed, column, column.long(), column.long() + 2)


def trace() -> LensTrace:
    return LensTrace(
        "m", "medical", "7", "What is it?", "USER: What?", ("lung", "Lunge"), ("embedding", "1"), ("a", "b"),
        ("image", "text"), torch.tensor([[[3], [4]], [[4], [3]]]), torch.rand(2, 2, 1), torch.rand(2, 2),
        torch.full((2, 5), float("nan")), (torch.zeros(2, 2, 3, dtype=torch.uint8),), {"3": "é", "4": "\u2028"},
    )  # fmt: skip


def answers() -> Answers:
    said = [
        Answer(
            "m", "LLM", "domain", "medical", "medical", str(number), "What?", ("lung",), f"a\u2028{number}\n", "", "d"
        )
        for number in range(2)
    ]
    return Answers(tuple(said), {"seed": 1})


def official_scores() -> OfficialScores:
    values = {("LLM", "domain", "medical", "medical", "1"): 0.3, ("None", "none", "", "medical", "2"): 1.0}
    return OfficialScores(values, {"medical": "accuracy"}, ("one was left out",))


def piece() -> KeptPiece:
    tensors = {f"active/{SITE}": torch.arange(4).view(1, 2, 2), f"tokens/{SITE}": torch.tensor([1, 3])}
    return KeptPiece(
        Held(2, 4, Piece(3, tensors, ("1", "2"), ("3",), {"steps": 5, "kinds": {SITE: ["a", "b"]}})), "1/2"
    )


def sample_list() -> SampleList:
    return SampleList("medical", "PMC-VQA", "train", "evaluation", ("a", "é"), (3, 4), {"seed": 2, "short": 0})


def jacobian() -> JacobianLens:
    error = torch.tensor([0.2, 0.1, float("nan")]).double()
    return JacobianLens("m", "f", torch.randn(2, 3, 3), torch.randn(3, 3), error, 2, 9, {"targets": "later"})


def tuned() -> TunedLens:
    maps = torch.randn(2, 3, 3), torch.randn(2, 3), torch.randn(3, 3), torch.randn(3)
    held_out = torch.rand(3).double(), torch.rand(3).double()
    return TunedLens("m", "f", *maps, *held_out, 4, 20, 5, {"kinds": None})


def flow() -> KnockOutFlow:
    chances = torch.tensor([0.9, 0.5]).double(), torch.rand(2, 3, 2).double()
    return KnockOutFlow(
        "m", "medical", ("image to last", "question to last"), ("1", "2"), torch.tensor([4, 0]), *chances, 1, 3
    )


def text_states() -> TextStates:
    states = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1).half()
    places = torch.tensor([1, 1, 2, 2]), torch.tensor([0, 1, 0, 1]), torch.tensor([1, 2, 1, 2])
    return TextStates("m", "f", ("a b c", "d e\u2028f"), ("b", "f", "b", "f"), states, *places, {"most": 4})


def neighbours() -> Neighbours:
    found: dict[str, TextPlace] = {
        "0": {"token": "b", "layer": 1, "text": "a b c", "place": 1},
        "3": {"token": "f", "layer": 2, "text": "d e\u2028f", "place": 2},
    }
    states, cosines = torch.tensor([[[3], [0]], [[0], [3]]]), torch.tensor([[[0.5], [0.25]], [[1.0], [0.75]]])
    names = ("embedding", "1"), ("a", "b"), ("image", "text")
    return Neighbours("m", "medical", "7", "What is it?", *names, states, cosines, found)


def layer_probes() -> LayerProbes:
    right, shuffled = torch.rand(2, 3, 4) > 0.5, torch.rand(2, 3, 5).double()
    labels = ("common", "medical", "common", "medical")
    return LayerProbes("m", ("common", "medical"), ("1", "2", "3", "4"), labels, right, shuffled)


def effect(memberships: int) -> Effect:
    some: Interval = {"value": 0.3, "low": -0.1, "high": 1.5}
    nothing: Interval = {"value": None, "low": None, "high": None}
    return {"memberships": memberships, "log_odds": some, "difference": some, "held_out": nothing, "above": None}


def top_activations() -> TopActivations:
    best = torch.tensor([[0.5, float("nan")], [2.0, 1.0]])
    sample = torch.tensor([[1, -1], [0, 1]], dtype=torch.int32)
    neurons = torch.tensor([[0, 3], [1, 2]])
    images = ("0" * 64, "a" * 64)
    of_site = [{SITE: one} for one in (neurons, best, sample, sample)]
    return TopActivations("m", "medical", ("7", "é"), images, *of_site, {"k": 2}, {"seed": 1})


def neuron_examples() -> NeuronExamples:
    top, nan = top_activations(), float("nan")
    box = torch.tensor([[[0.25, 0.0, 0.5, 1.0], [nan] * 4], [[nan] * 4, [0.0, 0.0, 0.5, 0.5]]])
    picture = torch.tensor([[0, -1], [1, 0]])
    maps = torch.zeros(2, 2, SIDE, SIDE, dtype=torch.uint8)
    maps[0, 0, 3, 4] = 255
    shown = [
        ShownSample(
            "7", "common", "What?", ("a", "é"), (("b" * 64, 3, 4), ("c" * 64, 5, 6)), ((0, ("<s>",)), (5, ("a",)))
        ),
        ShownSample("7", "medical", "Why?", (), (("d" * 64, 3, 4),), ()),
    ]
    values = (
        top.neurons[SITE], top.activation[SITE], top.sample[SITE].long(), top.position[SITE].long(), picture, box, maps,
        torch.tensor([[0.5, 0.0], [0.0, 0.0]]), torch.zeros(2, 2, 2 * AROUND + 1, dtype=torch.uint8),
    )  # fmt: skip
    return NeuronExamples("m", tuple(shown), *({SITE: value} for value in values), {"k": 2}, {"seed": 1})


def words() -> WrittenWords:
    some = (("a\u2028", 0.5), ("é", -0.25)), (("b", -1.5),)
    both = NeuronTokens(SITE, 0, 3, *some, 0.25, 2), NeuronTokens(SITE, 1, 2, (), ())
    return WrittenWords("m", both, "", {"words": 8})


def comparison() -> NeuronComparison:
    own = Compared("dape", "medical", 0.01, {SITE: 2}, {SITE: 2}, draws=(1,))
    drawn = Compared("random", "medical", 0.01, {SITE: 2}, draw=1)
    change = torch.tensor([[-0.5, 0.25], [0.1, float("nan")]])
    right = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    questions = (("medical", "1"), ("common", "2"))
    domains, before = ("common", "medical"), torch.tensor([-1.0, -2.0])
    return NeuronComparison(
        "m", domains, ("dape",), (own, drawn), questions, before, change, change.abs(), torch.tensor([1.0, 0.0]), right
    )


MADE: dict[str, Any] = {
    "comparison": comparison(),
    "counts": counts(),
    "more counts": counts(200),
    "moments": moments(),
    "piece of moments": piece_of_moments(),
    "selection": replace(selection(), scores={SITE: torch.tensor([[[0.5, float("nan")], [1.0, 2.0]]]).double()}),
    "attributions": attributions(),
    "false discovery": FalseDiscovery("m", {SITE: 2, FLAT: 1}, {SITE: (1, 0), FLAT: (0, 0)}, {"seed": 1}),
    "overlap": HalvesOverlap("m", {SITE: (1, 2)}, {SITE: (3, 4)}, {"seed": 1}),
    "effect sizes": EffectSizes(
        "m",
        ("common", "medical"),
        {SITE: torch.tensor([[0, 1, 1]]), FLAT: torch.zeros(0, 3, dtype=torch.int64)},
        {SITE: torch.rand(1, 4).double(), FLAT: torch.zeros(0, 4).double()},
        {name: effect(int(SITE in sites)) for name, sites in groups_of([SITE, FLAT]).items()},
        0.5,
        {"seed": 1},
    ),
    "deviations": Deviations(
        "m", "medical", (("LLM", "domain"),), ("1", "2"), {name: torch.rand(1, 2).double() for name in MEASURES}
    ),
    "entropies": entropies(),
    "embeddings": Embeddings("m", torch.rand(2, 3), ("medical", "common"), {"layer": -1}),
    "trace": trace(),
    "neuron effects": NeuronEffects(
        "m",
        "medical",
        (FLAT, SITE),
        ("1", "2", "3"),
        torch.tensor([[0, 0, 1], [1, 2, 1]]),
        torch.tensor([False, True]),
        -torch.rand(2, 3).double(),
        -torch.rand(3).double(),
    ),
    "means": Means("m", {SITE: torch.rand(1, 3).double()}),
    "answers": answers(),
    "official scores": official_scores(),
    "piece": piece(),
    "sample list": sample_list(),
    "jacobian lens": jacobian(),
    "tuned lens": tuned(),
    "top activations": top_activations(),
    "examples of neurons": neuron_examples(),
    "words of neurons": words(),
    "flow": flow(),
    "no flow": KnockOutFlow(
        "m",
        "medical",
        ("image to last",),
        (),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0).double(),
        torch.zeros(1, 3, 0).double(),
        1,
        3,
        "it answers none right.",
    ),
    "text states": text_states(),
    "neighbours": neighbours(),
    "layer probes": layer_probes(),
}


@pytest.fixture(params=MADE)
def made(request) -> Any:
    return MADE[request.param]


def test_repr_is_short(made) -> None:
    """A page of numbers in a notebook's cell or a traceback helps nobody."""
    text = repr(made)
    assert text.startswith(f"{type(made).__name__}(")
    assert "tensor(" not in text
    assert len(text) < 700


def refusal(load: Any, path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ArtifactError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_every_class_of_artifact_is_here() -> None:
    for module in pkgutil.walk_packages(mmneuron_lens.__path__, "mmneuron_lens."):
        if module.name.split(".")[1] in ("artifacts", "batching", "corpora", "experiments", "neurons", "runs"):
            importlib.import_module(module.name)
    known = {type(value) for value in MADE.values()}
    assert set(Artifact.__subclasses__()) <= known
    assert not any(one.__subclasses__() for one in Artifact.__subclasses__())
    assert len({one.kind for one in known - {SampleList}}) == len(known) - 1


def test_read_and_written_again_it_has_the_same_bytes(made: Any, tmp_path: Path) -> None:
    made.save(tmp_path / "a")
    type(made).load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    if not isinstance(made, SampleList):
        assert type(made).load_with_key(tmp_path / "a")[1] is None
        made.save(tmp_path / "c", {"seed": 1, "nested": {"a": (1, 2)}})
        again, key = type(made).load_with_key(tmp_path / "c")
        assert key == {"seed": 1, "nested": {"a": [1, 2]}}
        again.save(tmp_path / "d", key)
        assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes() != (tmp_path / "a").read_bytes()


def places_of(content: bytes) -> list[int]:
    """Every byte of a small file; of a large one every byte up to the data, and as many as 200 of the data."""
    if len(content) <= SMALL:
        return list(range(len(content)))
    data = 8 + int.from_bytes(content[:8], "little")
    draws = random.Random(0)
    return [*range(64), *draws.sample(range(data), 200), *draws.sample(range(data, len(content)), 200)]


def test_a_flipped_bit_anywhere_is_refused(made: Any, tmp_path: Path) -> None:
    path, draws = tmp_path / "a", random.Random(1)
    made.save(path, *([] if isinstance(made, SampleList) else [{"seed": 1}]))
    content = path.read_bytes()
    for place in places_of(content):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draws.randrange(8)
        path.write_bytes(flipped)
        assert refusal(type(made).load, path).endswith("delete it and run the command that wrote it again.")
    path.write_bytes(content)
    type(made).load(path)


def test_a_file_that_is_cut_or_longer_is_refused(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    made.save(path)
    content = path.read_bytes()
    lengths = range(len(content)) if len(content) <= SMALL else random.Random(2).sample(range(len(content)), 200)
    for length in lengths:
        path.write_bytes(content[:length])
        assert refusal(type(made).load, path).endswith("delete it and run the command that wrote it again.")
    for more in (b"\0", b"\n", content):
        path.write_bytes(content + more)
        assert "is damaged" in refusal(type(made).load, path)


def test_bytes_that_changed_places_are_refused(made: Any, tmp_path: Path) -> None:
    """What a sum over the bytes would not see."""
    path, draws = tmp_path / "a", random.Random(3)
    made.save(path)
    content = path.read_bytes()
    for first, second in (draws.sample(range(len(content)), 2) for _ in range(50)):
        swapped = bytearray(content)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        if swapped != content:
            path.write_bytes(swapped)
            refusal(type(made).load, path)


def test_another_kind_is_refused_and_named(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    made.save(path)
    lines = (Answers, OfficialScores, SampleList, WrittenWords)
    for other in {type(one) for one in MADE.values()} - {type(made)}:
        text = refusal(other.load, path)
        alike = isinstance(made, lines) == issubclass(other, lines)
        kind = getattr(made, "kind", "sample list")
        assert (f"kind is {kind!r}, not" in text) if alike else ("not an artifact" in text)


def test_one_of_the_first_version_is_refused_in_a_line(made: Any, tmp_path: Path) -> None:
    """The same content as the first version wrote it: without a checksum."""
    path = tmp_path / "a"
    made.save(path)
    if isinstance(made, Answers | OfficialScores | SampleList | WrittenWords):
        rows, metadata = read_lines(path, getattr(made, "kind", "sample list"))
        document = {"kind": getattr(made, "kind", "sample list"), "version": 1, **metadata}
        path.write_text("".join(json.dumps(line) + "\n" for line in [document, *rows]))
    else:
        with safe_open(path, "pt") as file:
            document = json.loads(file.metadata()["mmneuron_lens"])
        del document["sha256"]
        save_file(load_file(path), path, metadata={"mmneuron_lens": json.dumps({**document, "version": 1})})
    text = refusal(type(made).load, path)
    assert "or of an earlier version, which is not read" in text
    assert text.endswith("delete it and run the command that wrote it again.")


def test_a_missing_one_is_named(made: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none: no such file; run the stage that writes"):
        type(made).load(tmp_path / "none")


def test_one_that_cannot_be_written_leaves_the_old_one(made: Any, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageFailed) as caught:
        made.save(path)
    assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device)")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize(("field", "value"), [("memberships", -1), ("memberships", 2), ("above", -0.1), ("above", 1.1)])
def test_effect_sizes_are_of_the_memberships_that_are_there(tmp_path, field, value):
    made = MADE["effect sizes"]
    wrong = {**made.effects, "LLM": {**made.effects["LLM"], field: value}}
    replace(made, effects=wrong).save(tmp_path / "effects.safetensors")
    with pytest.raises(ArtifactError, match=rf"effects\.safetensors: .*effects, LLM, {field} is {value}"):
        EffectSizes.load(tmp_path / "effects.safetensors")
