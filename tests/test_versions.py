"""What versions of transformers do differently: the cache's name, and how a processor is found without weights."""

from __future__ import annotations

import newer_models
import pytest
import tiny_models
from conftest import pictures

from interventions import reads
from mmneuron_lens import Lens

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

MODELS = {
    "llava_next": tiny_models.llava_next,
    "instructblip": tiny_models.instructblip,
    "qwen2_vl": newer_models.qwen2_vl,
    "internvl": newer_models.internvl,
}


@reads("llm.attention.mask", over="list")
def seen_keys(mask):
    """How many keys each query may see."""
    return mask.sum(-1)


@pytest.mark.parametrize("name", MODELS)
def test_a_generated_token_sees_all_that_came_before(name):
    """Without padding no mask is handed down: what a step sees is known from the cache alone."""
    lens = Lens.wrap(*MODELS[name]())
    batch = lens.encode(pictures((32, 32)), ["why"])
    length = int(batch.inputs["attention_mask"].sum())
    generation = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 2}
    out = lens.generate(seen_keys.at(steps="generated", all_beams=True), batch, **generation)
    for step, seen in enumerate(out["seen_keys"][0], 1):
        # [layer, beam, query]: one query, which sees the prompt, the tokens before it and itself.
        assert seen.tolist() == [[[length + step]] * 2] * 3


@pytest.mark.parametrize("name", ["embedded/llava-next", "embedded/instructblip"])
def test_a_model_without_weights_is_wrapped_with_its_processor(name):
    light = Lens.weightless(name)
    assert [envoy.path for envoy in light["llm.mlp.act"]] == [envoy.path for envoy in Lens(name)["llm.mlp.act"]]
    assert type(light.nnsight.processor) is type(light.processor)
