"""docs/concepts.md: its blocks run from top to bottom, and what they count is what plain tensors say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parent.parent / "docs" / "concepts.md"


def test_the_page_runs_from_top_to_bottom() -> None:
    text, scope = PAGE.read_text(), dict[str, Any]()
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(code, "concepts.md", "exec"), scope)
    lens, batch = scope["lens"], scope["batch"]
    counted = lens.run(scope["graph"], batch)["strongly_active"]
    first = lens.run_with_cache(batch, ["llm.mlp.act"])[1]["llm.mlp.act"][0]
    assert torch.equal(counted[0], (first > 1.0).flatten(0, -2).sum(0))
    assert f"{math.log(5):.2f}" in text
