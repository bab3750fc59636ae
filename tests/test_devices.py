"""Where a model's weights lie and in how many bits: as asked, or refused in one line; said in what is written."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import tiny_models
import torch
import typer
from conftest import mixed_batch
from hooks import NEURON_PATHS, outputs
from placed import Places, place, spread
from transformers import AutoModelForImageTextToText

from interventions import count_active
from interventions.errors import InvalidValue, MissingPackage, MMNeuronError
from mmneuron_lens import Lens
from mmneuron_lens.architectures import placement
from mmneuron_lens.cli import app

EMBEDDED = "embedded/llava-next"


def said(kind: type[Exception], **settings: object) -> str:
    """The one line with which these settings are refused, before anything is loaded."""
    with pytest.raises(kind) as caught:
        Lens(EMBEDDED, **settings)
    assert isinstance(caught.value, MMNeuronError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def installed(monkeypatch):
    """As if accelerate and bitsandbytes were there; what the model is loaded with is kept."""
    given: list[dict[str, object]] = []
    load = AutoModelForImageTextToText.from_pretrained

    def plain(repo, revision=None, **settings):
        given.append(settings)
        return load(repo, revision=revision)

    monkeypatch.setattr(placement, "find_spec", lambda name: name)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", plain)
    return given


@pytest.mark.parametrize(("name", "packages"), [("nf4", "bitsandbytes and accelerate"), ("int8", "accelerate")])
def test_a_missing_package_is_named(monkeypatch, name, packages):
    there = {"bitsandbytes"} if packages == "accelerate" else set()
    monkeypatch.setattr(placement, "find_spec", lambda name: name if name in there else None)
    expected = f"quantize={name!r} needs {packages}: pip install 'mmneuron-lens[quantize]'."
    assert said(MissingPackage, quantize=name) == expected
    assert said(MissingPackage, device_map="auto").startswith("device_map needs accelerate: pip install ")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"quantize": "nf3"}, "Unknown quantization 'nf3'. Did you mean 'nf4'? Choices: nf4, int8"),
        ({"quantize": ""}, "Unknown quantization ''. Choices: nf4, int8"),
        ({"device_map": "atuo"}, "Unknown device_map 'atuo'. Did you mean 'auto'? Choices: cpu, auto, balanced"),
        ({"device_map": "cuda:7"}, "Unknown device_map 'cuda:7'. "),
        ({"device_map": 3}, "Unknown device_map 'cuda:3'. "),
        ({"device_map": {"": "cuda:7"}}, "Unknown device in device_map 'cuda:7'. "),
        ({"device_map": {"model": 0, "lm_head": "cpu"}}, "Unknown device in device_map 'cuda:0'. "),
        ({"device_map": {"": "disk"}}, "Unknown device in device_map 'disk'. Choices: cpu"),
        ({"device_map": '{"": "auto"}'}, "Unknown device in device_map 'auto'. Choices: cpu"),
        ({"device_map": '{"": '}, 'device_map {"":  is no JSON: Expecting value'),
        ({"device_map": "cpu", "device": "cpu"}, "device is cpu and device_map cpu; give one of them."),
        ({"quantize": "nf4", "device": "tpu"}, "Unknown device 'tpu'. "),
    ],
)
def test_what_is_no_placement_is_refused_before_weights_are_read(installed, settings, line):
    assert said(InvalidValue, **settings).startswith(line)
    assert not installed


def test_quantization_reaches_transformers(installed):
    Lens(EMBEDDED, quantize="nf4", device="cpu", dtype="bfloat16")
    Lens(EMBEDDED, quantize="nf4", device_map='{"": "cpu"}')
    Lens(EMBEDDED, quantize="int8")
    Lens(EMBEDDED, device_map="cpu")
    first, second, third, fourth = installed
    asked = first["quantization_config"]
    assert (asked.load_in_4bit, asked.bnb_4bit_quant_type, asked.bnb_4bit_compute_dtype) == (
        True,
        "nf4",
        torch.bfloat16,
    )
    # On its way there: such weights do not move.
    assert (first["device_map"], first["dtype"]) == ({"": "cpu"}, "bfloat16")
    # The checkpoint's own dtype.
    assert second["quantization_config"].bnb_4bit_compute_dtype == torch.float32
    assert second["device_map"] == {"": "cpu"}
    assert placement.quantization(SimpleNamespace(**third)) == "int8"
    assert placement.quantization(SimpleNamespace(**second)) == "nf4"
    assert "device_map" not in third
    assert fourth == {"device_map": "cpu"}


def test_weights_that_no_device_holds_are_refused(installed, monkeypatch):
    def offloaded(repo, revision=None, **settings):
        module = copy.deepcopy(tiny_models.llava_next()[0])
        module.lm_head.to("meta")
        return module

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", offloaded)
    assert "1 weights, lm_head.weight first, fit on no device of device_map" in said(InvalidValue, device_map="auto")


def test_what_is_written_says_where_and_in_how_many_bits():
    module, processor = tiny_models.llava_next()
    plain = Lens.wrap(copy.deepcopy(module), processor).model
    assert plain.facts()["device"] == "cpu"
    assert "quantization" not in plain.facts()

    quantized = copy.deepcopy(module)
    quantized.model.vision_tower.embeddings.patch_embedding.weight = torch.nn.Parameter(
        torch.zeros(16, 192, dtype=torch.uint8), requires_grad=False
    )
    quantized.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    model = Lens.wrap(quantized, processor).model
    assert (model.facts()["quantization"], model.facts()["dtype"]) == ("int8", "float32")
    assert model.fingerprint != plain.fingerprint

    with Places():
        there = Lens.wrap(spread(module), processor).model
        assert (there.facts()["device"], there.facts()["fingerprint"]) == ("cuda", plain.fingerprint)
        there.module.lm_head._parameters["weight"] = place(module.lm_head.weight.detach(), torch.device("cpu"))
        assert there.facts()["device"] == "cpu+cuda"


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "int8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ],
)
def test_a_checkpoint_that_is_quantized_already_is_named(held, name):
    assert placement.quantization(SimpleNamespace(quantization_config=held)) == name


def test_every_command_that_loads_a_model_takes_them():
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in typer.main.get_command(app).commands.items()
    }
    loading = {name for name, own in options.items() if "--dtype" in own}
    assert loading == {"demo", "count", "select", "neurons", "ablate", "compare", "paper", "prove"}
    for name in loading:
        assert {"--device", "--device-map", "--quantize"} <= options[name]
        # A proof needs the weights here.
        assert ("--remote" in options[name]) == (name != "prove")


@pytest.mark.skipif(not (find_spec("bitsandbytes") and find_spec("accelerate")), reason="needs bitsandbytes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", placement.QUANTIZATIONS)
def test_a_quantized_model_counts_what_plain_hooks_count(name, tmp_path):
    module, processor = copy.deepcopy(tiny_models.llava_next())
    text = module.config.text_config
    # bitsandbytes takes blocks of 64 weights.
    text.hidden_size, text.intermediate_size, text.head_dim = 64, 128, 16
    vision = module.config.vision_config
    vision.hidden_size, vision.intermediate_size = 64, 128
    tiny_models.loud(type(module)(module.config)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    lens, again, plain = Lens(tmp_path, quantize=name), Lens(tmp_path, quantize=name), Lens(tmp_path)
    batch = mixed_batch(lens)
    out = lens.run(count_active, batch)
    assert lens.model.facts()["quantization"] == name
    assert lens.model.fingerprint == again.model.fingerprint == Lens.wrap(again.module, processor).model.fingerprint
    assert lens.model.fingerprint != plain.model.fingerprint
    assert lens.dtype == plain.dtype
    real = batch.inputs["attention_mask"].bool()
    paths = NEURON_PATHS["llava_next"]["llm.mlp.act"]
    seen = outputs(again.module, paths, lambda: again.module(**batch.inputs))
    expected = torch.stack([(seen[path][0][real] > 0).sum(0) for path in paths])
    assert torch.equal(out["count_active"], expected)
    assert not torch.equal(out["count_active"], plain.run(count_active, batch)["count_active"])
