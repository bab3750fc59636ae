"""Models without a table: described, given a table to start from, discovered and proved, or refused with the reason."""

from __future__ import annotations

import ast
import copy
from functools import cache
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
import unknown_models
from conftest import ARCHITECTURES as TINY
from conftest import pictures
from hooks import outputs
from typer.testing import CliRunner

from interventions import count_active
from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.architectures import ARCHITECTURES, Architecture, architecture_of
from mmneuron_lens.architectures.checking import check_places
from mmneuron_lens.architectures.discovery import discover
from mmneuron_lens.architectures.outline import draft, outline
from mmneuron_lens.artifacts.certificate import Certificate
from mmneuron_lens.cli import app
from mmneuron_lens.runtime.describing import describe
from mmneuron_lens.wire import encode as encoding_there

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

FOUND = {
    "vipllava": {
        "vision.mlp.act": "model.vision_tower.encoder.layers.{l}.mlp.activation_fn",
        "projector.act": "model.multi_modal_projector.act",
        "llm.mlp.act": "model.language_model.layers.{l}.mlp.act_fn",
    },
    "glm46v": {
        "vision.mlp.act": "model.visual.blocks.{l}.mlp.act_fn",
        "llm.mlp.act": "model.language_model.layers.{l}.mlp.activation_fn",
    },
    "lighton_ocr": {
        "vision.mlp.act": "model.vision_encoder.transformer.layers.{l}.feed_forward.act_fn",
        "projector.act": "model.vision_projection.act",
        "llm.mlp.act": "model.language_model.layers.{l}.mlp.act_fn",
    },
    "aya_vision": {
        "vision.mlp.act": "model.vision_tower.encoder.layers.{l}.mlp.activation_fn",
        "llm.mlp.act": "model.language_model.layers.{l}.mlp.act_fn",
    },
}
"""Paths of neurons, written out by hand."""


@pytest.fixture(autouse=True, scope="module")
def _no_tables():
    """Those of these models that have a table do without it here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOUND:
            patch.delitem(ARCHITECTURES, name, raising=False)
        yield


@cache
def found_lens(name: str) -> Lens:
    return Lens.wrap(*getattr(unknown_models, name)(), discover=True)


@pytest.fixture(params=FOUND)
def unknown(request):
    return request.param, found_lens(request.param)


def test_sites_of_a_model_without_a_table_are_those_of_its_modules(unknown):
    name, lens = unknown
    neurons = {site: lens.architecture.place(site).path for site in lens.sites if site.endswith(".act")}
    assert neurons == FOUND[name]
    with pytest.raises(ValueError, match=rf"architecture '{name}'.*discover=True\) and --discover look for"):
        Lens.wrap(lens.module, lens.processor)


def test_counts_are_those_of_hooks_on_the_processors_own_inputs(unknown):
    name, lens = unknown
    images, questions = pictures((40, 56), (64, 30)), ["what is this?", "why"]
    found = lens.run(count_active.at("*.act"), lens.encode(images, questions))
    for site, path in FOUND[name].items():
        layers = lens.architecture.place(site).layers
        paths = [path.format(l=layer) for layer in range(layers or 1)]
        expected = torch.zeros(len(paths), lens.architecture.place(site).sizes["neuron"], dtype=torch.int64)
        for image, question in zip(images, questions, strict=True):
            text = f"{lens.processor.image_token}\n{question}"
            made = lens.processor(text=[text], images=[image], return_tensors="pt")
            made.pop("num_patches", None)
            seen = outputs(lens.module, paths, lambda made=made: lens.module(**made))
            expected += torch.stack([(torch.cat(seen[path]).flatten(0, -2) > 0).sum(0) for path in paths])
        assert torch.equal(found["count_active", site].reshape(expected.shape), expected), site


def test_every_artifact_says_that_sites_were_discovered(unknown):
    _, lens = unknown
    facts = lens.model.facts()
    assert facts["discovered"] is True
    certificate = lens.prove()
    assert facts["proof"] == certificate.digest
    assert certificate.provenance["discovered"] is True
    assert "discovered" not in Lens.wrap(*tiny_models.llava(), discover=True).model.facts()


def test_what_is_not_proved_is_refused(monkeypatch):
    real = encoding_there.positions
    monkeypatch.setattr(encoding_there, "positions", lambda inputs, facts: 2 * real(inputs, facts))
    with pytest.raises(InvalidValue, match=r"^vipllava: discovery is not enough for .*logits of lens.encode are not"):
        Lens.wrap(*unknown_models.vipllava(), discover=True)


def without_gate(module: Any) -> None:
    for layer in module.model.language_model.layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = torch.nn.functional.silu


def named_otherwise(module: Any) -> None:
    for layer in module.model.language_model.layers:
        layer.self_attn.query = layer.self_attn._modules.pop("q_proj")
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("vipllava", without_gate, r"the neurons of the language model are not one activation module in each"),
        ("aya_vision", named_otherwise, r"a layer of the language model has no self_attn.q_proj"),
        ("got_ocr2", None, r"Image features and image tokens do not match"),
    ],
)
def test_what_discovery_cannot_tell_is_refused_in_one_line(name, changed, said):
    module, processor = getattr(unknown_models, name)()
    module = copy.deepcopy(module)
    if changed:
        changed(module)
    with pytest.raises(InvalidValue, match=said) as caught:
        Lens.wrap(module, processor, discover=True)
    assert str(caught.value).startswith(f"{name}: discovery is not enough for this architecture: ")
    assert "\n" not in str(caught.value)


def test_discovery_needs_weights():
    with pytest.raises(InvalidValue, match=r"^discover=True proves a model with its weights; leave it out"):
        Lens("embedded/llava-next", remote="http://127.0.0.1:1", discover=True)


# A table to start from.


def made_by(text: str, config: Any) -> Architecture:
    names: dict[str, Any] = {}
    exec(compile(ast.parse(text), "draft", "exec"), names)
    return names["architecture"](config)


@pytest.mark.parametrize("name", ["llava_next", "gemma3", "qwen2_vl", "qwen2_5_vl", "idefics3", "mistral3", "internvl"])
def test_a_draft_names_the_places_of_the_table_by_hand(name):
    module, processor = getattr(newer_models if hasattr(newer_models, name) else tiny_models, name)()
    described = describe(module, processor)
    text = draft(module.config, outline(module.config, described.found, described.shapes))
    assert all(len(line) <= 120 for line in text.splitlines())
    found, expected = made_by(text, module.config), architecture_of(module.config)
    check_places(found, module)
    for site in expected.sites:
        if site == "projector.output" and site not in found.sites:
            continue
        assert found.place(site).path == expected.place(site).path, site
        assert found.place(site).sizes == expected.place(site).sizes or site.startswith("projector"), site
    assert found.facts["image_token"] == expected.facts["image_token"]


def test_a_draft_names_what_is_not_known():
    module, processor = unknown_models.aya_vision()
    described = describe(module, processor)
    text = described.start
    assert "# language.DECODERS has no 'cohere2' yet." in text
    assert "# model.multi_modal_projector.act has no site." in text
    compile(text, "draft", "exec")
    shapes = {path: (1, 1, 7) for path in described.shapes}
    module = copy.deepcopy(module)
    module.config.vision_config.model_type = "of_tomorrow"
    text = draft(module.config, outline(module.config, discover(module), shapes))
    assert (
        '{"vision.mlp.act": Place("model.vision_tower.encoder.layers.{l}.mlp.activation_fn", 3, {"neuron": 7})}' in text
    )
    assert "# vision.TOWERS has no entry for this tower" in text
    compile(text, "draft", "exec")


@pytest.mark.parametrize("name", TINY)
def test_a_model_with_a_table_is_described_with_its_sites(name):
    module, processor = getattr(tiny_models, name)()
    with torch.device("meta"):
        meta = type(module)(module.config).eval()
    described = describe(meta, processor)
    frame = described.to_frame()
    assert set(frame["site"]) == {site for site in architecture_of(module.config).sites if site.endswith(".act")}
    assert described.start == ""
    assert any(line.startswith(architecture_of(module.config).name) for line in described.lines())


# The commands.


def mmneuron(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unknown")
    for part in unknown_models.vipllava():
        part.save_pretrained(folder)
    return folder


def test_prove_prints_and_writes_a_certificate(tmp_path):
    folder = tiny_models.checkpoint("llava", tmp_path / "model")
    done = mmneuron("prove", folder, "--out", tmp_path / "out")
    assert done.exit_code == 0
    found = Certificate.load(tmp_path / "out" / "proof.json")
    assert found.architecture == "LLaVA"
    assert all(proof.site in done.stdout for proof in found)
    assert "logits of a batch and of its rows alone: " in done.stdout
    assert str(tmp_path / "out" / "proof.json") in done.stdout.replace("\n", "")


def test_prove_names_what_fails_in_one_line(tmp_path, monkeypatch):
    folder = tiny_models.checkpoint("llava", tmp_path / "model")
    real = encoding_there.positions
    monkeypatch.setattr(encoding_there, "positions", lambda inputs, facts: 2 * real(inputs, facts))
    done = mmneuron("prove", folder, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("mmneuron: logits of lens.encode are not those of the processor's")
    assert not (tmp_path / "out").exists()


def test_prove_and_describe_a_model_without_a_table(checkpoint, tmp_path):
    done = mmneuron("prove", checkpoint, "--out", tmp_path)
    assert done.exit_code == 1
    assert "Unknown architecture 'vipllava'" in done.stderr
    done = mmneuron("prove", checkpoint, "--out", tmp_path, "--discover")
    assert done.exit_code == 0
    assert Certificate.load(tmp_path / "proof.json").provenance["discovered"] is True
    done = mmneuron("describe", checkpoint)
    assert done.exit_code == 0
    assert "blocks: model.vision_tower.encoder.layers.{l}, 3 of them" in done.stdout
    assert "vipllava has no table of sites." in done.stdout
    start = done.stdout[done.stdout.index('"""VipLlava') :]
    found = made_by(start, unknown_models.vipllava()[0].config)
    assert found.place("projector.act").path == "model.multi_modal_projector.act"


def test_describe_reads_no_weights(checkpoint, tmp_path):
    folder = tmp_path / "weightless"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    assert mmneuron("describe", folder).exit_code == 0
