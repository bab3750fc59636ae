"""LLaVA-NeXT over DINOv2: its sites; and the assembling of the smol model, on tiny files made here."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy
import pytest
import tiny_models
import torch
from conftest import pictures
from hooks import outputs
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from interventions import count_active, keep
from mmneuron_lens import Lens
from mmneuron_lens.artifacts.format import read_artifact
from mmneuron_lens.embedded.smol import CONNECTOR, assemble, dinov2, fetch, smol_folder, smollm2

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "real_parts"


def tiny_dinov2(**settings) -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, patch_size=4, image_size=16, use_mask_token=False, **settings)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model


def tiny_llama(tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_smol(**settings):
    """The two tiny parts joined, every weight loud enough to be seen in the logits."""
    model, processor = assemble.join(tiny_dinov2(**settings), tiny_llama(), tiny_models.tokenizer())
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
    return model, processor


@pytest.mark.parametrize("settings", [{}, {"use_swiglu_ffn": True}], ids=["mlp", "swiglu"])
def test_every_site_over_dinov2_is_proved(settings):
    lens = Lens.wrap(*tiny_smol(**settings))
    proofs = {proof.site: proof for proof in lens.prove()}
    assert set(proofs) == {site for site in lens.sites if not site.endswith("pattern")}
    assert {site for site, proof in proofs.items() if not proof.moved} == {"vision.pooled"}
    assert proofs["vision.mlp.act"].moved == (0, 1)


def test_attention_patterns_over_dinov2_under_eager_attention():
    module, processor = tiny_smol()
    module.set_attn_implementation("eager")
    lens = Lens.wrap(module, processor)
    assert {proof.site for proof in lens.prove()} == set(lens.sites)
    batch = lens.encode(pictures((32, 32)), ["is it?"])
    pattern = lens.run(keep.at("vision.attention.pattern"), batch)["keep", "vision.attention.pattern"][0]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))


def test_the_last_layer_is_dead_when_the_projector_reads_the_one_before():
    module, processor = tiny_smol()
    module.config.vision_feature_layer = -2
    lens = Lens.wrap(module, processor)
    proofs = {proof.site: proof for proof in lens.prove()}
    assert proofs["vision.mlp.act"].dead == (1,)
    assert proofs["vision.mlp.act"].says == "the projector reads hidden state 1 of 2 (vision_feature_layer=-2)"


def test_neurons_over_dinov2_are_counted_as_a_hook_counts_them():
    lens = Lens.wrap(*tiny_smol())
    batch = lens.encode(pictures((40, 56), (64, 30)), ["Is it red?", "why"])
    paths = [f"model.vision_tower.encoder.layer.{layer}.mlp.activation_fn" for layer in range(2)]
    seen = outputs(lens.module, paths, lambda: lens.module(**batch.inputs))
    expected = torch.stack([(seen[path][0] > 0).flatten(0, -2).sum(0) for path in paths])
    assert torch.equal(lens.run(count_active.at("vision.mlp.act"), batch)["count_active", "vision.mlp.act"], expected)
    assert lens.architecture.neurons("vision.mlp.act") == 2 * 256


def test_the_projector_reads_before_the_final_norm():
    lens = Lens.wrap(*tiny_smol())
    batch = lens.encode(pictures((32, 32)), ["is it?"])
    norm, before = lens.module.model.vision_tower.layernorm, lens.module(**batch.inputs).logits
    handle = norm.register_forward_hook(lambda module, inputs, output: output * 0 + 7)
    after = lens.module(**batch.inputs).logits
    handle.remove()
    assert torch.equal(before, after)


# The vision encoder's file.


def onnx_file(folder: Path, model: Dinov2Model, without: str = "") -> Path:
    """A file as the exporter writes one: linear weights transposed and numbered, biases and the rest with names."""
    onnx = pytest.importorskip("onnx")
    held, nodes, number = {}, [], 0
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, value in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        old = name
        for new, former in (
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
        ):
            old = old.replace(new, former)
        if name == "embeddings.position_embeddings":
            held["onnx::Concat_1"], held["onnx::Reshape_2"] = value[:, :1], value[:, 1:]
        elif owner in linear and last == "weight":
            if name == without:
                continue
            number += 1
            held[f"onnx::MatMul_{number}"] = value.T
            bias = "backbone." + old.removesuffix("weight") + "bias"
            nodes.append(onnx.helper.make_node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"p{number}"]))
            # The exporter puts the bias first or second, as it likes.
            inputs = [bias, f"p{number}"] if number % 2 else [f"p{number}", bias]
            nodes.append(onnx.helper.make_node("Add", inputs, [f"y{number}"]))
        else:
            held[f"backbone.{old}"] = value
    held["decoder.bias"], held["onnx::MatMul_99"] = torch.zeros(4), torch.zeros(4, 4)
    nodes.append(onnx.helper.make_node("MatMul", ["d", "onnx::MatMul_99"], ["e"]))
    nodes.append(onnx.helper.make_node("Add", ["e", "decoder.bias"], ["f"]))
    initializers = [onnx.numpy_helper.from_array(numpy.ascontiguousarray(v.numpy()), n) for n, v in held.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(folder / "tiny.onnx"))
    return folder / "tiny.onnx"


def test_dinov2_is_read_out_of_an_onnx_file(tmp_path):
    model = tiny_dinov2()
    read = dinov2.read_dinov2(onnx_file(tmp_path, model), tile=16)
    state = model.state_dict()
    assert read.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in read.state_dict().items())
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(read(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_position_embeddings_are_resampled_as_the_model_itself_would(tmp_path):
    model = tiny_dinov2()
    read = dinov2.read_dinov2(onnx_file(tmp_path, model), tile=8)
    assert read.config.image_size == 8
    assert read.embeddings.position_embeddings.shape == (1, 5, 128)
    # The model interpolates by itself for images of another size than its own.
    pixels = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(read(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_a_file_that_is_not_dinov2_is_named(tmp_path):
    file = onnx_file(tmp_path, tiny_dinov2(), without="encoder.layer.1.mlp.fc2.weight")
    with pytest.raises(dinov2.PartError, match=r"tiny\.onnx: the backbone lacks \['encoder\.layer\.1\.mlp\.fc2\.w"):
        dinov2.read_dinov2(file, tile=16)
    with pytest.raises(dinov2.PartError, match="tiles of 18 pixels do not hold whole patches of 4; choose a multiple"):
        dinov2.read_dinov2(onnx_file(tmp_path, tiny_dinov2()), tile=18)


# The language model's file.


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query and key rows as a GGUF file has them: row 2i of a head is its row i, row 2i + 1 its row half + i."""
    size = weight.shape[0] // heads
    order = [head * size + place for head in range(heads) for i in range(size // 2) for place in (i, size // 2 + i)]
    return weight[order]


def gguf_file(folder: Path, model: LlamaForCausalLM, architecture: str = "llama", quantised: bool = False) -> Path:
    gguf = pytest.importorskip("gguf")
    config, file = model.config, folder / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġ", "Ċ", "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    names = {f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    names |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in model.state_dict().items():
        name = name.removesuffix(".weight")
        if name == "lm_head" and config.tie_word_embeddings:
            continue
        if name in outer:
            new = outer[name]
        else:
            _, _, layer, inner = name.split(".", 3)
            new = f"blk.{layer}.{names[inner]}"
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(names[inner])
            value = value if heads is None else interleaved(value, heads)
        array = numpy.ascontiguousarray(value.float().numpy())
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{new}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{new}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_is_read_out_of_a_gguf_file(tmp_path, tied):
    model = tiny_llama(tied)
    read = smollm2.read_smollm2(gguf_file(tmp_path, model))
    state = model.state_dict()
    assert read.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in read.state_dict().items())
    ids = torch.randint(0, 100, (2, 9))
    assert torch.equal(read(ids).logits, model(ids).logits)


def test_quantised_weights_come_within_a_step_of_the_original(tmp_path):
    model = tiny_llama()
    read = smollm2.read_smollm2(gguf_file(tmp_path, model, quantised=True))
    own, found = model.state_dict(), read.state_dict()
    name = "model.layers.1.self_attn.q_proj.weight"
    # Q8_0: blocks of 32 along a row share a scale of their largest absolute value over 127, itself a float16.
    step = own[name].reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    assert ((own[name] - found[name]).reshape(-1, 32).abs() <= 0.57 * step).all()
    assert not torch.equal(own[name], found[name])


def test_the_tokenizer_of_a_gguf_file_gets_an_image_and_a_padding_token(tmp_path):
    tokenizer = smollm2.read_tokenizer(gguf_file(tmp_path, tiny_llama()))
    ids = tokenizer("ab<image>a").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "<image>", "a"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_another_architecture_is_refused(tmp_path):
    with pytest.raises(dinov2.PartError, match=r"holds the architecture 'gpt2', not 'llama'; give SmolLM2's own file"):
        smollm2.read_smollm2(gguf_file(tmp_path, tiny_llama(), architecture="gpt2"))


# Joined.


@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_are_the_same_when_joined(tmp_path, tied):
    vision, language = tiny_dinov2(), tiny_llama(tied)
    model, processor = assemble.join(vision, language, tiny_models.tokenizer())
    ids = torch.randint(5, 100, (2, 9))
    joined = model(input_ids=ids).logits
    torch.testing.assert_close(joined[..., :100], language(ids).logits)
    assert joined.shape[-1] == len(processor.tokenizer)
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.model.vision_tower(pixels).last_hidden_state, vision(pixels).last_hidden_state)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, also = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = also(images=pictures((20, 30)), text=["<image>\nabc"], return_tensors="pt")
    assert type(again) is type(model)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_connector_goes_from_one_model_into_another(tmp_path):
    model, _ = tiny_smol()
    other, _ = assemble.join(tiny_dinov2(), tiny_llama(), tiny_models.tokenizer())
    assemble.save_connector(model, tmp_path / "c.safetensors", {"training": {"steps": 3}})
    metadata = assemble.load_connector(other, tmp_path / "c.safetensors")
    assert metadata["training"] == {"steps": 3}
    assert set(assemble.connector(model)) == {
        "linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias", "image_newline"
    }  # fmt: skip
    assert all(torch.equal(value, assemble.connector(other)[name]) for name, value in assemble.connector(model).items())
    narrow, _ = tiny_models.llava_next()
    with pytest.raises(ValueError, match=r"c\.safetensors: linear_1\.weight is \[64, 128\], but this model's is \[32"):
        assemble.load_connector(narrow, tmp_path / "c.safetensors")


# Fetched.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMNEURON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_wheel(folder: Path, content: bytes = b"part") -> tuple[Path, fetch.Wheel]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "a_part-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a_part/part.bin", content)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file, fetch.Wheel("a-part", "1.0", digest, "a_part/part.bin", 0.1)


def test_a_part_is_fetched_once_and_then_needs_no_network(tmp_path, cache, monkeypatch):
    source, wheel = a_wheel(tmp_path / "index")
    asked, said = [], []

    def download(wheel, folder):
        asked.append(wheel.package)
        (folder / wheel.file_name).write_bytes(source.read_bytes())

    monkeypatch.setattr(fetch, "_download", download)
    for _ in range(2):
        with fetch.unpacked(wheel, said.append) as file:
            assert file.read_bytes() == b"part"
        assert not file.exists()
    assert asked == ["a-part"]
    assert said == [f"Fetching a-part 1.0 (0.1 MB) into {cache / 'wheels'}, once"]


def test_a_file_that_is_not_the_pinned_one_is_refused_and_not_kept(tmp_path, cache, monkeypatch):
    _, wheel = a_wheel(tmp_path / "index")
    monkeypatch.setattr(fetch, "_download", lambda wheel, folder: (folder / wheel.file_name).write_bytes(b"other"))
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(fetch.FetchError, match=f"a_part-1.0-py3-none-any.whl has sha256 {other}, not {wheel.sha256}; "):
        fetch.fetch(wheel, lambda text: None)
    assert list((cache / "wheels").iterdir()) == []
    # One that was cut off in the cache is fetched again.
    (cache / "wheels" / wheel.file_name).write_bytes(b"half")
    assert fetch.cached(wheel) is None


def test_a_download_that_fails_says_what_to_do(tmp_path, cache, monkeypatch):
    _, wheel = a_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(fetch.FetchError, match=r"could not download a-part==1\.0; try again with a network, or put"):
        fetch.fetch(wheel, lambda text: None)
    assert list((cache / "wheels").iterdir()) == []


def test_without_a_connector_nothing_is_assembled(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such connector; train one with bench"):
        smol_folder(tmp_path / "none.safetensors")


def test_the_model_is_assembled_once_and_loads(tmp_path, cache, monkeypatch):
    trained, _ = tiny_smol()
    assemble.save_connector(trained, tmp_path / "c.safetensors", {})
    made = []

    def parts(say):
        made.append(say)
        return assemble.join(tiny_dinov2(), tiny_llama(), tiny_models.tokenizer())

    monkeypatch.setattr("mmneuron_lens.embedded.smol.parts", parts)
    folders = {smol_folder(tmp_path / "c.safetensors") for _ in range(2)}
    assert len(made) == len(folders) == 1
    (folder,) = folders
    digest = hashlib.sha256((tmp_path / "c.safetensors").read_bytes()).hexdigest()
    assert folder == cache / "assembled" / digest[:12] / "smol"
    lens = Lens(folder)
    assert lens.architecture.name == "LLaVA-NeXT"
    found = assemble.connector(lens.module)
    assert all(torch.equal(value, found[name]) for name, value in assemble.connector(trained).items())
    # Nothing half written stays beside it.
    assert [path.name for path in folder.parent.iterdir()] == ["smol"]


def test_the_demo_runs_on_the_assembled_model(tmp_path, monkeypatch):
    import compared_selectors  # noqa: F401

    from mmneuron_lens.artifacts.selection import Selection
    from mmneuron_lens.paper.demo import SMOL, SMOL_PLAN, demo, demo_plan
    from mmneuron_lens.runs.store import Store

    model, processor = tiny_smol()
    model.save_pretrained(tmp_path / "smol")
    processor.save_pretrained(tmp_path / "smol")
    monkeypatch.setattr("mmneuron_lens.embedded.smol.smol_folder", lambda say=None: tmp_path / "smol")
    assert demo_plan([SMOL]) is SMOL_PLAN
    plan = replace(
        SMOL_PLAN, identification_images=3, identification_questions=1, evaluation_images=1, evaluation_questions=1,
        random_draws=1, permutations=2, compared=(0.05,),
    )  # fmt: skip
    html = demo(Store(tmp_path / "run"), models=[SMOL], plan=plan).read_text(encoding="utf-8")
    assert "Domain-specific neurons of embedded/smol" in html
    assert "vision encoder and language model are real, published ones" in html
    selection = Selection.load(tmp_path / "run" / "selection" / "embedded+smol.safetensors")
    assert selection.model == "embedded/smol"
    assert (tmp_path / "run" / "comparison" / "embedded+smol.safetensors").is_file()


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"the smol model needs gguf: pip install 'mmneuron-lens\[smol\]'"):
        smollm2.read_smollm2("any.gguf")


# Trained and measured.


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))


def test_a_counterfactual_pair_has_two_answers_to_every_question(benchmark_modules):
    from asking import pair

    from mmneuron_lens.corpora.sample import DOMAINS

    random = Random(0)
    for source in (*DOMAINS, "real"):
        told = []
        for _ in range(6):
            images, asked = pair(source, "train", random, 6)
            assert len(images) == len(asked) == 2
            for first, second in zip(*asked, strict=True):
                assert first.question == second.question
                if not first.options:
                    assert first.answer != second.answer
                told += [first.answer, second.answer]
        assert told.count("yes") == told.count("no") > 0


def test_questions_packed_in_one_row_get_what_each_gets_alone(benchmark_modules):
    from packing import IGNORED, logits, pack, prompt

    from mmneuron_lens.embedded.corpus.canvas import Question

    model, processor = tiny_smol()
    images = pictures((40, 56), (16, 40))
    asked = [[Question("is it red?", "no", ""), Question("how many?", "12", "")], [Question("why", "x", "")]]
    batch = pack(processor, images, asked, ["common", "auto_driving"], "evaluation")
    said = logits(model, batch)
    start = 0
    for image, questions, source in zip(images, asked, ["common", "auto_driving"], strict=True):
        for question in questions:
            text = prompt(question, source, "evaluation")
            inputs = processor(images=[image], text=[f"{text} {question.answer}"], return_tensors="pt")
            count = len(processor.tokenizer(f" {question.answer}").input_ids) + 1
            alone = model(**inputs).logits[0, -count:]
            torch.testing.assert_close(said[start : start + count], alone, atol=1e-4, rtol=1e-4)
            labels = batch.labels[batch.labels != IGNORED][start : start + count].tolist()
            told = processor.tokenizer.convert_ids_to_tokens(labels)
            assert told == [" ", *question.answer, "</s>"]
            start += count
    assert start == len(said)


# The real parts, where they have been fetched.


def test_smollm2_speaks():
    if fetch.cached(fetch.SMOLLM2) is None:
        pytest.skip(f"{fetch.SMOLLM2.file_name} is not in {fetch.cache_folder()}")
    pytest.importorskip("gguf")
    with fetch.unpacked(fetch.SMOLLM2) as file:
        model = smollm2.read_smollm2(file)
    # "The capital of France is", and " Paris"; to read 49,152 tokens into a tokenizer takes longer than the weights.
    with torch.no_grad():
        told = model(torch.tensor([[504, 3575, 282, 4649, 314]])).logits[0, -1].argmax()
    assert told == 7042
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_dinov2_small_as_published():
    if fetch.cached(fetch.DINOV2) is None:
        pytest.skip(f"{fetch.DINOV2.file_name} is not in {fetch.cache_folder()}")
    pytest.importorskip("onnx")
    with fetch.unpacked(fetch.DINOV2) as file:
        model = dinov2.read_dinov2(file, 56)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 12, 6)
    assert model.embeddings.position_embeddings.shape == (1, 17, 384)


def test_the_connector_that_ships_is_read():
    tensors, metadata = read_artifact(CONNECTOR, assemble.KIND)
    assert set(tensors) == set(assemble.connector(tiny_smol()[0]))
    assert metadata["training"]["steps"] > 0
