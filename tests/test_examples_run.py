"""Examples in a run: the stage, its thumbnails and words, `count --top`, the command, and a run that was stopped."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from drawn_corpus import files_of
from examples_corpus import some_neurons, write_example_corpus
from PIL import Image, ImageOps
from typer.testing import CliRunner

from interventions.errors import FileMissing, InvalidValue, UnknownName
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.neuron_examples import NeuronExamples
from mmneuron_lens.artifacts.neuron_words import WrittenWords
from mmneuron_lens.artifacts.top_activations import TopActivations
from mmneuron_lens.batching.encoding import encode
from mmneuron_lens.batching.gather import Shard
from mmneuron_lens.cli import app
from mmneuron_lens.corpora.folder import by_domain, read_folder
from mmneuron_lens.experiments.count import plan_count
from mmneuron_lens.experiments.examples import read_examples
from mmneuron_lens.experiments.read_tops import read_tops
from mmneuron_lens.experiments.tops import listed
from mmneuron_lens.experiments.written_words import written_words
from mmneuron_lens.lens import Lens
from mmneuron_lens.runs.count import count_stage
from mmneuron_lens.runs.examples import examples_stage
from mmneuron_lens.runs.folder import RunError, file_of
from mmneuron_lens.runs.neuron_file import read_neurons
from mmneuron_lens.runs.store import Store
from mmneuron_lens.runs.thumbnails import thumbnail
from mmneuron_lens.runs.tops import tops_stage

MODEL = "embedded/llava-next"
K = 3


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    """A run with examples; one picture lies on its side, as its EXIF says."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("corpus")
    write_example_corpus(folder, questions=1)
    turned = folder / "images" / "common1.png"
    with Image.open(turned) as picture:
        exif = picture.getexif()
        exif[274] = 6
        picture.resize((1000, 500)).save(turned, exif=exif)
    samples = by_domain(read_folder(folder)[0])
    lens = Lens(MODEL)
    run, said = tmp_path_factory.mktemp("run"), list[str]()
    masks = some_neurons(lens)
    store = Store(run, say=said.append)
    found = examples_stage(lens, None, samples, store, of=masks, k=K, batch_size=3)
    return SimpleNamespace(
        folder=folder, samples=samples, lens=lens, run=run, masks=masks, found=found, said=said, made=files_of(run)
    )


def again(study, **settings: Any) -> tuple[NeuronExamples, list[str]]:
    said = list[str]()
    store = Store(study.run, say=said.append)
    return examples_stage(study.lens, None, study.samples, store, of=study.masks, k=K, batch_size=3, **settings), said


def test_it_is_made_once_and_names_no_place_of_the_machine(study):
    found, said = again(study)
    assert said
    assert all(line.startswith("already done: ") for line in said)
    assert files_of(study.run) == study.made
    for name, tensor in found.packed()[0].items():
        torch.testing.assert_close(tensor, study.found.packed()[0][name], rtol=0, atol=0, equal_nan=True)
    names = {name.rpartition(".")[2] for name in study.made}
    assert names == {"safetensors", "jsonl", "jpg"}
    for name, content in study.made.items():
        for place in (str(study.folder), str(study.run), str(Path.home())):
            assert place.encode() not in content, name


def test_every_row_of_the_frame_is_an_example(study):
    frame = study.found.to_frame()
    assert len(frame) == sum(K * len(one) for one in study.found.neurons.values())
    first = frame.row(0, named=True)
    assert (first["site"], first["rank"], first["layer"], first["neuron"]) == ("vision.mlp.act", 1, 0, 0)
    assert first["activation"] == pytest.approx(float(study.found.activation["vision.mlp.act"][0, 0]))
    assert first["picture"] in {digest for one in study.found.samples for digest, *_ in one.images}
    # Words, CLS tokens and patches of padding have no place.
    nowhere = sum(int(box.isnan().all(-1).sum()) for box in study.found.box.values())
    assert 0 < frame["left"].null_count() == frame["bottom"].null_count() == nowhere < len(frame)
    assert "<table" in study.found._repr_html_()


def test_thumbnails_are_small_and_as_a_viewer_shows_the_picture(study):
    known = {path.read_bytes(): path for one in study.samples.values() for some in one for path in some.images}
    by_digest = {hashlib.sha256(content).hexdigest(): path for content, path in known.items()}
    shown = {digest for one in study.found.samples for digest, *_ in one.images}
    files = sorted((study.run / "neurons" / "pictures").iterdir())
    assert [file.name for file in files] == sorted(f"{digest[:16]}.jpg" for digest in shown)
    sides = []
    for digest in shown:
        with Image.open(by_digest[digest]) as picture:
            due = ImageOps.exif_transpose(picture).convert("RGB")
        due.thumbnail((384, 384), Image.Resampling.LANCZOS)
        with Image.open(study.run / "neurons" / "pictures" / f"{digest[:16]}.jpg") as small:
            assert (small.format, small.size, max(small.size) <= 384) == ("JPEG", due.size, True)
            assert not small.getexif()
            held = io.BytesIO()
            due.save(held, "JPEG", quality=85)
            assert small.tobytes() == Image.open(held).tobytes()
            sides.append(small.size)
    assert (192, 384) in sides
    assert Image.open(io.BytesIO(thumbnail(Image.new("RGB", (30, 20))))).size == (30, 20)


def test_words_and_contributions_are_those_of_the_weights(study):
    """By plain matrices and hooks: W_down and W_U, and z_i, the last residual, the token of the right answer."""
    lens, words = study.lens, WrittenWords.load(file_of(study.run, "words", study.lens.name, suffix=".jsonl"))
    assert words.missing == ""
    module, tokenizer = lens.module, lens.processor.tokenizer
    layers = module.model.language_model.layers
    unembed = module.lm_head.weight.detach()[: len(tokenizer)]
    by_id = {(domain, one.id): one for domain, some in study.samples.items() for one in some}
    neurons = study.found.neurons["llm.mlp.act"].tolist()
    assert [(one.site, one.layer, one.neuron) for one in words.neurons] == [("llm.mlp.act", *one) for one in neurons]
    seen = {key: _plain(lens, sample) for key, sample in by_id.items()}
    for row, one in enumerate(words.neurons):
        down = layers[one.layer].mlp.down_proj.weight.detach()[:, one.neuron]
        scores = (unembed @ down).double()
        due = scores.sort(descending=True).values
        torch.testing.assert_close(
            torch.tensor([score for _, score in one.top]).double(), due[:8], rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            torch.tensor([score for _, score in one.bottom]).double(), due.flip(0)[:8], rtol=1e-4, atol=1e-6
        )
        best = tokenizer.decode([int(scores.argmax())]).strip()
        assert one.top[0][0] == best or "\ufffd" in best
        parts = []
        for number in study.found.sample["llm.mlp.act"][row].tolist():
            shown = study.found.samples[number]
            post, state = seen[shown.domain, shown.id]
            token = tokenizer(shown.answers[0], add_special_tokens=False)["input_ids"][0]
            norm = module.model.language_model.norm
            direction = unembed[token] * norm.weight.detach()
            scale = (state.pow(2).mean() + norm.variance_epsilon).sqrt()
            parts.append(float(post[one.layer][one.neuron] * (down @ direction) / scale))
        assert one.questions == K
        assert one.contribution == pytest.approx(sum(parts) / K, rel=1e-3, abs=1e-7)
    assert words.of("llm.mlp.act", *neurons[1]) == words.neurons[1]
    assert words.of("llm.mlp.act", 0, 5) is None
    assert len(words.to_frame()) == len(neurons)


def _plain(lens: Lens, sample: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each down projection is given, and the last residual stream, at the last position."""
    batch, _ = encode(lens, [sample], "identification")
    assert batch is not None
    posts, states = list[torch.Tensor](), list[torch.Tensor]()
    language = lens.module.model.language_model
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given: posts.append(given[0][0, -1]))
        for layer in language.layers
    ]
    handles.append(language.norm.register_forward_pre_hook(lambda _, given: states.append(given[0][0, -1])))
    with torch.no_grad():
        lens.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    return posts, states[0]


def test_words_say_why_they_are_missing(study, monkeypatch):
    bare = Lens.weightless(Path(sys.modules["mmneuron_lens"].__file__ or "").parent / "embedded" / "llava-next")
    words = written_words(bare, study.found, study.samples)
    assert "has no weights here" in words.missing
    assert len(words) == len(study.found.neurons["llm.mlp.act"])
    assert {(one.top, one.bottom, one.contribution) for one in words.neurons} == {((), (), None)}
    none = written_words(study.lens, _only(study.found, "vision.mlp.act"), study.samples)
    assert none.missing == "no neuron of the language model is among the examples."

    def refuse(lens: Lens) -> None:
        raise InvalidValue("The final norm is another.")

    monkeypatch.setattr("mmneuron_lens.experiments.written_words.final_norm", refuse)
    words = written_words(study.lens, study.found, study.samples)
    assert words.missing == "The final norm is another."
    assert all(one.top and one.contribution is None for one in words.neurons)


def _only(found: NeuronExamples, site: str) -> NeuronExamples:
    tensors, metadata = found.packed()
    return NeuronExamples.unpacked(
        {name: one for name, one in tensors.items() if name.endswith(f"/{site}")}, {**metadata, "samples": []}
    )


def test_counting_with_top_activations_is_one_pass_and_both_results(study, tmp_path):
    """The counts of a plain count, byte for byte, and the top activations of a second pass; examples then use them."""
    plain, both, said = Store(tmp_path / "plain"), Store(tmp_path / "both"), list[str]()
    some = {"medical": study.samples["medical"]}
    asked = {"samples_by_domain": some, "batch_size": 3}
    count_stage(study.lens, store=plain, **asked)
    count_stage(study.lens, store=both, top=4, **asked)
    counts = {name: content for name, content in files_of(tmp_path / "both").items() if name.startswith("counts/")}
    assert counts == files_of(tmp_path / "plain")
    plan = plan_count(study.lens, some["medical"], batch_size=3)
    file = file_of(tmp_path / "both", "top_activations", MODEL, "medical")
    kept, due = TopActivations.load(file), read_tops(study.lens, plan, None, 4)
    assert kept.samples == due.samples
    assert {*kept.neurons} == {site for site in study.lens.sites if site.endswith(".act")}
    for part in ("neurons", "activation", "sample", "position"):
        for site, value in getattr(due, part).items():
            torch.testing.assert_close(getattr(kept, part)[site], value, rtol=0, atol=0, equal_nan=True)
    assert len(kept.to_frame()) == sum(int((one >= 0).sum()) for one in kept.sample.values())
    store = Store(tmp_path / "both", say=said.append)
    found = examples_stage(study.lens, None, some, store, of=study.masks, k=K, batch_size=3)
    assert "already done: embedded/llava-next: reading top activations, medical" in said
    assert not file_of(tmp_path / "both", "examples", MODEL, "medical").exists()
    again = read_examples(study.lens, some, study.masks, K, batch_size=3)
    for name, tensor in found.packed()[0].items():
        torch.testing.assert_close(tensor, again.packed()[0][name], rtol=1e-5, atol=1e-6, equal_nan=True)
    tops_stage(study.lens, store, plan, listed(study.lens, study.masks), 5)
    assert "it keeps 4 of each neuron, not 5), so that top activations are read again" in said[-2]
    # Counts that are there stay, and a pass is made for the rest.
    file.unlink()
    count_stage(study.lens, store=Store(tmp_path / "both"), top=4, **asked)
    assert counts == {n: c for n, c in files_of(tmp_path / "both").items() if n.startswith("counts/")}
    with pytest.raises(InvalidValue, match=r"top is 4, and shard 1/2"):
        count_stage(study.lens, store=both, top=4, shard=Shard(1, 2), **asked)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("title", ["top activations of medical", "maps of examples"])
def test_a_run_that_was_stopped_goes_on(study, tmp_path, title, monkeypatch):
    """Killed in either pass, and taken up: the same bytes, and no step made twice."""
    forwards = list[int]()
    genuine = Lens.run

    def counted(self: Lens, *given: Any, **settings: Any) -> Any:
        forwards.append(1)
        return genuine(self, *given, **settings)

    monkeypatch.setattr(Lens, "run", counted)

    def stopping(items: Any, name: str) -> Any:
        for number, one in enumerate(items):
            if name == title and number == 1:
                raise Stopped
            yield one

    settings: dict[str, Any] = {"of": study.masks, "k": K, "batch_size": 3}
    with pytest.raises(Stopped):
        examples_stage(study.lens, None, study.samples, Store(tmp_path), progress=stopping, **settings)
    assert list(tmp_path.glob("examples/**/*.pieces/*.safetensors"))
    before = len(forwards)
    examples_stage(study.lens, None, study.samples, Store(tmp_path), **settings)
    assert files_of(tmp_path) == study.made
    stopped, forwards[:] = len(forwards) - before, []
    examples_stage(study.lens, None, study.samples, Store(None), **settings)
    assert before + stopped == len(forwards)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        (
            "llm.mlp.act 1/5\n\n# one of the tower\nvision.mlp.act 0 / 3\n",
            {"llm.mlp.act": [[1, 5]], "vision.mlp.act": [[0, 3]]},
        ),
        (
            "model,site,layer,neuron,p\nm,llm.mlp.act,1,5,0.5\nm,projector.act,0,2,0.1\n",
            {"llm.mlp.act": [[1, 5]], "projector.act": [[0, 2]]},
        ),
    ],
)
def test_a_file_of_neurons(study, tmp_path, text, due):
    (tmp_path / "neurons").write_text(text)
    found = read_neurons(tmp_path / "neurons", study.lens)
    assert {site: mask.nonzero().tolist() for site, mask in found.items()} == due


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("llm.mlp.act 1/5\nllm.mlp.act 14", InvalidValue, r"line 2: 'llm.mlp.act 14' names no neuron; write"),
        ("llm.mlp.gate 1/5", UnknownName, r"line 1: .*'llm.mlp.gate'"),
        ("llm.mlp.act 99/5", InvalidValue, r"line 1: layer is 99; llm.mlp.act of embedded/llava-next has layers 0 to"),
        ("\nllm.mlp.act 0/99999", InvalidValue, r"line 2: neuron is 99999; .* has neurons 0 to"),
        ("site,layer,neuron\nllm.mlp.act,0,x", InvalidValue, r"line 2: neuron is 'x', no whole number from 0"),
        ("site,layer,neuron\n", InvalidValue, r"names no neuron; write"),
        ("", InvalidValue, r"names no neuron; write"),
        (None, FileMissing, r"no such file; write"),
    ],
)
def test_a_file_that_names_no_neuron_says_where(study, tmp_path, text, error, says):
    if text is not None:
        (tmp_path / "neurons").write_text(text)
    with pytest.raises(error, match=says) as caught:
        read_neurons(tmp_path / "neurons", study.lens)
    assert str(caught.value).startswith(str(tmp_path / "neurons"))


def test_the_command(study, tmp_path, monkeypatch):
    """From counts with top activations to the page, of a file of neurons; and without a model the page alone."""
    pages = list[Path]()

    def publish_neurons(run: Path) -> Path:
        pages.append(run)
        return run / "neurons" / "index.html"

    stub = ModuleType("mmneuron_lens.paper.neurons_page")
    stub.publish_neurons = publish_neurons  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "mmneuron_lens.paper.neurons_page", stub)
    run, runner = tmp_path / "run", CliRunner()
    (tmp_path / "chosen.txt").write_text("llm.mlp.act 1/5\nvision.mlp.act 0/3\n")
    model = ["--model", MODEL, "--corpus", str(study.folder), "--batch-size", "4", "--domain", "medical"]

    def told(*arguments: str) -> str:
        done = runner.invoke(app, ["neurons", str(run), *arguments])
        assert done.exit_code == (1 if "mmneuron: " in done.output else 0), done.output
        return " ".join(done.output.split())

    assert "holds neither a selection nor examples; run `mmneuron count`" in told()
    assert "give --corpus FOLDER too, or neither for the page alone" in told("--model", MODEL)
    assert "no neurons of embedded/llava-next are selected; run `mmneuron select" in told(*model)
    assert "no such file; write" in told(*model, "--of", str(tmp_path / "none.txt"))
    assert runner.invoke(app, ["count", *model, "--top", "4", "--out", str(run)]).exit_code == 0
    assert Counts.load(file_of(run, "counts", MODEL, "medical")).samples == 4
    of = ["--of", str(tmp_path / "chosen.txt"), "--top", "2"]
    shown = told(*model, *of)
    assert "already done: embedded/llava-next: reading top activations, medical" in shown
    assert f"Page: {run.resolve() / 'neurons' / 'index.html'}" in shown
    found = NeuronExamples.load(file_of(run, "examples", MODEL))
    assert {site: one.tolist() for site, one in found.neurons.items()} == {
        "vision.mlp.act": [[0, 3]],
        "llm.mlp.act": [[1, 5]],
    }
    assert found.activation["llm.mlp.act"].shape == (1, 2)
    assert "holds another value" in told(*model, "--of", str(tmp_path / "chosen.txt"), "--top", "3")
    told(*model, "--of", str(tmp_path / "chosen.txt"), "--top", "3", "--replace")
    assert NeuronExamples.load(file_of(run, "examples", MODEL)).activation["llm.mlp.act"].shape == (1, 3)
    assert "Page: " in told()
    assert pages == [run, run, run]
    with pytest.raises(RunError, match="the selection is of other"):
        examples_stage(study.lens, SimpleNamespace(model="other"), study.samples, Store(None))  # pyright: ignore[reportArgumentType]
    assert re.search(r"--of", runner.invoke(app, ["neurons", "--help"]).output)
