"""What commands read and print alike: corpora, stores, progress, problems, tables.

torch and the rest are imported when a function is called, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmneuron_lens.echo import echo

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console

    from mmneuron_lens.artifacts.selection import Selection
    from mmneuron_lens.corpora.corpus import Corpus
    from mmneuron_lens.corpora.folder import Problems
    from mmneuron_lens.runs.store import Store

WIDTH = 100
"""Characters a line of a table may take where there is no terminal to ask."""


def corpus_of(
    folder: Path, domains: list[str] | None, images: int | None, questions_per_image: int | None, skip_images: int = 0
) -> Corpus:
    """Part of a folder with a `questions.jsonl`."""
    from mmneuron_lens.corpora.load import load_corpus

    # A path, so that no folder is taken for the name of a corpus.
    corpus = load_corpus(folder)
    corpus = corpus if not domains else corpus.only(domains)
    return corpus.some(images, questions_per_image, skip_images)


def store_of(out: Path, replace: bool) -> Store:
    """A run's folder that says what is made."""
    from mmneuron_lens.runs.store import Store

    return Store(out, replace=replace, say=say)


def command_line(remote: str | None) -> tuple[str, ...]:
    """The command line, for `mmneuron jobs resume`."""
    return tuple(sys.argv[1:]) if remote else ()


def bar(items: Sequence[Any], name: str) -> Iterable[Any]:
    """Progress on stderr, see `batching.progress_bar`."""
    from mmneuron_lens.batching.progress_bar import bar as shown

    return shown(items, name)


def say(text: str) -> None:
    """A line on stderr."""
    echo(text, err=True)


def host_of(remote: str | None) -> bool | str:
    """What `Lens` takes; nnsight's line for every job is left to a notebook."""
    if remote is None:
        return False
    if not remote.strip():
        from interventions.errors import InvalidValue

        raise InvalidValue(
            "--remote is empty; give an NDIF server's URL, `ndif` for where you logged in, or leave it out."
        )
    import nnsight

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    return True if remote == "ndif" else remote


def model_settings(
    remote: str | None, dtype: str | None, device: str | None, device_map: str | None, quantize: str | None
) -> dict[str, Any]:
    """What `Lens` takes of a command's options of the same names."""
    where = {"dtype": dtype, "device": device, "device_map": device_map, "quantize": quantize}
    return {"remote": host_of(remote), **where}


def quiet_loading() -> None:
    """No progress bar of hundreds of weight tensors for a model that loads in a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def print_problems(problems: Problems, out: Path) -> None:
    """The first rows that were skipped; all of them in the run's `problems.txt`."""
    from mmneuron_lens.runs.problems import say_problems

    say_problems(problems, out, say)


def console() -> Console:
    """The terminal, or lines of a fixed width where there is none."""
    from rich.console import Console

    from mmneuron_lens.commands import nobody_reads

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            nobody_reads()

    found = Ours()
    return found if found.is_terminal or "COLUMNS" in os.environ else Ours(width=WIDTH)


def parameters_of(method: str, settings: Sequence[str]) -> dict[str, Any]:
    """Parameters of a method of selection, as NAME=VALUE."""
    import mmneuron_lens.neurons.selection  # noqa: F401  (registers the methods)
    from mmneuron_lens.neurons.selectors.registry import selector_named
    from mmneuron_lens.neurons.selectors.settings import settings_of

    return settings_of(selector_named(method), settings)


def refuse_useless(options: Mapping[str, object], beside: str) -> None:
    """Raises `InvalidValue` for an option that was given and means nothing beside another one (none if "")."""
    from interventions.errors import InvalidValue

    for name, value in options.items():
        if beside and value:
            raise InvalidValue(f"{name} means nothing with {beside}; leave one of them out.")


def print_selections(found: Sequence[tuple[Selection, str]], out: Path) -> None:
    """Neurons by module and domain of selections by another method than the published one, and where each lies.

    found: each selection with why it has no controls, if that is so.
    """
    from mmneuron_lens.report.tables import neurons_per_domain, wide
    from mmneuron_lens.report.terminal import terminal_table
    from mmneuron_lens.runs.folder import selection_file

    for selection, missing in found:
        method = selection.parameters["method"]
        table = wide(neurons_per_domain(selection), "neurons", selection.domains)
        print_table(terminal_table(table, f"Domain-specific neurons by {method}"))
        if missing:
            say(missing)
        echo(selection_file(out, selection.model, method))


def print_table(table: rich.table.Table) -> None:
    """A table as the terminal has room for it, see `report.fitting`."""
    from mmneuron_lens.report.fitting import fitted

    shown = console()
    for part in fitted(table, shown.width):
        shown.print(part)


def wrapped(line: str) -> str:
    """A sentence broken at words where there is a terminal; in a pipe it stays one line."""
    shown = console()
    return textwrap.fill(line, shown.width, subsequent_indent="    ") if shown.is_terminal else line


def print_tables(page: Path) -> None:
    """What a run found, then its tables, then where the whole of it lies."""
    from mmneuron_lens.report.terminal import findings, terminal_tables

    for line in findings(page):
        echo(wrapped(line))
    echo("")
    for table in terminal_tables(page):
        print_table(table)
        echo("")
    neurons, every = page.parent / "neurons" / "index.html", page.parent / "neurons.csv"
    if every.is_file():
        echo(f"Every neuron: {every.resolve()}")
    if neurons.is_file():
        echo(f"Their pictures: {neurons.resolve()}")
    echo(f"Page: {page.resolve()}")
