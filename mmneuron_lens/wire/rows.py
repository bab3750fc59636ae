"""Rows: the part of a site's value that belongs to some rows of a batch, or to one of its copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.layout import tower_positions
from mmneuron_lens.wire.types import Act, Belonging, Context, Index, Sharing, SitePlan


def belonging(
    inputs: Mapping[str, Tensor], facts: Facts, images: Sequence[int], sharing: Sharing | None = None
) -> Belonging:
    """Which tiles of the vision tower belong to each row; patches, where all stand in one row.

    images: how many each row has.
    """
    axis = 0 if facts["patches"] else 1
    if sharing and sharing.get("spread"):
        return {"axis": axis, "counts": []}
    if "pixel_values" not in inputs:
        return {"axis": axis, "counts": [0] * len(images)}
    counts = tower_positions(inputs, facts, (inputs["input_ids"] == facts["image_token"]).sum(1).tolist())
    if facts["tiling"] != "several":
        each = iter(counts)
        counts = [sum(next(each) for _ in range(some)) for some in images]
    return {"axis": axis, "counts": [count // (facts["patches"] or 1) for count in counts]}


def rows_at(act: Act, plan: SitePlan, context: Context, shape: Sequence[int], beams: int) -> Index | None:
    """The part of a value that the rows of an intervention are, in their order; None for all of it.

    shape: of the value. beams: rows of it that are one row of the batch.
    """
    copies = context["sharing"].get("copies", 1)
    if act["rows"] is None and copies == 1:
        return None
    per = context["rows"] // copies
    if not plan["stepped"]:
        # Where all copies pass as one, the rows of each are the same.
        shared = bool(context["sharing"].get("once"))
        return before_the_llm(act, plan, context, shape, per, 1 if shared else copies, 0 if shared else act["copy"])
    first = act["copy"] * per * beams
    if act["rows"] is None:
        rows = slice(first, first + per * beams)
    else:
        rows = as_slice([first + row * beams + beam for row in act["rows"] for beam in range(beams)])
    answers = context["sharing"].get("answers")
    if context["columns"] is None or answers is None or copies == 1:
        return (rows,)
    # An answer of another copy may be longer, and what stands there is none of this one's columns.
    return (rows, *columns_until(plan["site"], context["prompt_length"] + answers[act["copy"]]))


def before_the_llm(
    act: Act, plan: SitePlan, context: Context, shape: Sequence[int], per: int, copies: int, copy: int
) -> Index | None:
    """As `rows_at`, at a site that is reached once, whose value is of `copies` copies of `per` rows each."""
    if act["rows"] is None and copies == 1:
        return None
    tower = context["tower"]
    axis = 0 if plan["site"].startswith("qformer") else tower["axis"]
    size = shape[axis] // copies
    if act["rows"] is None:
        chosen = slice(copy * size, (copy + 1) * size)
    else:
        counts = [1] * per if plan["site"].startswith("qformer") else tower["counts"]
        chosen = as_slice([copy * size + one for one in units(act["rows"], counts, size)])
    return (chosen,) if axis == 0 else (slice(None), chosen)


def units(rows: Sequence[int], counts: Sequence[int], size: int) -> list[int]:
    """Tiles, or columns, of some rows. size: of all; fewer than the patches where patches were merged."""
    merged = max(sum(counts) // max(size, 1), 1)
    ends = [0]
    for count in counts:
        ends.append(ends[-1] + count // merged)
    return [one for row in rows for one in range(ends[row], ends[row + 1])]


def columns_until(site: str, stop: int) -> Index:
    """The index, behind the axis of rows, of the first columns of the language model."""
    if site == "llm.attention.pattern":
        return (slice(None), slice(0, stop), slice(0, stop))
    return (slice(0, stop), slice(0, stop)) if site == "llm.attention.mask" else (slice(0, stop),)


def as_slice(rows: list[int]) -> slice | list[int]:
    """Indices as a slice where they follow one another: a view instead of a copy."""
    follow = bool(rows) and rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[-1] + 1) if follow else rows


def source_at(
    act: Act, plan: SitePlan, context: Context, source: Shaped[Tensor, "*all"], rows: int
) -> Shaped[Tensor, "*all"]:
    """The value on the source batch, of which there is one copy, as an intervention is given it for so many rows."""
    rows_of_one = context["rows"] // context["sharing"].get("copies", 1)
    alone: Context = {**context, "rows": rows_of_one, "sharing": {}}
    index = rows_at({**act, "copy": 0}, plan, alone, source.shape, 1)
    source = source if index is None else source[index]
    return source.repeat_interleave(rows // source.shape[0], dim=0)
