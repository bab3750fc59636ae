"""Eight experiments in at most ten lines each: what they return is what plain hooks on the module give.

The cells of notebooks 6 to 8 return what the experiments do, and docs/experiments.md holds the experiments themselves.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy
import pytest
import torch
from eight_experiments import (
    EXPERIMENTS,
    attention_knock_out,
    attribution_to_positions,
    encoded,
    patch_heat_map,
    patching,
    probe,
    steering,
    top_images,
    tuned_beside_logit,
)
from hooks import hooked, outputs
from PIL import Image
from torch import Tensor

from interventions import logit_difference
from mmneuron_lens import Lens, load_corpus
from mmneuron_lens.experiments import probes
from mmneuron_lens.experiments.fit_tuned import fit_tuned_lens

NAMES = ("llava-next", "idefics3")
DECODERS = {"llava-next": "model.language_model", "idefics3": "model.text_model"}
LAYERS = 4
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@cache
def study_of(name: str) -> SimpleNamespace:
    """A trained model, questions about pictures with water and without, and its parts by paths written out here."""
    lens, corpus = Lens(f"embedded/{name}"), load_corpus("drawn", images=12)
    asked = [one for one in corpus if one.question == "Is a water area present?"]
    every = [[one for one in asked if one.answers == (answer,)] for answer in ("yes", "no")]
    wet, dry = (some[:3] for some in every)
    yes, no = (lens.processor.tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("yes", "no"))
    return SimpleNamespace(
        lens=lens,
        corpus=corpus,
        all=every,
        samples=wet,
        wet=encoded(lens, wet),
        dry=encoded(lens, dry),
        yes=yes,
        no=no,
        target=logit_difference.bind(right=torch.full((3,), yes), wrong=torch.full((3,), no)),
        layers=[f"{DECODERS[name]}.layers.{layer}" for layer in range(LAYERS)],
        decoder=DECODERS[name],
        image_token=lens.module.config.image_token_id,
    )


@pytest.fixture(params=NAMES)
def study(request) -> SimpleNamespace:
    return study_of(request.param)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def states_of(study, batch) -> Tensor:
    """The residual stream behind every layer: [layer, row, token, hidden]."""
    found = outputs(study.lens.module, study.layers, lambda: study.lens.module(**batch.inputs))
    return torch.stack([first(found[path][0]) for path in study.layers])


def into(study, suffix: str, batch) -> Tensor:
    """What a part of every layer is given: [layer, row, token, ...]."""
    held: list[Tensor] = []
    handles = [
        study.lens.module.get_submodule(f"{path}.{suffix}").register_forward_pre_hook(
            lambda _, given: held.append(given[0])
        )
        for path in study.layers
    ]
    with torch.no_grad():
        study.lens.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    return torch.stack(held)


def embedding_of(study, batch) -> Tensor:
    """What the decoder is given: [row, token, hidden]."""
    held: list[Tensor] = []
    handle = study.lens.module.get_submodule(study.decoder).register_forward_pre_hook(
        lambda _, given, named: held.append(named["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        study.lens.module(**batch.inputs)
    handle.remove()
    return held[0]


def contrast(study, batch, hooks: dict[str, Any] | None = None) -> Tensor:
    """The logit of "yes" less that of "no" behind every prompt, hooks being in force: [row]."""
    with torch.no_grad(), hooked(study.lens.module, hooks or {}):
        logits = study.lens.module(**batch.inputs).logits[:, -1]
    return logits[:, study.yes] - logits[:, study.no]


def pixels(sample) -> numpy.ndarray:
    """Of its picture: [height, width, 3]."""
    with Image.open(sample.images[0]) as picture:
        return numpy.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.__name__)
def test_each_has_at_most_ten_lines(experiment):
    (made,) = ast.parse(inspect.getsource(experiment)).body
    assert isinstance(made, ast.FunctionDef)
    said = made.body[0].end_lineno if ast.get_docstring(made) else made.lineno
    assert made.end_lineno is not None
    assert said is not None
    # The line of `def` is one of them.
    assert 1 + made.end_lineno - said <= 10


def test_a_heat_map_over_a_picture(study):
    neuron, found = patch_heat_map(study.lens, study.wet, study.dry, layer=0, row=1)
    here, there = (into(study, "mlp.down_proj", one)[0] for one in (study.wet, study.dry))
    image = study.wet.inputs["input_ids"][1] == study.image_token
    most, other = here[:, image].amax(1), there[:, image].amax(1)
    assert neuron == int((most.mean(0) - other.mean(0)).argmax())
    height, width = pixels(study.samples[1]).shape[:2]
    assert found.shape == (height, width)
    boxes, values = study.wet.boxes(1)[:, 1:].tolist(), here[1, image, neuron].tolist()
    placed = [
        (
            (box[2] - box[0]) * (box[3] - box[1]) if not math.isnan(box[0]) else math.inf,
            box,
            value,
        )
        for box, value in zip(boxes, values, strict=True)
    ]
    for y in range(0, height, 5):
        for x in range(0, width, 5):
            over = [
                (area, value)
                for area, (left, top, right, bottom), value in placed
                if left <= x + 0.5 < right and top <= y + 0.5 < bottom
            ]
            assert float(found[y, x]) == pytest.approx(min(over)[1], abs=1e-4)


def test_the_neuron_of_water_is_active_on_the_pond():
    """That the heat map shows something: of the trained LLaVA-NeXT, on pixels that are blue."""
    study = study_of("llava-next")
    wet, dry = (encoded(study.lens, some) for some in study.all)
    for row, sample in enumerate(study.all[0]):
        _, found = patch_heat_map(study.lens, wet, dry, layer=0, row=row)
        colours = pixels(sample)
        blue = torch.from_numpy((colours[..., 2] > colours[..., 0] + 25) & (colours[..., 2] > colours[..., 1] + 25))
        assert found[blue].mean() > found[~blue].mean() + 2 * found[~blue].std()


def test_steering(study):
    scales = [0.0, 1.5]
    found = steering(study.lens, study.wet, study.dry, study.target, scales)
    assert found.shape == (LAYERS, 2, 3)
    there, here = (states_of(study, one)[:, :, -1].mean(1) for one in (study.dry, study.wet))
    for layer, path in enumerate(study.layers):
        for column, scale in enumerate(scales):

            def steered(output, layer=layer, scale=scale):
                return with_first(output, first(output) + scale * (there - here)[layer])

            torch.testing.assert_close(found[layer, column], contrast(study, study.wet, {path: steered}), **CLOSE)
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.02


@pytest.mark.parametrize(("queries", "keys"), [("last", "image"), ("last", "question"), ("question", "image")])
def test_attention_knock_out(study, queries, keys):
    found = attention_knock_out(study.lens, study.wet, study.target, range(LAYERS), queries, keys, window=2)
    ids = study.wet.inputs["input_ids"]
    image = ids == study.image_token
    behind = torch.arange(ids.shape[1]) > int(image[0].nonzero().max())
    last = torch.arange(ids.shape[1]) == ids.shape[1] - 1
    parts = {"image": image[0], "question": behind & ~last, "last": last}
    allowed = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    assert study.wet.inputs["attention_mask"].all()
    cut = allowed & ~(parts[queries][:, None] & parts[keys][None])

    def masked(_, given, named):
        return given, {**named, "attention_mask": cut[None, None].expand(3, 1, -1, -1)}

    plain = contrast(study, study.wet)
    for layer in range(LAYERS):
        # As many below as above, of an even window one more below.
        window = [path for place, path in enumerate(study.layers) if layer - 1 <= place <= layer]
        handles = [
            study.lens.module.get_submodule(f"{path}.self_attn").register_forward_pre_hook(masked, with_kwargs=True)
            for path in window
        ]
        expected = contrast(study, study.wet) - plain
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found[layer], expected, **CLOSE)
    assert found.abs().max() > 1e-3


def test_patching(study):
    length = study.wet.inputs["input_ids"].shape[1]
    image = (study.wet.inputs["input_ids"][0] == study.image_token).nonzero().flatten().tolist()
    places = {"image": image, -1: [length - 1], -2: [length - 2], (length - 4, length - 3): [length - 4, length - 3]}
    found = patching(study.lens, study.wet, study.dry, study.target, range(LAYERS), list(places))
    sources = states_of(study, study.dry)
    corrupted, clean = (contrast(study, one).mean() for one in (study.wet, study.dry))
    for layer, path in enumerate(study.layers):
        for column, columns in enumerate(places.values()):

            def patched(output, layer=layer, columns=columns):
                value = first(output).clone()
                value[:, columns] = sources[layer][:, columns]
                return with_first(output, value)

            expected = (contrast(study, study.wet, {path: patched}).mean() - corrupted) / (clean - corrupted)
            torch.testing.assert_close(found[layer, column], expected, **CLOSE)
    # Behind the last layer, its last position is all there is.
    torch.testing.assert_close(found[-1], torch.tensor([0.0, 1, 0, 0]), **CLOSE)


def test_integrated_gradients(study):
    steps = 4
    found, change = attribution_to_positions(study.lens, study.wet, study.dry, study.target, steps)
    here, there = (embedding_of(study, one) for one in (study.wet, study.dry))
    torch.testing.assert_close(change, contrast(study, study.wet) - contrast(study, study.dry), **CLOSE)
    total = torch.zeros_like(here)
    for step in range(steps):
        point = (there + (step + 0.5) / steps * (here - there)).requires_grad_()
        handle = study.lens.module.get_submodule(study.decoder).register_forward_pre_hook(
            lambda _, given, named, point=point: (given, {**named, "inputs_embeds": point}), with_kwargs=True
        )
        logits = study.lens.module(**study.wet.inputs).logits[:, -1]
        handle.remove()
        (slope,) = torch.autograd.grad((logits[:, study.yes] - logits[:, study.no]).sum(), point)
        total += slope / steps
    torch.testing.assert_close(found, ((here - there) * total).sum(-1), rtol=1e-3, atol=1e-4)


def test_integrated_gradients_are_complete():
    study = study_of("idefics3")
    errors = []
    for steps in (8, 64):
        found, change = attribution_to_positions(study.lens, study.wet, study.dry, study.target, steps)
        errors.append(float((found.sum(-1) - change).abs().max() / change.abs().max()))
    assert errors[1] < 0.01
    assert errors[1] < errors[0] / 4


def test_top_images(study):
    samples = study.corpus[::17]
    layer, neuron = 1, 30
    best, maps = top_images(study.lens, samples, layer, neuron, 3, rows=5)
    most, seen = [], []
    for sample in samples:
        one = encoded(study.lens, [sample])
        held = outputs(
            study.lens.module,
            [f"{study.layers[layer]}.mlp.act_fn"],
            lambda one=one: study.lens.module(**one.inputs),
        )
        act = first(held[f"{study.layers[layer]}.mlp.act_fn"][0])[0, :, neuron]
        image = act[one.inputs["input_ids"][0] == study.image_token]
        most.append(float(image.max()))
        seen.append(one.patch_map(image))
    order = sorted(range(len(samples)), key=lambda number: -most[number])
    assert best == order[:3]
    for number, found in zip(best, maps, strict=True):
        torch.testing.assert_close(found, seen[number], equal_nan=True, **CLOSE)


@pytest.mark.parametrize("position", [-1, "image"])
def test_a_probe(study, position):
    samples = [one for some in study.corpus.by_domain().values() for one in some[::12]]
    labels = [one.domain for one in samples]
    batches = [encoded(study.lens, samples[start : start + 10]) for start in range(0, len(samples), 10)]
    accuracy, shuffled = probe(study.lens, batches, labels, position)
    states = []
    for sample in samples:
        one = encoded(study.lens, [sample])
        found = states_of(study, one)[:, 0]
        image = one.inputs["input_ids"][0] == study.image_token
        states.append(found[:, image].mean(1) if position == "image" else found[:, position])
    names = sorted(set(labels))
    target = torch.tensor([names.index(label) for label in labels])
    fold = probes._folds(target, torch.arange(len(labels)), 5, torch.Generator().manual_seed(0), even=True)
    for layer in range(LAYERS):
        some = torch.stack(states)[:, layer].double()
        right = torch.zeros(len(labels), dtype=torch.bool)
        for number in range(5):
            inside = fold == number
            x, y = some[~inside], torch.nn.functional.one_hot(target[~inside], len(names)).double()
            mean, spread = x.mean(0), x.std(0)
            x = (x - mean) / spread
            weight = torch.linalg.solve(
                x.T @ x + 0.1 * x.shape[1] * torch.eye(x.shape[1]).double(), x.T @ (y - y.mean(0))
            )
            right[inside] = ((some[inside] - mean) / spread @ weight + y.mean(0)).argmax(-1) == target[inside]
        assert abs(float(accuracy[layer]) - 100 * float(right.double().mean())) <= 100 / len(labels)
    assert (shuffled < 40).all()
    if position == "image":
        assert (accuracy > shuffled + 25).all()


def test_a_tuned_lens_beside_the_logit_lens(study):
    samples = study.corpus[::13]
    batches = [encoded(study.lens, samples[start : start + 8]) for start in range(0, 32, 8)]
    fitted = fit_tuned_lens(study.lens, batches[:3], held_out=batches[3], steps=12)
    plain, tuned = tuned_beside_logit(study.lens, fitted, batches[3], -1)
    stream = torch.cat([embedding_of(study, batches[3])[None], states_of(study, batches[3])])
    norm = study.lens.module.get_submodule(f"{study.decoder}.norm")
    maps = zip([fitted.embedding_weight, *fitted.weight], [fitted.embedding_bias, *fitted.bias], stream, strict=True)
    carried = torch.stack([state @ weight.T + bias for weight, bias, state in maps])
    real = batches[3].inputs["attention_mask"].bool()
    with torch.no_grad():
        said = [study.lens.module.lm_head(norm(one)).log_softmax(-1) for one in (stream, carried)]
    assert torch.equal(plain, said[0][:, :, -1].argmax(-1))
    assert torch.equal(tuned, said[1][:, :, -1].argmax(-1))
    final = said[0][-1]
    for one, expected in zip(said, (fitted.held_out_logit_lens, fitted.held_out), strict=True):
        found = (final.exp() * (final - one)).sum(-1)[:, real].double().mean(1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (fitted.held_out[:-1] < fitted.held_out_logit_lens[:-1]).all()
    assert torch.equal(plain[-1], tuned[-1])


NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SHORT = {
    "06_patch": 1,
    "07_knock_out_and_flow": 2,
    "08_attribution_and_steering": 4,
    "09_compare_selectors": 1,
    "10_on_ndif": 1,
}
"""Cells with the tag `experiment`, by notebook."""


def cells_of(name: str) -> list[str]:
    """What the experiments of a notebook are written in."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if "experiment" in cell.metadata.get("tags", [])]


def imports_of(name: str) -> dict[str, Any]:
    first = next(
        cell
        for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        if cell.cell_type == "code" and "import mmneuron_lens" in cell.source
    )
    lines = ast.parse(first.source).body
    found: dict[str, Any] = {}
    imports: list[ast.stmt] = [one for one in lines if isinstance(one, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), name, "exec"), found)
    return found


def run_cells(name: str, cells: list[int], study: SimpleNamespace, **given: Any) -> dict[str, Any]:
    """The names that some experiments of a notebook leave behind, on the pictures of a study."""
    found = {**imports_of(name), "lens": study.lens, "target": study.target, "LAYERS": range(LAYERS), **given}
    for number in cells:
        exec(compile(cells_of(name)[number], name, "exec"), found)
    return found


@pytest.mark.parametrize("name", sorted(SHORT))
def test_each_experiment_of_a_notebook_has_at_most_ten_lines(name):
    cells = cells_of(name)
    assert len(cells) == SHORT[name]
    assert max(len([line for line in cell.splitlines() if line.strip()]) for cell in cells) <= 10


def test_the_page_of_experiments_has_the_functions_that_are_tested():
    page = (NOTEBOOKS.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    code = [ast.dump(one) for block in blocks for one in ast.parse(block).body]
    for function in (encoded, *EXPERIMENTS):
        assert ast.dump(ast.parse(inspect.getsource(function)).body[0]) in code, function.__name__


def test_the_notebook_on_patching(study):
    wet, dry = study.wet, study.dry
    before, after = (float(contrast(study, one).mean()) for one in (wet, dry))
    found = run_cells("06_patch", [0], study, with_left=wet, with_right=dry, before=before, after=after)
    image = wet.positions("image", row=0)
    places = ["image", image[:-4], image[-4:], *wet.positions("text", row=0)[-10:]]
    expected = 100 * patching(study.lens, wet, dry, study.target, range(LAYERS), places)
    torch.testing.assert_close(found["share"], expected, rtol=1e-3, atol=1e-2)


def test_the_notebook_on_knock_out(study):
    found = run_cells("07_knock_out_and_flow", [0, 1], study, batch=study.wet)
    for number, (keys, queries) in enumerate(found["routes"]):
        expected = attention_knock_out(study.lens, study.wet, study.target, range(LAYERS), queries, keys, window=2)
        torch.testing.assert_close(found["change"][number], expected, **CLOSE)


@pytest.fixture(scope="module")
def attributed() -> SimpleNamespace:
    study = study_of("llava-next")
    here = float(contrast(study, study.wet).mean())
    answers = {name: torch.full((3,), getattr(study, name)) for name in ("yes", "no")}
    pictures = {"wet": study.samples, "dry": study.all[1], "question": study.samples[0].question}
    given = {"with_water": study.wet, "without": study.dry, "here": here, **answers, **pictures}
    found = run_cells("08_attribution_and_steering", [0, 1, 2, 3], study, **given)
    return SimpleNamespace(study=study, found=found, here=here)


def test_the_notebook_on_who_writes_the_answer(attributed):
    written = sum(float(value.sum()) for value in attributed.found["divided"].values())
    assert written == pytest.approx(attributed.here, abs=1e-3)


def test_the_notebook_on_neurons(attributed):
    study, found = attributed.study, attributed.found
    neurons = found["expected"].shape[1]
    for place in (0, 1, -1):
        layer, neuron = divmod(found["tried"][place], neurons)

        def silent(_, given, neuron=neuron):
            value = given[0].clone()
            value[..., neuron] = 0
            return (value, *given[1:])

        part = study.lens.module.get_submodule(f"{study.layers[layer]}.mlp.down_proj")
        handle = part.register_forward_pre_hook(silent)
        lost = attributed.here - float(contrast(study, study.wet).mean())
        handle.remove()
        assert float(found["lost"][place]) == pytest.approx(lost, abs=1e-3)
        assert float(found["expected"][layer, neuron]) == pytest.approx(lost, abs=0.02 + 0.5 * abs(lost))


def test_the_notebook_on_pixels(attributed):
    study, found = attributed.study, attributed.found
    one, baseline = (encoded(study.lens, [some[0]]) for some in study.all)
    shares, change = attribution_to_positions(study.lens, one, baseline, found["contrast"], 32)
    torch.testing.assert_close(found["shares"], shares[0], **CLOSE)
    assert found["change"][0] - found["change"][1] == pytest.approx(float(change[0]), abs=1e-3)


def test_the_notebook_on_steering(attributed):
    study, found = attributed.study, attributed.found
    expected = steering(study.lens, study.wet, study.dry, study.target, found["scales"])
    torch.testing.assert_close(found["steered"][0], expected, **CLOSE)
    lengths = [found[name].norm(dim=-1) for name in ("towards", "chance")]
    torch.testing.assert_close(*lengths)
