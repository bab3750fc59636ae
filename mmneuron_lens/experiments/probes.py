"""Linear probes: what can be read off each layer by a linear classifier, beside what it reads off shuffled labels.

A good probe says what is there, not that the model uses it; one that is as good on shuffled labels says nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from interventions import batch_field, reads
from interventions.errors import InvalidValue, UnknownName
from interventions.sites import GROUP_KINDS, unknown
from mmneuron_lens.artifacts.short_repr import short_repr
from mmneuron_lens.artifacts.table_html import table_html
from mmneuron_lens.experiments.whole_rows import refuse_packed_rows
from mmneuron_lens.lens import Lens
from mmneuron_lens.metrics.intervals import estimate
from mmneuron_lens.runtime.arguments import batches_of
from mmneuron_lens.runtime.batch import Batch

_KINDS = GROUP_KINDS["llm"]


@reads("llm.residual", over="list")
def column(hidden: Float[Tensor, "row one hidden"]) -> Float[Tensor, "row hidden"]:
    """The state at one position of every row: narrowed with `.at(positions=...)`.

    - hidden: `[row, 1, hidden]`
    """
    return hidden[:, 0]


@reads("llm.residual", over="list", weight=batch_field("weight"), kind=batch_field("kind"))
def mean_of_kind(
    hidden: Float[Tensor, "row token hidden"],
    weight: Int[Tensor, "row token"],
    kind: Bool[Tensor, "row token kind"],
    number: int,
) -> Float[Tensor, "row hidden"]:
    """Every row's mean over its positions of one kind.

    - hidden: `[row, token, hidden]`
    - weight, kind: as fields of the batch; padding is left out
    - number: of the kind, in the order of `GROUP_KINDS`
    """
    marked = ((weight > 0) & kind[..., number])[..., None]
    return hidden.float().masked_fill(~marked, 0).sum(1) / marked.sum(1)


@dataclass(frozen=True, eq=False)
class Probes:
    """How well a linear probe reads the labels at each layer, cross-validated.

    - model, site, position: what was read
    - classes: the labels, sorted as text
    - right: bool `[layer, sample]`, whether a sample was classified right by the probe that had not seen it
    - shuffled: float64 `[layer, shuffle]`, the accuracy of probes of shuffled labels, in [0, 1]
    - parameters: folds, ridge, seed
    """

    model: str
    site: str
    position: int | str
    classes: tuple[str, ...]
    right: Tensor
    shuffled: Tensor
    parameters: dict[str, Any]

    @property
    def accuracy(self) -> Float64[Tensor, " layer"]:
        """In [0, 1]."""
        return self.right.double().mean(1)

    @property
    def selectivity(self) -> Float64[Tensor, " layer"]:
        """The accuracy less that of shuffled labels."""
        return self.accuracy - self.shuffled.mean(1)

    def to_frame(self) -> pl.DataFrame:
        """A row per layer: layer, accuracy, low, high, shuffled, selectivity (per cent; points), samples.

        low and high are a bootstrap interval over samples, 95 %, of the probes as they are.
        """
        rows: list[dict[str, Any]] = []
        for layer, right in enumerate(self.right):
            found = estimate(right.double().tolist(), seed=self.parameters["seed"])
            row = {"layer": layer, "accuracy": found.value, "low": found.low, "high": found.high}
            row |= {"shuffled": 100 * float(self.shuffled[layer].mean())}
            rows.append(row | {"selectivity": 100 * float(self.selectivity[layer]), "samples": found.questions})
        return pl.DataFrame(rows)

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return table_html(self.to_frame())


def fit_probes(
    lens: Lens,
    batches: Iterable[Batch] | Batch,
    labels: Sequence[str | int],
    *,
    site: str = "llm.residual",
    position: int | str = -1,
    groups: Sequence[Hashable] | None = None,
    folds: int = 5,
    ridge: float = 0.1,
    shuffles: int = 5,
    seed: int = 0,
) -> Probes:
    """Fit a linear classifier at every layer of a site, and the same with shuffled labels.

    - batches: of `lens.encode`, one forward each; features of `[layer, row, hidden]` are kept, nothing else
    - labels: one a row, in the order of the batches
    - site: `llm.residual`, or another of the language model with layers and a last axis alone, such as `llm.mlp.post`
    - position: a column, -1 being the last of every prompt; or "image" or "text", whose mean is taken
    - groups: one a row; rows of a group (of one image, say) are never on both sides of a fold
    - folds: each row is classified by a probe that was fitted on the other folds; classes are spread over them evenly
      where no groups are given
    - ridge: the penalty, in units of the mean square of a standardised sample: 0.1 is a tenth of its own weight
    - shuffles: how many times labels are shuffled (over groups, where given) for the control
    - seed: of folds, shuffles and intervals

    The classifier is ridge regression on one-hot labels, in closed form, of features that are standardised on the
    fitted folds; the largest output wins. Selectivity after Hewitt and Liang 2019 (arXiv 1909.03368), with shuffled
    labels for a control task.

    Raises `InvalidValue` for numbers of labels, classes or folds that do not fit, or a packed batch, `UnknownName` for
    a kind of position, and what `lens.run` raises.
    """
    features = _features(lens, batches, site, position)
    names = [str(label) for label in labels]
    right, control = cross_validated(features, names, groups, folds, ridge, shuffles, seed)
    parameters = {"folds": folds, "ridge": ridge, "seed": seed, "shuffles": shuffles}
    return Probes(lens.name, site, position, tuple(sorted(set(names))), right, control, parameters)


def cross_validated(
    features: Float[Tensor, "layer sample feature"],
    labels: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    folds: int = 5,
    ridge: float = 0.1,
    shuffles: int = 5,
    seed: int = 0,
) -> tuple[Bool[Tensor, "layer sample"], Float64[Tensor, "layer shuffle"]]:
    """Probes of each layer's features, settings as of `fit_probes`.

    Returns whether each sample was classified right by the probe that had not seen it, and the accuracy of probes of
    shuffled labels.
    """
    classes = tuple(sorted(set(labels)))
    _check(features.shape[1], labels, classes, groups, folds)
    target = torch.tensor([classes.index(label) for label in labels], device="cpu")
    generator = torch.Generator("cpu").manual_seed(seed)
    group = _numbered(range(len(labels)) if groups is None else groups)
    fold = _folds(target, group, folds, generator, even=groups is None)
    shuffled = [_shuffled(target, group, generator) for _ in range(shuffles)]
    right = torch.zeros(len(features), len(labels), dtype=torch.bool, device="cpu")
    control = torch.zeros(len(features), shuffles, dtype=torch.float64, device="cpu")
    for layer, some in enumerate(features):
        found = predicted(some.double(), torch.stack([target, *shuffled]), fold, len(classes), ridge)
        right[layer] = found[0] == target
        for number, one in enumerate(shuffled):
            control[layer, number] = (found[1 + number] == one).double().mean()
    return right, control


def predicted(
    features: Float64[Tensor, "sample feature"],
    targets: Int64[Tensor, "labelling sample"],
    fold: Int64[Tensor, " sample"],
    classes: int,
    ridge: float,
) -> Int64[Tensor, "labelling sample"]:
    """The class that each sample is given by the probe of the other folds, for several labellings of the same samples.

    Ridge regression in its dual form: a system of as many equations as there are samples, whatever the width.
    """
    found = torch.zeros_like(targets)
    onehot = torch.nn.functional.one_hot(targets, classes).double()
    for number in fold.unique().tolist():
        inside = fold == number
        fitted = features[~inside]
        mean, spread = fitted.mean(0), fitted.std(0).clamp_min(1e-12)
        # A feature that does not vary says nothing.
        spread = torch.where(fitted.std(0) > 1e-9, spread, torch.inf)
        seen, asked = (fitted - mean) / spread, (features[inside] - mean) / spread
        width = features.shape[1]
        kernel = seen @ seen.T / width + ridge * torch.eye(len(seen), dtype=torch.float64, device="cpu")
        centre = onehot[:, ~inside].mean(1, keepdim=True)
        solved = torch.linalg.solve(kernel, onehot[:, ~inside])
        found[:, inside] = (asked @ seen.T / width @ solved + centre).argmax(-1)
    return found


def _features(
    lens: Lens, batches: Iterable[Batch] | Batch, site: str, position: int | str
) -> Float[Tensor, "layer sample feature"]:
    if isinstance(position, str):
        if position not in _KINDS[:2]:
            raise UnknownName(unknown("kind of position", position, _KINDS[:2]))
        read = mean_of_kind.bind(number=_KINDS.index(position)).at(site)
    else:
        read = column.at(site, positions=position)
    # One run a batch, so that what is kept lies on the CPU.
    kept: list[Tensor] = []
    for batch in batches_of(batches):
        refuse_packed_rows(batch)
        kept.append(lens.run(read, batch)[read.name, site][0].float().cpu())
    found = torch.cat(kept, dim=1)
    if not bool(found.isfinite().all()):
        raise InvalidValue(
            f"Some row has no {position!r} positions, or {site} is not finite; leave it out, or load in bfloat16."
        )
    return found


def _check(
    rows: int, labels: Sequence[Any], classes: Sequence[str], groups: Sequence[Hashable] | None, folds: int
) -> None:
    if len(labels) != rows or (groups is not None and len(groups) != rows):
        given = f"{len(labels)} labels" + ("" if groups is None else f" and {len(groups)} groups")
        raise InvalidValue(f"The batches have {rows} rows, and there are {given}; give one a row.")
    if len(classes) < 2:
        raise InvalidValue(f"All labels are {classes[0]!r}; a probe needs at least two classes.")
    units = rows if groups is None else len(set(groups))
    if not 2 <= folds <= units:
        raise InvalidValue(
            f"folds is {folds}; give 2 to {units}, the number of {'rows' if groups is None else 'groups'}."
        )


def _numbered(groups: Iterable[Hashable]) -> Int64[Tensor, " sample"]:
    listed = list(groups)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(listed))}
    return torch.tensor([numbers[group] for group in listed], device="cpu")


def _folds(
    target: Tensor, group: Tensor, folds: int, generator: torch.Generator, even: bool
) -> Int64[Tensor, " sample"]:
    """The fold of each sample; of a group the same. Where each is alone, every class is dealt out evenly."""
    order = torch.randperm(int(group.max()) + 1, generator=generator, device="cpu")
    if even:
        order = order[target[order].argsort(stable=True)]
    of_group = torch.empty_like(order)
    of_group[order] = torch.arange(len(order), device="cpu") % folds
    return of_group[group]


def _shuffled(target: Tensor, group: Tensor, generator: torch.Generator) -> Int64[Tensor, " sample"]:
    """Labels dealt out anew; where all rows of each group have one label, over groups."""
    first = torch.stack([target[group == number][0] for number in range(int(group.max()) + 1)])
    if torch.equal(first[group], target):
        return first[torch.randperm(len(first), generator=generator, device="cpu")][group]
    return target[torch.randperm(len(target), generator=generator, device="cpu")]
