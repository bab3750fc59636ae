"""The drawn corpus of a run: drawn once into its folder, where a user's own would lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmneuron_lens.artifacts.format import read_lines, write_lines
from mmneuron_lens.corpora.corpus import Corpus
from mmneuron_lens.corpora.load import load_corpus
from mmneuron_lens.corpora.sample import DOMAINS
from mmneuron_lens.embedded.corpus.draw import write_folder
from mmneuron_lens.runs.keys import StoreConflict, differences, refusal
from mmneuron_lens.runs.store import Store

DRAWN = "drawn.json"
"""What says of a corpus how it was drawn; written last, so a corpus that has it is whole."""

KIND = "drawn corpus"


def drawn_corpus(store: Store, images: int, domains: Sequence[str] = DOMAINS) -> Corpus:
    """The corpus in the run's `corpus/`, drawn unless it is there.

    - images: of each domain.

    Raises `StoreConflict` when another one lies there, and no `replace` was asked for.
    """
    assert store.folder is not None
    folder, wanted = store.folder / "corpus", {"images": images, "domains": list(domains), "split": "demo"}
    told, what = folder / DRAWN, f"drawing {images} images in each of {len(domains)} domains into {folder}"
    held = {name: read_lines(told, KIND)[1].get(name) for name in wanted} if told.is_file() else None
    if held is not None and held != wanted and not store.replace:
        raise StoreConflict(refusal(folder, differences(held, wanted)))
    if held == wanted:
        store.say(f"already done: {what}")
    else:
        store.say(what)
        told.unlink(missing_ok=True)
        write_folder(folder, images_per_domain=images, domains=domains)
        write_lines(told, KIND, [], wanted)
    return replace(load_corpus(folder), name="drawn")
