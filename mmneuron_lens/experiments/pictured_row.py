"""Pictured row: where the positions of one question lie on its pictures, and activations laid on a raster of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from interventions.sites import SITES
from mmneuron_lens.artifacts.neuron_examples import SIDE
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.row_pictures import painted


@dataclass(frozen=True, eq=False)
class PicturedRow:
    """The positions of one row of a batch at the sites of one group.

    - picture: int64 [position], which of the row's pictures each lies on, -1 for none.
    - box: float32 [position, 4], left, top, right and bottom in shares of that picture; NaN for none.
    - cells: int64 [picture, `SIDE`, `SIDE`], the position that each cell of a raster shows, -1 for none: of the boxes
      that cover its middle the smallest.
    """

    picture: Tensor
    box: Tensor
    cells: Tensor


class PicturedRows:
    """The rows of one batch, each of which is laid out once for all sites of a group."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._known: dict[tuple[int, str], PicturedRow] = {}
        self._sizes: dict[int, Float[Tensor, "picture 2"]] = {}

    def of(self, row: int, site: str) -> PicturedRow:
        """Where the positions of a row lie, counted as the field `position` counts them at a site."""
        group = SITES[site].group or ""
        if (row, group) not in self._known:
            self._known[row, group] = _pictured(self.batch, row, group, self.sizes(row))
        return self._known[row, group]

    def sizes(self, row: int) -> Float[Tensor, "picture 2"]:
        """Height and width of the pictures of a row."""
        if row not in self._sizes:
            sizes = self.batch.picture_sizes(row)
            self._sizes[row] = torch.tensor(sizes, dtype=torch.float32, device="cpu").view(-1, 2)
        return self._sizes[row]

    def positions(self, row: int, site: str) -> int:
        """How many positions a row has at a site."""
        return len(self.of(row, site).picture)


def _pictured(batch: Batch, row: int, group: str, sizes: Float[Tensor, "picture 2"]) -> PicturedRow:
    if group == "llm":
        counted = batch.fields["llm"]["weight"][row].cpu().cumsum(0)
        width, places = int(counted[-1]), (counted - 1)[batch.positions("image", row)]
        boxes = batch.boxes(row)
    elif group == "vision" or (group == "projector" and not batch.facts["queries"]):
        boxes = batch.tower_boxes(row, "vision" if group == "vision" else "projector")
        width, places = len(boxes), torch.arange(len(boxes), device="cpu")
    else:
        width, places = batch.fields[group]["weight"].shape[1], torch.zeros(0, dtype=torch.int64, device="cpu")
        boxes = torch.zeros(0, 5, dtype=torch.float32, device="cpu")
    picture = torch.full((width,), -1, dtype=torch.int64, device="cpu")
    box = torch.full((width, 4), torch.nan, dtype=torch.float32, device="cpu")
    there = ~boxes[:, 1:].isnan().any(1)
    number = boxes[there, 0].long()
    picture[places[there]] = number
    box[places[there]] = (boxes[there, 1:] / sizes[number].flip(1).repeat(1, 2)).clamp(0, 1)
    cells = [_cells(picture, box, one) for one in range(len(sizes))]
    none = torch.zeros(0, SIDE, SIDE, dtype=torch.int64, device="cpu")
    return PicturedRow(picture, box, torch.stack(cells) if cells else none)


def _cells(
    picture: Int[Tensor, " position"], box: Float[Tensor, "position 4"], number: int
) -> Int[Tensor, "side side"]:
    own = (picture == number).nonzero()[:, 0]
    shown = painted(own.float(), box[own] * SIDE, (SIDE, SIDE))
    return shown.nan_to_num(nan=-1).long()


@dataclass(frozen=True, eq=False)
class Laid:
    """Examples of one row laid on its pictures; the first axis of each is the example.

    `picture` int64, `box` float32 [4], `maps` uint8 [`SIDE`, `SIDE`], `map_maximum` float32: as of `NeuronExamples`.
    """

    picture: Int[Tensor, " example"]
    box: Float[Tensor, "example 4"]
    maps: UInt8[Tensor, "example side side"]
    map_maximum: Float[Tensor, " example"]


def laid(values: Float[Tensor, "example position"], at: Int[Tensor, " example"], row: PicturedRow) -> Laid:
    """Activations of several neurons laid on the pictures of one row.

    - values: at every position of the row; at: where each neuron was most active.

    The map lies on the picture of that position; for a position without a place, such as a word, on the picture that
    has the largest activation, and on the first where no position has a place. A cell shows the smallest box that
    covers its middle; the cells of the position's own box, and that in which the middle of the box lies, show what it
    has itself, so that what was largest is seen.
    """
    pictures = len(row.cells)
    if not pictures:
        return Laid(*_nothing(len(values)))
    positive = values.nan_to_num(nan=0.0).clamp(min=0)
    above = torch.stack([(positive * (row.picture == one)).amax(1) for one in range(pictures)], 1)
    there = torch.tensor([bool((row.picture == one).any()) for one in range(pictures)], device="cpu")
    best = above.masked_fill(~there, -1).argmax(1)
    picture = torch.where(row.picture[at] < 0, best, row.picture[at])
    largest = above.gather(1, picture[:, None])[:, 0]
    cells = row.cells[picture].flatten(1)
    shown = positive.gather(1, cells.clamp(min=0)).masked_fill(cells < 0, 0)
    box = row.box[at]
    shown = torch.where(_own(box), positive.gather(1, at[:, None]), shown)
    maps = shares(shown, largest).view(-1, SIDE, SIDE)
    return Laid(picture, box, maps, largest)


def _nothing(examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a question without pictures."""
    return (
        torch.full((examples,), -1, dtype=torch.int64, device="cpu"),
        torch.full((examples, 4), torch.nan, dtype=torch.float32, device="cpu"),
        torch.zeros(examples, SIDE, SIDE, dtype=torch.uint8, device="cpu"),
        torch.zeros(examples, dtype=torch.float32, device="cpu"),
    )


def shares(values: Float[Tensor, "example cell"], largest: Float[Tensor, " example"]) -> UInt8[Tensor, "example cell"]:
    """Values at or above zero as shares of the largest, from 0 to 255; 0 where the largest is."""
    scaled = values / largest.where(largest > 0, torch.inf)[:, None]
    return (255 * scaled.clamp(0, 1)).round().to(torch.uint8)


def _own(box: Float[Tensor, "example 4"]) -> Tensor:
    """Bool [example, cell]: which cells have their middle in the box, or the middle of the box in them."""
    middle = (torch.arange(SIDE, device="cpu") + 0.5) / SIDE
    inside = [(middle >= box[:, [low]]) & (middle < box[:, [high]]) for low, high in ((0, 2), (1, 3))]
    centres = [((box[:, low] + box[:, high]) / 2 * SIDE).floor().clamp(0, SIDE - 1) for low, high in ((0, 2), (1, 3))]
    at = [torch.arange(SIDE, device="cpu") == centre[:, None] for centre in centres]
    own = (inside[1][:, :, None] & inside[0][:, None]) | (at[1][:, :, None] & at[0][:, None])
    return own.flatten(1)
