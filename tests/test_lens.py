"""For hands that know TransformerLens and nnsight: caches, free-hand traces, gradients, loading."""

from __future__ import annotations

import nnsight
import pytest
import torch
from conftest import mixed_batch
from hooks import neuron_paths, outputs

from mmneuron_lens import Lens


def test_run_with_cache(lens):
    batch = mixed_batch(lens)
    logits, cache = lens.run_with_cache(batch, ["llm.mlp.act", "*.residual"])
    with torch.no_grad():
        assert torch.equal(logits, lens.module(**batch.inputs).logits)
    paths = neuron_paths(lens)["llm.mlp.act"]
    seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
    assert torch.equal(cache["llm.mlp.act"], torch.stack([seen[path][0] for path in paths]))
    assert set(cache) == {"llm.mlp.act", "vision.residual", "llm.residual"}
    _, everything = lens.run_with_cache(batch)
    assert set(everything) == {site for site in lens.sites if not site.endswith("pattern")}


def test_free_hand_trace_and_gradients(lens):
    batch = mixed_batch(lens)
    with lens.trace(batch) as tracer:
        act = lens["llm.mlp.act"][2].output.save()
        loss = lens["llm.logits"].output[:, -1, 7].sum()
        with loss.backward():
            gradient = act.grad.save()
    path = neuron_paths(lens)["llm.mlp.act"][2]
    seen = []

    def keep_gradient(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    handle = lens.module.get_submodule(path).register_forward_hook(keep_gradient)
    lens.module(**batch.inputs).logits[:, -1, 7].sum().backward()
    handle.remove()
    lens.module.zero_grad()
    assert torch.equal(act, seen[0])
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(gradient, seen[0].grad)
    del tracer


def test_free_hand_generation(lens):
    batch = mixed_batch(lens)
    with lens.trace_generation(batch, max_new_tokens=2, min_new_tokens=2, do_sample=False) as tracer:
        ids = tracer.result.save()
    assert ids.shape == (3, batch.prompt_length + 2)


def test_scan_gives_shapes(lens):
    batch = mixed_batch(lens)
    with lens.scan(batch):
        shape = nnsight.save(tuple(lens["llm.mlp.act"][0].output.shape))
    assert shape == (3, batch.prompt_length, 48)


def test_session_of_two_traces(lens):
    batch = mixed_batch(lens)
    with lens.session():
        with lens.trace(batch):
            first = lens["llm.residual"][0].output.save()
        with lens.trace(batch):
            second = lens["llm.residual"][0].output.save()
    assert torch.equal(first, second)


def test_load_from_a_folder(lens, tmp_path):
    lens.module.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    loaded = Lens(tmp_path, dtype="float32", attn_implementation="eager")
    assert loaded.attention == "eager"
    assert loaded.sites == lens.sites
    batch = mixed_batch(loaded)
    real = batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = lens.module(**batch.inputs).logits[real]
        torch.testing.assert_close(loaded.module(**batch.inputs).logits[real], expected, rtol=1e-4, atol=1e-4)
    _, cache = loaded.run_with_cache(batch, "llm.attention.pattern")
    assert cache["llm.attention.pattern"].shape[:3] == (3, 3, 4)
    half = Lens(tmp_path, dtype="bfloat16")
    assert half.dtype == torch.bfloat16


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        Lens(tmp_path / "nowhere")


def test_an_embedded_model_that_is_not_there():
    with pytest.raises(KeyError, match=r"Unknown embedded model 'embedded/llava'. Did you mean 'embedded/llava-next'"):
        Lens.embedded("llava")


def test_results_name_their_choices(lens):
    from interventions import count_active

    out = lens.run(count_active, mixed_batch(lens))
    with pytest.raises(
        KeyError, match=r"Unknown result 'count, llm.mlp.act'. Did you mean 'count_active, llm.mlp.act'"
    ):
        out["count", "llm.mlp.act"]
    assert "int64 [3, 48]" in repr(out)
