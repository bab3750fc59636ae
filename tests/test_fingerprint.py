"""One changed weight, tokenizer, setting or dtype is another model; a path, a format of files or a server is not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import tiny_lens
from fake_ndif import FakeNdif, served_model
from tiny_models import changed_in_the_middle, checkpoint, saved_by_torch, saved_by_transformers

from mmneuron_lens import Lens
from mmneuron_lens.runtime import remote
from mmneuron_lens.wire.describe import BLOCK, checksum, describe, sample, weights_of

NAMES = ("llava_next", "instructblip")


@pytest.fixture(params=NAMES)
def folder(request, tmp_path):
    """A tiny checkpoint on disk."""
    return checkpoint(request.param, tmp_path / "one")


def fingerprint(folder, **settings) -> str:
    return Lens(folder, **settings).model.fingerprint


def test_the_same_model_has_the_same_fingerprint_from_any_folder(folder):
    first = fingerprint(folder)
    assert len(first) == 64
    shutil.copytree(folder, folder.parent / "elsewhere" / "two")
    lens = Lens(folder.parent / "elsewhere" / "two")
    lens.encode(None if lens.architecture.facts["text_only"] else [torch.zeros(32, 32, 3).numpy()], ["asked before"])
    assert lens.model.fingerprint == first == fingerprint(folder)


@pytest.mark.parametrize("save", [saved_by_transformers, saved_by_torch])
def test_a_checkpoint_retrained_in_place_is_another_model(folder, save):
    first = Lens(folder).model.fingerprint
    save(Lens(folder), folder)
    assert fingerprint(folder) == first
    other = Lens(folder)
    changed_in_the_middle(other)
    save(other, folder)
    assert fingerprint(folder) == other.model.fingerprint != first


def test_the_format_of_the_files_does_not_count(folder):
    first = fingerprint(folder)
    saved_by_torch(Lens(folder), folder)
    assert not (folder / "model.safetensors").exists()
    assert fingerprint(folder) == first


def test_a_buffer_counts(folder):
    one, other = Lens(folder), Lens(folder)
    for lens, value in ((one, 1.0), (other, 2.0)):
        lens.module.register_buffer("kept", torch.tensor([value]))
    assert one.model.fingerprint != other.model.fingerprint


def another_tokenizer(lens) -> None:
    lens.processor.tokenizer.add_tokens(["street"])


def another_template(lens) -> None:
    lens.processor.chat_template = "{{ messages }}"


def another_picture_size(lens) -> None:
    lens.processor.image_processor.image_mean = (0.5, 0.5, 0.5)


def another_configuration(lens) -> None:
    lens.module.config.get_text_config().rms_norm_eps = 1e-5


def another_generation(lens) -> None:
    lens.module.generation_config.repetition_penalty = 1.2


CHANGES = (another_tokenizer, another_template, another_picture_size, another_configuration, another_generation)


@pytest.mark.parametrize("change", CHANGES)
def test_what_else_decides_numbers_counts(folder, change):
    lens = Lens(folder)
    change(lens)
    saved = folder.parent / "changed"
    lens.module.save_pretrained(saved)
    lens.processor.save_pretrained(saved)
    assert fingerprint(saved) != fingerprint(folder)


def test_dtype_counts(folder):
    assert len({fingerprint(folder), fingerprint(folder, dtype="bfloat16"), fingerprint(folder, dtype="float16")}) == 3


def test_weights_out_of_sight_leave_a_fingerprint_of_the_rest(folder):
    light = Lens.weightless(folder).model
    assert len(light.fingerprint) == 64
    assert light.fingerprint == Lens.weightless(folder).model.fingerprint != fingerprint(folder)
    assert replace(light, revision="v2").fingerprint != light.fingerprint
    hidden = replace(light, served={"device": "server", "weights": weights_of(light.module)})
    assert hidden.fingerprint == light.fingerprint
    assert light.facts()["device"] == hidden.facts()["device"] == "server"


def test_a_served_model_has_the_fingerprint_of_its_weights(folder, monkeypatch):
    settings = Lens.weightless(folder).module.generation_config
    settings.update(repetition_penalty=1.2)
    settings.save_pretrained(folder)
    here = Lens(folder)
    # A folder is its own name; the client says so first.
    here.nnsight.to_model_key()
    model = served_model(folder)
    fake = FakeNdif(model)
    monkeypatch.setattr(remote, "refuse_unserved", lambda host, key: None)
    genuine = remote.backend_of

    def backend_of(asked, where, **settings):
        made = genuine(asked, where, **settings)

        class InProcess(type(made)):
            def __call__(self, tracer=None):
                fake.url = ""
                said = fake.run("1", {"blob": self._serialize(tracer), "compressed": self.compress})
                assert said["status"] == "COMPLETED", said["description"]
                result = self.finalize(fake.results["1"])
                self._push(result, tracer)
                return result

        made.__class__ = InProcess
        return made

    monkeypatch.setattr(remote, "backend_of", backend_of)
    there = Lens(folder, remote="https://there")
    assert there.remote == "https://there"
    assert there.device.type == "meta"
    assert there.model.facts() == here.model.facts()
    changed_in_the_middle(type("Served", (), {"module": model._module}))
    assert Lens(folder, remote="https://there").model.fingerprint != here.model.fingerprint


def test_facts_of_weights_are_plain_and_few():
    lens = tiny_lens("llava_next")
    told = describe(lens.nnsight)
    assert told["device"] == "cpu"
    assert [weight["name"] for weight in told["weights"]] == list(lens.module.state_dict())
    for weight in told["weights"]:
        assert len(weight["sampled"]) <= 64
        assert all(type(value) is int for value in [*weight["sampled"], *weight["shape"], weight["checksum"]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 64, 8 * BLOCK + 3])
def test_every_value_decides_the_checksum(dtype, size):
    weight = torch.randint(1, 100, (size,)).to(dtype)
    before = checksum(weight)
    assert checksum(weight.clone()) == before
    for place in {0, size // 2, size // 3 * 2, size - 1}:
        other = weight.clone()
        other.view(torch.uint8)[place * weight.element_size()] ^= 1
        assert checksum(other) != before
    # The last view starts at an odd byte.
    assert checksum(torch.cat([weight[:1], weight])[1:]) == before
    assert len(sample(weight)) == min(size, 64)


def test_rows_that_change_places_change_the_checksum():
    weight = torch.randn(32, 600)
    assert checksum(weight.flip(0).reshape(-1)) != checksum(weight.reshape(-1))


def test_a_tensor_without_values_and_one_without_axes():
    assert checksum(torch.zeros(0)) == 0
    assert sample(torch.zeros(0)) == []
    assert sample(torch.tensor(1.0).reshape(-1)) == [0x3F800000]
