"""What `lens.prove` saw of a model: its sites, every comparison, and what it could not show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mmneuron_lens.artifacts.format import dumps, read_lines, write_lines
from mmneuron_lens.artifacts.table_html import table_html


@dataclass(frozen=True)
class Proof:
    """What was seen of one site.

    - site: its name. shape: of the value that was read.
    - moved: layers that moved the logits. dead: those that did not. says: why.
    """

    site: str
    shape: tuple[int, ...]
    moved: tuple[int | None, ...]
    dead: tuple[int | None, ...]
    says: str


@dataclass(frozen=True)
class Comparison:
    """Two computations that must agree.

    - what: was compared
    - apart: the largest difference, as a share of the largest value; None where nothing was compared
    - why_not: why nothing was
    """

    what: str
    apart: float | None = None
    why_not: str = ""


@dataclass(frozen=True, repr=False)
class Certificate:
    """A proof that was passed. Iterating gives one `Proof` per site.

    - model, architecture: their names
    - sites: in forward order
    - unread: sites that the batch does not reach, and why
    - comparisons: what was compared, and what was not
    - activations: by path (`{l}` for the layer) the site of every activation module; "" for those without one
    - provenance: the model's facts and fingerprint, and versions
    """

    model: str
    architecture: str
    sites: tuple[Proof, ...]
    unread: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
    activations: Mapping[str, str]
    provenance: Mapping[str, Any]

    kind = "proof"

    def __iter__(self) -> Iterator[Proof]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Activation modules without a site, by path."""
        return tuple(path for path, site in self.activations.items() if not site)

    @property
    def digest(self) -> str:
        """The sha256 of all it says, what lies within rounding aside: what other artifacts cite it by."""
        document = asdict(self)
        for one in document["comparisons"]:
            one["apart"] = one["apart"] is not None
        return hashlib.sha256(dumps(document).encode()).hexdigest()

    def to_frame(self) -> pl.DataFrame:
        """A row per site: site, shape, how many places moved the logits, those that did not, and why."""
        rows = [
            {
                "site": proof.site,
                "shape": " x ".join(map(str, proof.shape)),
                "moved": len(proof.moved),
                "dead": ", ".join("yes" if layer is None else str(layer) for layer in proof.dead),
                "why": proof.says if proof.dead else "",
            }
            for proof in self.sites
        ]
        text = ("site", "shape", "dead", "why")
        return pl.DataFrame(rows, schema={**dict.fromkeys(text, pl.String), "moved": pl.Int64}).select(
            "site", "shape", "moved", "dead", "why"
        )

    def notes(self) -> list[str]:
        """What is no row of the table, a line each: comparisons, sites that were not read, modules without a name."""
        found = [
            f"not compared: {one.what}: {one.why_not}"
            if one.apart is None
            else f"{one.what}: {f'{one.apart:.1e} apart' if one.apart else 'equal'}"
            for one in self.comparisons
        ]
        found += [f"not read: {site}: {why}" for site, why in self.unread.items()]
        return [*found, *(f"activation module without a site: {path}" for path in self.unnamed)]

    def __repr__(self) -> str:
        shown = f"{self.model}: {self.architecture}, {len(self.sites)} sites, {len(self.comparisons)} comparisons"
        return f"Certificate({shown}, {len(self.unnamed)} activation modules without a site)"

    def __str__(self) -> str:
        sites = [
            f"{row['site']} [{row['shape']}]: {row['moved']} moved the logits"
            + (f"; dead: {row['dead']} ({row['why']})" if row["dead"] else "")
            for row in self.to_frame().iter_rows(named=True)
        ]
        return "\n".join([repr(self), *(f"  {line}" for line in (*sites, *self.notes()))])

    def _repr_html_(self) -> str:
        return table_html(self.to_frame()) + table_html(pl.DataFrame({"compared and left out": self.notes()}))

    def save(self, path: str | Path) -> None:
        """Writes a JSON document to `path`; the same certificate gives the same bytes. Raises as `write_lines`."""
        write_lines(path, self.kind, [], asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Reads from the file `path` what `save` wrote; raises as `read_lines`."""
        _, document = read_lines(path, cls.kind)
        sites = [
            Proof(one["site"], tuple(one["shape"]), tuple(one["moved"]), tuple(one["dead"]), one["says"])
            for one in document["sites"]
        ]
        comparisons = tuple(Comparison(**one) for one in document["comparisons"])
        own: dict[str, Any] = {**document, "sites": tuple(sites), "comparisons": comparisons}
        return cls(**own)
