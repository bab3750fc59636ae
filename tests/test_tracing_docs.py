"""The page on traces runs from top to bottom, and what it says of its values is so."""

from __future__ import annotations

import math
from typing import Any

import torch
from test_readme import ROOT, blocks


def test_the_page_runs_from_top_to_bottom(tmp_path):
    scope: dict[str, Any] = {}
    for number, code in enumerate(blocks(ROOT / "docs" / "tracing.md", "python")):
        # nnsight reads the source of a trace.
        file = tmp_path / f"block_{number}.py"
        file.write_text(code)
        exec(compile(code, str(file), "exec"), scope)
    assert scope["heads"].ndim == 4
    assert scope["gradient"].abs().sum() > 0
    assert not torch.equal(scope["half"], scope["logits"])
    assert scope["out"]["count_active", "llm.mlp.act"].shape[0] == scope["place"].layers
    height, width = scope["batch"].picture_sizes(0)[0]
    corners = [scope[name] for name in ("left", "top", "right", "bottom")]
    assert scope["image"] == 0 or math.isnan(corners[0])
    assert all(math.isnan(one) for one in corners) or (
        0 <= corners[0] < corners[2] <= width and 0 <= corners[1] < corners[3] <= height
    )
