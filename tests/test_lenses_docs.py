"""docs/lenses.md: its blocks run from top to bottom, and what it says of them is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from mmneuron_lens.artifacts.jacobian_lens import JacobianLens
from mmneuron_lens.artifacts.tuned_lens import TunedLens

PAGE = Path(__file__).parent.parent / "docs" / "lenses.md"


def test_the_page_runs_from_top_to_bottom(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text, scope = PAGE.read_text(), dict[str, Any]()
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(found) == text.count("```python") == 5
    for code in found:
        exec(compile(code, "lenses.md", "exec"), scope)
    jacobian, tuned, out = scope["jacobian"], scope["tuned"], scope["out"]
    assert isinstance(jacobian, JacobianLens)
    assert isinstance(tuned, TunedLens)
    assert bool((tuned.held_out[:-1] < tuned.held_out_logit_lens[:-1]).all())
    # At the last layer all three are the model.
    last = [out[name, "llm.residual"][0]["entropy"][-1] for name in ("logit_lens", "jacobian_lens", "tuned_lens")]
    assert bool((last[0] == last[1]).all())
    assert bool((last[0] == last[2]).all())
    assert scope["near"].kinds == ("image", "text")
    assert len(scope["bank"].tokens) <= 4000
    shown = capsys.readouterr().out
    assert "jacobian_lens tensor" in shown
    assert scope["trace"].parameters["lens"] == "tuned lens"


def test_the_picture_is_there() -> None:
    (name,) = re.findall(r"!\[[^]]+]\((figures/[^)]+)\)", PAGE.read_text())
    with Image.open(PAGE.parent / name) as picture:
        assert min(picture.size) > 600
