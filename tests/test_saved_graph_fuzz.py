"""Drawn damage of a saved graph, its checksum made right again: each loads as plain interventions or is named."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from test_graph import GRAPH, seal

import interventions
from interventions import Intervention, batch_field, count_active, keep, load_graph, save_graph
from interventions.errors import MMNeuronError

WHOLE = GRAPH | keep.at("llm.norm", positions=[3, -1], all_beams=True).named("kept") | count_active.at(
    "qformer.*", steps=[0, 2]
).bind(weight=batch_field("own")).named("counted") | keep.at("llm.logits").named("module")  # fmt: skip

ALLOWED = {one.function for one in vars(interventions).values() if isinstance(one, Intervention)}

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**30, 0.5, math.nan, math.inf, "", "evil", "*", "[", "[!]", "llm.mlp.act",
    "slice", "reads", "writes", "rewires", "sum", "mean", "list",
    "x" * 5000, "\ud800", "\0", "a\nb\x1b[31m", [], {}, [[]], [None], [0, 0], {"a": 1}, {"tensor": "0" * 64},
    ["slice", 1, None, 0], ["slice"], {"constant": None}, {"constants": [1, "a"]}, {"module": ["llm.norm"]},
    {"per_layer_of": {}}, "os:system", "builtins:eval", "interventions.saving:load_graph", "mmneuron_lens.__main__:app",
    "interventions.counting:count_active", "interventions.hidden:keep", "../graph.safetensors", "/etc/passwd",
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document, with each of its keys or indices."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [one for key in keys for one in ((value, key), *places(value[key]))]


def damaged(document: dict[str, Any], draw: random.Random) -> str:
    """The text of a document that was changed in one to three places, or in its bytes, and sealed."""
    document = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        every = places(document)
        if not every:
            break
        inside, key = draw.choice(every)
        way = draw.randrange(6)
        if way == 0:
            del inside[key]
        elif way == 1:
            other, name = draw.choice(every)
            inside[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else None))
        elif way == 2 and isinstance(inside, dict):
            inside[str(draw.choice(STRANGE))] = draw.choice(STRANGE)
        elif way == 3 and isinstance(inside, list):
            inside.insert(key, draw.choice(STRANGE))
        elif way == 4 and isinstance(inside[key], str) and inside[key]:
            text = list(inside[key])
            text[draw.randrange(len(text))] = draw.choice("_.:/*[]\0é ")
            inside[key] = "".join(text)
        else:
            inside[key] = draw.choice(STRANGE)
    return seal(document)


def use(folder: Path, count: int, seed: int) -> Counter[str]:
    """How many drawn documents loaded ("used"), and were refused in a line ("named"). Raises where neither is so."""
    path = save_graph(WHOLE, folder / "graph.json")
    beside = path.with_suffix(".safetensors")
    document, tensors, draw, came = (
        json.loads(path.read_text()),
        beside.read_bytes(),
        random.Random(seed),
        Counter[str](),
    )
    imported = set(sys.modules)
    for _ in range(count):
        path.write_text(damaged(document, draw))
        content = bytearray(tensors)
        if draw.randrange(8) == 0:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        beside.write_bytes(content)
        try:
            graph = load_graph(path)
        except MMNeuronError as error:
            said = str(error)
            assert said.startswith((f"{path}: ", f"{folder}/")), said
            assert said.isprintable()
            came["named"] += 1
            continue
        for one in graph:
            assert one.function in ALLOWED
            original = getattr(interventions, one.function.__name__)
            assert (one.mode, one.over) == (original.mode, original.over)
        repr(graph)
        assert load_graph(save_graph(graph, folder / "again.json")) == graph
        came["used"] += 1
    assert set(sys.modules) == imported
    return came


def test_hundreds_of_damaged_documents_load_as_plain_interventions_or_are_named(tmp_path):
    came = use(tmp_path, 400, 0)
    assert came["named"] > 200
    assert came["used"] > 20
