"""Discovery finds what tables written by hand name, in modules alone; widths are those of a forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import newer_models
import pytest
import tiny_models
import torch
import transformers
from conftest import ARCHITECTURES, tiny_lens
from hooks import NEURON_PATHS, outputs

from interventions.errors import InvalidValue
from mmneuron_lens import Lens
from mmneuron_lens.architectures.discovery import discover, is_activation, misplaced, named
from mmneuron_lens.architectures.measuring import shapes_of
from mmneuron_lens.runtime.agreement import asked_in, own_inputs
from mmneuron_lens.runtime.proving import example

# transformers' own: a processor makes an array of a tensor, which numpy 2 wants asked otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

NAMES = (*newer_models.ARCHITECTURES, *ARCHITECTURES)


def made(name: str) -> tuple[Any, Any]:
    return getattr(newer_models if name in newer_models.ARCHITECTURES else tiny_models, name)()


def weightless(module: Any) -> Any:
    with torch.device("meta"):
        return type(module)(module.config).eval()


def by_hand(name: str) -> Iterator[str]:
    """Paths of neurons as tests have them, with `{l}`."""
    if name in newer_models.ARCHITECTURES:
        yield from filter(None, newer_models.ARCHITECTURES[name])
        return
    paths = NEURON_PATHS["llava_next" if name == "llava" else "instructblip" if name == "blip2" else name]
    for site, some in paths.items():
        if name != "blip2" or site != "qformer.text.act":
            yield some[0].replace(".0.", ".{l}.")


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_a_table_by_hand_is_found_without_weights(name):
    module, processor = made(name)
    found = discover(weightless(module))
    assert set(by_hand(name)) <= found.activations.keys()
    assert all(found.layers[path] == tuple(range(len(found.layers[path]))) for path in by_hand(name))
    assert all(bool(found.layers[path]) == ("{l}" in path) for path in found.activations)
    lens = Lens.wrap(module, processor)
    assert misplaced(found, lens.architecture) == ""
    sites = named(found, lens.architecture)
    assert {site for site in sites.values() if site} == {site for site in lens.sites if site.endswith(".act")}
    expected = {"model.visual.merger.act1"} if name in ("glm4v", "glm46v") else set()
    assert {path for path, site in sites.items() if not site} == expected
    inside = module.get_submodule(found.decoder)
    assert inside is lens.module.get_submodule(lens.architecture.place("llm.norm").path.rpartition(".")[0])
    assert found.head == lens.architecture.place("llm.logits").path


def test_projectors_inside_the_tower_are_found():
    found = discover(newer_models.qwen3_vl()[0])
    assert found.layers["model.visual.deepstack_merger_list.{l}.act_fn"] == (0, 1)
    assert found.blocks["model.visual.deepstack_merger_list.{l}"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_widths_without_weights_are_those_of_a_forward(name):
    module, processor = made(name)
    lens = Lens.wrap(module, processor)
    found = discover(module)
    paths = [path for pattern in found.activations for path in found.paths(pattern)]
    inputs = own_inputs(lens.model, *asked_in(example(lens.model))[0])
    seen = outputs(module, paths, lambda: module(**inputs))
    expected = {path: tuple(values[0].shape) for path, values in seen.items() if values}
    assert len(expected) == len(paths)
    assert shapes_of(weightless(module), paths, inputs) == expected
    assert shapes_of(module, paths, inputs) == expected


@pytest.mark.parametrize("head", [True, False])
def test_a_pooling_head_that_nothing_reads_is_listed(head):
    module, _ = newer_models.gemma3()
    config = transformers.Gemma3Config.from_dict(module.config.to_dict())
    config.vision_config.vision_use_head = head
    with torch.device("meta"):
        other = transformers.Gemma3ForConditionalGeneration(config)
    unnamed = [path for path, site in named(discover(other), tiny_lens_of("gemma3").architecture).items() if not site]
    assert unnamed == (["model.vision_tower.head.mlp.activation_fn"] if head else [])


def tiny_lens_of(name: str) -> Lens:
    return Lens.wrap(*made(name))


def test_what_is_an_activation_module():
    known = [transformers.activations.ACT2FN[name] for name in transformers.activations.ACT2CLS if name != "xielu"]
    assert all(map(is_activation, [*known, torch.nn.GELU(), torch.nn.SiLU(), torch.nn.ReLU(), torch.nn.Hardswish()]))
    others = (torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Softmax(-1), torch.nn.MultiheadAttention(2, 1))
    assert not any(map(is_activation, others))


def test_a_class_of_ones_own_that_is_one_of_torchs_is_found():
    class Mine(torch.nn.GELU):
        pass

    module, _ = made("llava")
    module = weightless(module)
    module.model.multi_modal_projector.act = Mine()
    found = discover(module)
    assert found.activations["model.multi_modal_projector.act"] == "Mine"
    assert not found.in_decoder("model.multi_modal_projector.act")
    assert found.in_decoder("model.language_model.layers.0.mlp.act_fn")


def test_a_model_without_a_decoder_is_refused():
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        tower = transformers.CLIPVisionModel(config)
    with pytest.raises(InvalidValue, match=r"CLIPVisionModel names no decoder"):
        discover(tower)


def test_a_forward_that_depends_on_weights_is_refused_without_them():
    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.act = torch.nn.GELU()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.act(x * self.weight) if float(self.weight.sum()) > 0 else x

    module = Branches()
    assert shapes_of(module, ["act"], {"x": torch.ones(2, 3)}) == {"act": (2, 3)}
    with pytest.raises(InvalidValue, match=r"Branches has no forward without weights, so its widths are not measured"):
        shapes_of(module.to("meta"), ["act"], {"x": torch.ones(2, 3)})


def test_a_module_that_is_not_reached_has_no_shape():
    lens = tiny_lens("llava_next")
    inputs = {"input_ids": torch.ones(1, 3, dtype=torch.long)}
    paths = ["model.multi_modal_projector.act", "model.language_model.layers.0.mlp.act_fn"]
    assert shapes_of(lens.module, paths, inputs) == {paths[1]: (1, 3, 48)}
