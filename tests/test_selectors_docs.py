"""docs/selectors.md: its blocks run from top to bottom, and its table is that of the registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmneuron_lens.neurons.selectors.registry import OURS, SELECTORS

PAGE = Path(__file__).parent.parent / "docs" / "selectors.md"


def test_the_page_runs_from_top_to_bottom(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before, scope = dict(SELECTORS), {"__name__": "selectors_page"}
    text = PAGE.read_text(encoding="utf-8")
    try:
        for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            exec(compile(code, "selectors.md", "exec"), scope)
    finally:
        SELECTORS.clear()
        SELECTORS.update(before)
    found: Any = scope["found"]
    foreign: Any = scope["foreign"]
    assert found.selection.parameters["parameters"] == {"smallest": 0.05}
    chosen = found.selection.masks["llm.mlp.act"]
    assert torch.equal(foreign.masks["llm.mlp.act"], chosen)
    # The score is what its docstring says, and the first neuron of a domain has its highest.
    p = found.selection.probability["llm.mlp.act"]
    scores = found.selection.scores["llm.mlp.act"]
    layer, neuron, domain = chosen.nonzero()[0].tolist()
    rest = max(float(one) for place, one in enumerate(p[layer, neuron]) if place != domain)
    assert float(scores[layer, neuron, domain]) == pytest.approx(float(p[layer, neuron, domain]) / (rest + 1e-6))
    assert bool(chosen.flatten(0, 1)[scores[..., domain].nan_to_num(-1).argmax(), domain])


def test_every_method_of_ours_is_in_the_table_with_its_parameters():
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    ours = {name: one for name, one in SELECTORS.items() if one.function.__module__.startswith(OURS)}
    assert len(ours) >= 4
    assert ours.keys() <= rows.keys()
    for name, one in ours.items():
        for parameter, usual in one.defaults.items():
            assert f"`{parameter}={usual!r}`".replace("'", '"') in rows[name]
        assert all(need in rows[name] for need in one.needs)
