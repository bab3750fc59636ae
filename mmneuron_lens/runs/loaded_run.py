"""A run's results in Python: read from its folder, or fetched once from where it is shared. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import polars as pl
from markupsafe import Markup

from interventions.errors import FileMissing, InvalidValue, UnknownName
from interventions.sites import unknown
from mmneuron_lens.artifacts.counts import Counts
from mmneuron_lens.artifacts.selection import Selection
from mmneuron_lens.artifacts.table_html import NO_MATH, table_html
from mmneuron_lens.batching.progress import Progress, quietly
from mmneuron_lens.corpora.cache import cache_folder
from mmneuron_lens.report.csv_files import read_csv
from mmneuron_lens.report.html_text import html, joined
from mmneuron_lens.runs.folder import RunError
from mmneuron_lens.runs.identify import Controls
from mmneuron_lens.runs.remote_folder import is_url, shown_url
from mmneuron_lens.runs.run_results import controls_of, counts_by_model, selections_by_model
from mmneuron_lens.runs.sharing import pull_into_cache

T = TypeVar("T")

SHOWN = 12
"""Tables that a notebook shows."""


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """The results of a run, read when asked for.

    - source: the folder or URL it was loaded from, without credentials.
    - folder: where its files lie here.
    """

    source: str
    folder: Path

    @property
    def models(self) -> tuple[str, ...]:
        """The models that there are counts or a selection of."""
        return tuple(sorted({*self._counts, *self._selections}))

    def selection(self, model: str | None = None) -> Selection:
        """The selection of a model; of the only one unless named. Raises `UnknownName` naming the choices."""
        return self._one(self._selections, model, "selection")

    def counts(self, model: str | None = None) -> list[Counts]:
        """The counts of a model, one a domain; raises as `selection`."""
        return self._one(self._counts, model, "counts")

    @property
    def controls(self) -> dict[str, Controls]:
        """What each model's selection proves; `missing` says what was not run."""
        return {model: controls_of(self.folder, model) for model in self._selections}

    @cached_property
    def neurons(self) -> pl.DataFrame:
        """A row per neuron. Raises `FileMissing` for a run without that table."""
        file = self.folder / "neurons.parquet"
        if not file.is_file():
            raise FileMissing(f"{self.source}: has no neurons.parquet; `mmneuron select` writes it.")
        try:
            return pl.read_parquet(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InvalidValue(f"{file}: cannot be read ({error}); fetch it again, or run `mmneuron select`.") from None

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables."""
        folder = self.folder / "tables"
        return tuple(sorted(one.relative_to(folder).with_suffix("").as_posix() for one in folder.rglob("*.csv")))

    def table(self, name: str) -> pl.DataFrame:
        """A table by name, "neurons_per_domain". Raises `UnknownName` naming the choices."""
        if name not in self.tables:
            raise UnknownName(unknown("table", name, self.tables))
        return read_csv(self.folder / "tables" / f"{name}.csv")

    @property
    def page(self) -> Path:
        """The file of the run's page. Raises `FileMissing` for a run without one."""
        file = self.folder / "index.html"
        if not file.is_file():
            raise FileMissing(
                f"{self.source}: has no page; `mmneuron select` writes it, `push --with-texts` may send it."
            )
        return file

    def __repr__(self) -> str:
        return f"LoadedRun({self.source}: {', '.join(self.models)})"

    def _repr_html_(self) -> str:
        head = html("<p>{}: {}</p>", self.source, ", ".join(self.models))
        return NO_MATH.format(head + joined(map(self._titled, self.tables[:SHOWN])))

    def _titled(self, name: str) -> Markup:
        # `table_html` escapes what is in the table.
        return html("<h4>{}</h4>{}", name, Markup(table_html(self.table(name))))

    @cached_property
    def _counts(self) -> dict[str, list[Counts]]:
        return counts_by_model(self.folder)

    @cached_property
    def _selections(self) -> dict[str, Selection]:
        return selections_by_model(self.folder)

    def _one(self, found: Mapping[str, T], model: str | None, what: str) -> T:
        if not found:
            raise RunError(f"{self.source}: holds no {what}.")
        if model is None and len(found) == 1:
            return next(iter(found.values()))
        if model is None or model not in found:
            named = f"no {what} of {model!r}" if model else f"several models have {what}, and none is named"
            raise UnknownName(f"{self.source}: {named}; choose from {', '.join(found)}.")
        return found[model]


def load_run(source: str | Path, *, progress: Progress = quietly) -> LoadedRun:
    """The results of a run, without its model.

    - source: a run's folder, or the URL of one that `mmneuron push` sent, such as `hf://datasets/OWNER/NAME`, which is
      fetched into the user's cache, held to its manifest, and not fetched again while it stays the same.
    - progress: wraps the files that are fetched, such as in a bar; nothing is shown unless given.

    Raises `FileMissing` where there is none, `RunError` for a folder without results, and as `pull_run`.
    """
    if is_url(source):
        url = str(source)
        return _refuse_empty(
            LoadedRun(shown_url(url), pull_into_cache(url, cache_folder() / "runs", progress=progress))
        )
    folder = Path(source)
    if not folder.is_dir():
        raise FileMissing(f"{folder}: no such folder; give a run's folder, or a URL such as hf://datasets/OWNER/NAME.")
    return _refuse_empty(LoadedRun(str(folder), folder))


def _refuse_empty(run: LoadedRun) -> LoadedRun:
    if not run.models:
        raise RunError(f"{run.source}: holds neither counts nor a selection; write them with `mmneuron count`.")
    return run
