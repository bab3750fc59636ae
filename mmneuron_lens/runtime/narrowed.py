"""Narrowed: what of a site's value the rows of an intervention are on one batch, and rows that are none of it."""

from __future__ import annotations

from collections.abc import Sequence

from interventions.errors import InvalidValue, OutOfRange
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire.forward import make_context
from mmneuron_lens.wire.rows import rows_at
from mmneuron_lens.wire.types import Act, Index, SitePlan


def index_of(act: Act, plan: SitePlan, batch: Batch, shape: Sequence[int]) -> Index | None:
    """The part of a value of this shape that an intervention's rows are; None where it has all of them."""
    if act["rows"] is None:
        return None
    return rows_at(act, plan, make_context(batch.plain(), 1, {}, None, []), shape, 1)


def refuse_rows(act: Act, plan: SitePlan, batch: Batch) -> None:
    """Raise `OutOfRange` for a row that a batch does not have, `InvalidValue` for rows of which a site says nothing."""
    rows, site = act["rows"], plan["site"]
    if rows is None:
        return
    who = f"{act['name']} at {site}"
    for row in rows:
        if row >= batch.rows:
            raise OutOfRange(f"{who}: there is no row {row}; the batch has rows 0 to {batch.rows - 1}.")
    if plan["stepped"]:
        return
    if "spread" in batch.sharing:
        raise InvalidValue(
            f"{who}: rows of this batch share images, so no part of the value there is of some rows alone; leave rows "
            "out, or make the batch with lens.encode."
        )
    tower = batch.plain()["tower"]
    if tower["axis"] == 1 and plan["group"] is None and site.startswith("vision."):
        raise InvalidValue(
            f"{who}: all images of a batch pass this tower in one row, and the value there does not say which part is "
            "of which; leave rows out."
        )
    bare = [row for row in rows if not tower["counts"][row]]
    if bare and "vision" in batch.fields:
        raise InvalidValue(f"{who}: row {bare[0]} has no image, so nothing there is of it; leave it out of rows.")
