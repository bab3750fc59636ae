"""A Model is frozen, a Lens is a facade, and what cannot be opened is said in one line."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from conftest import mixed_batch, pictures, tiny_lens

from interventions import count_active, keep, zero_neurons
from interventions.errors import FileMissing, InvalidType, InvalidValue, MMNeuronError, UnknownName
from mmneuron_lens import Lens
from mmneuron_lens.architectures import loading
from mmneuron_lens.runtime.run import run


def test_neither_changes_once_it_is_made(lens):
    with pytest.raises(FrozenInstanceError):
        lens.model.name = "other"
    for name in ("name", "remote", "model", "architecture"):
        with pytest.raises(AttributeError):
            setattr(lens, name, None)
    assert lens.model.nnsight is lens.nnsight is lens.model.nnsight


def test_embedded_models_are_found_by_name():
    lens, short, light = (
        Lens("embedded/llava-next"),
        Lens.embedded("llava-next"),
        Lens.weightless("embedded/llava-next"),
    )
    assert lens.name == short.name == light.name == "embedded/llava-next"
    assert lens.model.facts() == short.model.facts()
    assert json.loads(json.dumps(lens.model.facts())) == lens.model.facts()
    assert set(lens.model.facts()) == {"model id", "revision", "fingerprint", "dtype", "device", "attention"}


def test_a_folder_is_called_by_its_last_part(lens, tmp_path):
    folder = tmp_path / "checkpoint-500"
    lens.module.save_pretrained(folder)
    lens.processor.save_pretrained(folder)
    loaded = Lens(folder)
    assert (loaded.name, loaded.model.repo) == ("checkpoint-500", str(folder))
    assert str(tmp_path) not in json.dumps(loaded.model.facts())
    assert Lens.wrap(loaded.module, loaded.processor).name == "checkpoint-500"
    assert Lens.wrap(loaded.module, loaded.processor, "mine").name == "mine"


def said(kind: type[Exception], open_: object) -> str:
    """The one line with which something is refused."""
    with pytest.raises(kind) as caught:
        open_()
    assert isinstance(caught.value, MMNeuronError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_opened_is_one_line(tmp_path):
    assert said(UnknownName, lambda: Lens("embedded/llava")) == (
        "Unknown embedded model 'embedded/llava'. Did you mean 'embedded/llava-next'? "
        "Choices: embedded/idefics3, embedded/instructblip, embedded/llava-next, embedded/smol."
    )
    nowhere = tmp_path / "nowhere"
    assert said(FileMissing, lambda: Lens(nowhere)).startswith(f"{nowhere}: no such folder. Give a folder, a hub id")
    expected = f"{tmp_path} has no config.json; give the folder of a saved model."
    assert said(FileMissing, lambda: Lens(tmp_path)) == expected
    name = "Unknown dtype 'float31'. Did you mean 'float32'? Choices: float32, bfloat16, float16."
    assert said(InvalidValue, lambda: Lens("embedded/llava-next", dtype="float31")) == name
    assert "Choices: cpu" in said(InvalidValue, lambda: Lens("embedded/llava-next", device="cuda:77"))
    for settings in ({"dtype": "float32"}, {"device": "cpu"}, {"device_map": "auto"}, {"quantize": "nf4"}):
        refused = said(InvalidValue, lambda given=settings: Lens("embedded/llava-next", remote=True, **given))
        assert refused == (
            "dtype, device, device_map and quantize are the server's; leave them out where the model runs remotely."
        )


def test_a_hub_id_that_is_nowhere(monkeypatch):
    from transformers import AutoConfig

    def missing(*_given, **_settings):
        raise OSError("owner/none is not a local folder.\nIf this is a private repository, log in.\nAnd more.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", missing)
    expected = "owner/none: not found on the hub or in its cache. owner/none is not a local folder."
    assert said(FileMissing, lambda: Lens("owner/none")) == expected


def test_broken_files_are_one_line(lens, tmp_path):
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    assert said(InvalidValue, lambda: Lens(tmp_path)).startswith(f"{tmp_path}: cannot be loaded. ")
    weights.unlink()
    assert said(FileMissing, lambda: Lens(tmp_path)).startswith(f"{tmp_path}: its files cannot be read. ")
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in said(FileMissing, lambda: Lens(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow"}')
    assert "of-tomorrow" in said(InvalidValue, lambda: Lens(tmp_path))


def test_an_architecture_without_a_table_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText, GPT2Config

    GPT2Config().save_pretrained(tmp_path)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", None)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_config", None)
    for open_ in (Lens, Lens.weightless):
        assert said(InvalidValue, lambda open_=open_: open_(tmp_path)).startswith("Unknown architecture 'gpt2'.")


def test_another_package_offers_checkpoints(lens, tmp_path, monkeypatch):
    class Point:
        name = "lab/mine"

        def load(self):
            return lambda: tmp_path

    monkeypatch.setattr(loading, "entry_points", lambda group: [Point()] if group == loading.GROUP else [])
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    assert Lens("lab/mine").name == "lab/mine"


def test_a_run_is_a_forward_and_refuses_other_words(lens):
    batch = mixed_batch(lens)
    with pytest.raises(TypeError, match="unexpected keyword argument 'logit'"):
        lens.run(count_active, batch, logit=True)
    out = lens.run(count_active, batch, logits=True)
    assert (out.text, out.tokens) == ([], [])
    assert [logits.device.type for logits in out.logits] == ["cpu"]
    below = run(lens.model, zero_at(lens) | count_active, [batch])
    assert torch.equal(below["count_active"], torch.zeros(3, 48, dtype=torch.int64))


def zero_at(lens):
    from interventions import Graph, per_layer

    return Graph((zero_neurons.bind(neurons=per_layer(torch.ones(3, 48, dtype=torch.bool))),))


def test_a_generation_answers_and_knows_its_settings(lens):
    batch = mixed_batch(lens)
    out = lens.generate(count_active, batch, max_new_tokens=2, do_sample=False, logits=True)
    assert len(out.text) == len(out.tokens) == 3
    assert out.logits[0].shape[:2] == (3, max(len(row) for row in out.tokens))
    with pytest.raises(TypeError, match="max_new_tokens"):
        lens.generate(count_active, batch)
    with pytest.raises(InvalidType, match=r"Unknown setting of generation 'num_beam'\. Did you mean 'num_beams'\?"):
        lens.generate(count_active, batch, max_new_tokens=2, num_beam=2)
    with pytest.raises(InvalidValue, match="max_new_tokens is 0; an answer has at least 1 token"):
        lens.generate(count_active, batch, max_new_tokens=0)


def test_a_packed_batch_is_not_for_generation(lens):
    batch = lens.pack([(pictures((32, 32)), ["is it red?", "why"])])
    for remote in (None, "http://127.0.0.1:9"):
        with pytest.raises(InvalidValue, match=r"A packed batch is not for generation; make one with lens\.encode"):
            lens.generate(count_active, batch, max_new_tokens=2, remote=remote)


def test_a_name_stands_for_its_one_site(lens):
    out = lens.run(count_active | keep.at(["llm.residual", "llm.embedding"]), mixed_batch(lens))
    assert out["count_active"] is out["count_active", "llm.mlp.act"]
    assert "count_active" in out
    with pytest.raises(UnknownName, match=r"'keep' has results at llm\.embedding, llm\.residual; write out\['keep', "):
        out["keep"]
    with pytest.raises(
        UnknownName, match=r"Unknown result 'count_activ'\. Did you mean 'count_active'\? Choices: keep"
    ):
        out["count_activ"]


def test_a_model_without_weights_does_not_run_here():
    light = Lens.weightless("embedded/llava-next")
    batch = mixed_batch(light)
    light.check(count_active, batch)
    with pytest.raises(InvalidValue, match="embedded/llava-next has no weights here; run it on a server"):
        light.run(count_active, batch)


def test_an_image_that_cannot_be_read_is_the_users_to_mend(lens, tmp_path):
    for image in (tmp_path / "none.png", b"nothing"):
        assert said(InvalidValue, lambda image=image: lens.encode([image], ["why"]))


def test_a_graph_that_needs_whole_rows_is_refused_before_the_model_runs(monkeypatch):
    lens = tiny_lens("llava_next")
    batch = lens.pack([(pictures((64, 64)), [f"question {number}?" for number in range(3)])], cut=False)
    cut = type(batch)(**{**vars(batch), "sharing": {"cuts": [10, batch.inputs["input_ids"].shape[1]]}})
    monkeypatch.setattr(lens.module, "forward", None)
    with pytest.raises(InvalidValue, match="needs a whole row"):
        lens.run(keep, cut)
