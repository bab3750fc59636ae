"""Image spans: which positions of a prompt each image takes, measured from its image positions."""

from __future__ import annotations

from collections.abc import Sequence

from mmneuron_lens.wire.facts_types import Facts


def image_spans(ids: Sequence[int], images: int, facts: Facts, mark: int | None = None) -> list[list[int]]:
    """The columns of each image in a row of token ids, measured from its image positions.

    - mark: the id of the token that `facts["ending"]` names.

    Raises `ValueError` where the row does not tell one image from the next.
    """
    columns = [column for column, token in enumerate(ids) if token == facts["image_token"]]
    if images == 1:
        return [columns]
    runs: list[list[int]] = []
    for column in columns:
        if runs and column == runs[-1][-1] + 1:
            runs[-1].append(column)
        else:
            runs.append([column])
    ending = facts["ending"]
    if ending is not None:
        marks = [column for column, token in enumerate(ids) if token == mark]
        found: list[list[int]] = [[] for _ in marks]
        for run in runs:
            # The first mark behind the run, or the last one before it.
            before = sum(mark < run[0] for mark in marks)
            # A run that follows a mark of its own at once ends its image; others belong to the image of the next mark.
            own = ending[0] == "behind" and run[0] - 1 in marks
            place = before - 1 if own else before
            if place >= len(found):
                break
            found[place] += run
        runs = found
    elif len(runs) != images and images and len(columns) % images == 0 and facts["tiling"] == "one":
        length = len(columns) // images
        runs = [columns[start : start + length] for start in range(0, len(columns), length)]
    if len(runs) != images or sum(map(len, runs)) != len(columns):
        raise ValueError(
            f"{len(runs)} runs of image positions for {images} images; write a line break between two placeholders."
        )
    return runs
