"""A batch: model inputs that know which position is image, text or padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import GROUP_KINDS
from mmneuron_lens.architectures.picture_areas import Pictured
from mmneuron_lens.architectures.tower_boxes import Before
from mmneuron_lens.runtime.image_spans import image_spans
from mmneuron_lens.runtime.readable_tokens import readable
from mmneuron_lens.runtime.row_pictures import (
    boxes_of_row,
    columns_of,
    grid_of,
    group_of,
    image_of,
    images_of_row,
    of_positions,
    of_tower,
    painted,
    pictured_in,
    row_of,
    sizes_of,
    tiles_of,
    tower_boxes_of_row,
)
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.images import file_bytes
from mmneuron_lens.wire.rows import belonging
from mmneuron_lens.wire.types import BatchData, Item, Sharing

OWN = ("weight", "kind", "sample", "position")
"""Fields that the runtime makes."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What `lens.encode` and `lens.pack` make.

    - inputs: the processor's tensors, prompts padded on the left
    - fields: by group of sites, `weight` int64 `[rows, positions]` (0 for padding) and `kind` bool
      `[rows, positions, kinds]`, one-hot
    - images: how many each row has
    - prompt_length: columns before generated tokens; all of them unless an answer was appended
    - facts: of the architecture, what laying out needs
    - given: the images and texts it was made from (per row a text, or a tuple of those packed in it), which is what
      travels to a server
    - answers: token ids that stand behind each prompt; the field `answer` says where
    - sharing: how rows share work: `cuts`, the columns at which a packed row runs in parts, or `spread`, which image
      each row is about where the vision tower sees each image once; empty otherwise
    - image_processor: which made the pixels
    - samples: numbers of the samples, as `with_samples` gave them; counted over a run's batches where None
    """

    inputs: Mapping[str, Tensor]
    fields: Mapping[str, Mapping[str, Tensor]]
    images: tuple[int, ...]
    prompt_length: int
    facts: Facts
    tokenizer: Any = field(repr=False, default=None)
    given: tuple[tuple[tuple[Any, ...], ...], tuple[str | tuple[str, ...], ...]] = field(repr=False, default=((), ()))
    answers: tuple[tuple[int, ...], ...] = field(repr=False, default=())
    sharing: Sharing = field(repr=False, default_factory=Sharing)
    image_processor: Any = field(repr=False, default=None)
    samples: tuple[int, ...] | None = field(repr=False, default=None)

    @property
    def rows(self) -> int:
        """How many rows the language model sees."""
        return self.inputs["input_ids"].shape[0]

    @property
    def kind(self) -> list[list[str]]:
        """For every position: "image", "text", "generated" or "padding"."""
        fields = self.fields["llm"]
        names = GROUP_KINDS["llm"]
        return [
            [names[index] if weight else "padding" for weight, index in zip(weights, kinds, strict=True)]
            for weights, kinds in zip(_lists(fields["weight"]), _lists(fields["kind"].int().argmax(-1)), strict=True)
        ]

    @property
    def tokens(self) -> list[list[str]]:
        """Every position as it reads: `cat`, whatever mark its vocabulary has for a space; space alone is drawn, `␣`.
        Image positions are named by image and place in its span: `<image 1: 17>`.
        """
        shown: list[list[str]] = []
        padding, read = str(self.tokenizer.pad_token), cache(partial(readable, self.tokenizer))
        for row, (ids, kinds) in enumerate(zip(_lists(self.inputs["input_ids"]), self.kind, strict=True)):
            words = list(map(read, ids))
            named = {
                column: f"<image {number}: {place}>"
                for number, span in enumerate(self.image_spans(row), 1)
                for place, column in enumerate(span)
            }
            shown.append(
                [
                    named.get(column, word) if kind != "padding" else padding
                    for column, (word, kind) in enumerate(zip(words, kinds, strict=True))
                ]
            )
        return shown

    def image_spans(self, row: int) -> list[list[int]]:
        """The columns of each image of a row, in order, from its image positions."""
        kinds = self.kind[row]
        image = [column for column, kind in enumerate(kinds) if kind == "image"]
        if not self.images[row] or not self.facts["images_in_text"]:
            return [image] if self.images[row] else []
        end = max(image, default=-1) + 1
        # What ends an image may follow its last position.
        ids = _lists(self.inputs["input_ids"][row : row + 1])[0][: end + 1]
        ending = self.facts["ending"]
        mark = None if ending is None else self.tokenizer.convert_tokens_to_ids(ending[1])
        return image_spans(ids, self.images[row], self.facts, mark)

    def positions(self, kind: str | int, row: int | None = None) -> Any:
        """The columns of a kind of position: a list of integers for each row, or of one row.

        - kind: "image", "text", "generated" or "padding"; or the number of an image of the row, from 0
        - row: which; all of them if left out

        Raises `UnknownName` for another kind, `OutOfRange` for a row or an image that is not there.
        """
        if row is None:
            return [self.positions(kind, each) for each in range(self.rows)]
        place = row_of(row, self.rows)
        return columns_of(kind, self.kind[place], lambda: self.image_spans(place))

    def boxes(self, row: int = 0) -> Float[Tensor, "position 5"]:
        """Where in its picture every image position of a row lies, in the order of `positions("image", row)`.

        Returns float32: the number of the image in the row, then left, top, right and bottom in pixels of the picture
        as a viewer shows it. NaN where a position has no place: newlines, padding, the queries of a Q-Former. Pixels
        near a box may have a weight in it too, where the picture was resized.

        Raises `OutOfRange` for a row that is not there, `ValueError` for a picture that can no longer be read.
        """
        return boxes_of_row(self._pictured(row_of(row, self.rows)), self.facts)

    def tower_boxes(self, row: int = 0, group: Before = "vision") -> Float[Tensor, "position 5"]:
        """Where in its picture every position of the vision tower, or of the projector, lies.

        - row: whose pictures. Of a packed batch all prompts of a row see the same ones.
        - group: of the sites: "vision" (`vision.mlp.act` ...), or "projector" (`projector.act` ...), whose positions
          are patches or what patches were merged to

        Returns float32, a row a position, in the order in which the field `position` counts them within a sample: the
        number of the image in the row, then left, top, right and bottom in pixels of the picture as a viewer shows it.
        NaN where a position has no place: CLS tokens, patches of padding alone, the queries of a Q-Former. What covers
        the picture in part is cut where it ends. Where a tower sees a picture twice, as a whole and in tiles, so do
        the boxes. Pixels near a box may have a weight in it too, where the picture was resized.

        Raises `OutOfRange` for a row that is not there, `UnknownName` for another group, `ValueError` for a picture
        that can no longer be read.
        """
        row = row_of(row, self.rows)
        tiles = tiles_of(self.inputs, self.facts, self.images, row)
        return tower_boxes_of_row(self._pictured(row), tiles, self.facts, group_of(group))

    def tower_map(
        self, values: Tensor, row: int = 0, image: int = 0, group: Before = "vision"
    ) -> Float[Tensor, "height width"]:
        """A value of every position of the vision tower, or of the projector, laid on the picture: a heat map.

        - values: `[position]`, one for every one of `tower_boxes(row, group)`, or `[tile, patch]`, the same as a site
          shows them
        - row, image: which picture, both counted from 0
        - group: as in `tower_boxes`

        Returns float32 on the CPU. A pixel shows the smallest box that covers it (a tile's, not the overview's), NaN
        where none does.

        Raises as `patch_map` and `tower_boxes` do.
        """
        boxes, sizes = self.tower_boxes(row, group), self.picture_sizes(row)
        number = image_of(image, len(sizes))
        mine = boxes[:, 0] == number
        given = of_tower(values, len(boxes))
        if bool(boxes[mine, 1:].isnan().all()):
            raise InvalidValue(f"This architecture's {group} positions have no place in the picture; there is no map.")
        return painted(given[mine], boxes[mine, 1:], sizes[number])

    def patch_map(self, values: Tensor, row: int = 0, image: int = 0) -> Float[Tensor, "height width"]:
        """A value of every position laid on the picture, at the size a viewer shows it: a heat map over patches.

        - values: `[position]`, one for every column of the row, or for every one of `positions("image", row)`
        - row, image: which picture, both counted from 0

        Returns float32 on the CPU. A pixel shows the smallest of the `boxes` that cover it (of
        LLaVA-NeXT a tile's, not the overview's), NaN where none does.

        Raises `InvalidValue` for another number of values, or positions without a place (the queries of a Q-Former),
        `InvalidType` for what is no tensor, `OutOfRange` for a row or image that is not there.
        """
        if isinstance(cast(object, image), str):
            raise InvalidType(f"image is the number of a picture, not {image!r}.")
        columns, boxes, sizes = self.positions("image", row), self.boxes(row), self.picture_sizes(row)
        mine = set(self.positions(image, row))
        own = [place for place, column in enumerate(columns) if column in mine]
        given = of_positions(values, columns, self.inputs["input_ids"].shape[1])
        if bool(boxes[own, 1:].isnan().all()):
            raise InvalidValue("This architecture's image positions have no place in the picture, so there is no map.")
        return painted(given[own], boxes[own, 1:], sizes[image])

    def picture_sizes(self, row: int = 0) -> list[tuple[int, int]]:
        """Height and width of every picture of a row, as a viewer shows it."""
        return sizes_of(images_of_row(self.given[0], self.sharing, self.images, row_of(row, self.rows)))

    def _pictured(self, row: int) -> list[Pictured]:
        """What boxes follow from, of every picture of a row."""
        before = sum(self.images[:row])
        grids = [grid_of(self.inputs, self.facts, before + number) for number in range(self.images[row])]
        words = self.tokenizer.convert_ids_to_tokens(_lists(self.inputs["input_ids"])[row])
        side = self.inputs["pixel_values"].shape[-1] if "pixel_values" in self.inputs else 0
        return pictured_in(self.image_spans(row), self.picture_sizes(row), grids, words, side, self.image_processor)

    def with_fields(self, **fields: Tensor) -> Batch:
        """Add your own fields along the language model's axes `[rows, tokens, ...]`, for `batch_field(name)`.

        Raises `InvalidValue` when the leading axes differ, or for `weight`, `kind`, `sample` and `position`, which are
        the batch's own; `InvalidType` for what is no tensor.
        """
        shape = tuple(self.inputs["input_ids"].shape)
        for name, tensor in fields.items():
            if not isinstance(cast(object, tensor), Tensor):
                raise InvalidType(f"Field {name!r} is a tensor {list(shape)}, not {type(tensor).__name__}.")
            if name in OWN or (name == "answer" and self.answers):
                raise InvalidValue(f"Field {name!r} is the batch's own; give yours another name, and bind that.")
            if tuple(tensor.shape[:2]) != shape:
                raise InvalidValue(
                    f"Field {name!r} starts with {list(tensor.shape[:2])}; this batch has {list(shape)}."
                )
        return replace(self, fields={**self.fields, "llm": {**self.fields["llm"], **fields}})

    @property
    def sample_count(self) -> int:
        """How many samples there are: rows of `lens.encode`, or rows of images of `lens.pack`."""
        return len(self.given[1]) or self.rows

    def with_samples(self, numbers: Iterable[int]) -> Batch:
        """The batch whose samples have these numbers in the field `sample`, in place of those counted over a run.

        - numbers: one per row of `lens.encode`, or per row of images of `lens.pack`, 0 or more; rows with the same
          number are one sample. Or one per prompt of `lens.pack`: a position is then counted within its own prompt, and
          what prompts share, the tower's patches too, is of the first of them.

        Raises `InvalidValue` for another count or a number below 0, `InvalidType` for what is no whole number.
        """
        if isinstance(numbers, Tensor):
            numbers = _lists(numbers)
        if not isinstance(cast(object, numbers), Iterable):
            raise InvalidType(f"with_samples takes a list of whole numbers, not {numbers!r:.80}.")
        given = tuple(cast("Iterable[object]", numbers))
        for number in given:
            if not isinstance(number, int) or isinstance(number, bool):
                raise InvalidType(f"The number of a sample is a whole number, not {number!r:.80}.")
            if not 0 <= number < 2**63:
                raise InvalidValue(f"The number of a sample is {number}; numbers are from 0 to {2**63 - 1}.")
        prompts = sum(len(text) if isinstance(text, tuple) else 1 for text in self.given[1])
        if len(given) not in (self.sample_count, prompts):
            raise InvalidValue(f"{len(given)} numbers for {self.sample_count} samples; give one each.")
        return replace(self, samples=cast("tuple[int, ...]", given))

    def plain(self, numbers: Sequence[int] | None = None) -> BatchData:
        """The batch as the wire functions take it. numbers: of the samples; from 0 on if left out."""
        images, texts = self.given if self.given[1] else ([()] * self.rows, [""] * self.rows)
        return {
            "inputs": dict(self.inputs),
            "fields": dict(self.fields),
            "prompt_length": self.prompt_length,
            "sharing": self.sharing,
            "samples": {
                "numbers": range(self.sample_count) if numbers is None else numbers,
                "images": [len(some) for some in images] if self.given[1] else self.images,
                "prompts": [len(text) if isinstance(text, tuple) else 1 for text in texts],
            },
            "tower": belonging(self.inputs, self.facts, self.images, self.sharing),
        }

    def travelling(self, numbers: Sequence[int] | None = None) -> Item:
        """The batch as the bytes of its image files and its texts, with your own fields, and its samples' numbers."""
        images, texts = self.given
        beside = (*OWN, "answer") if self.answers else OWN
        own = {name: tensor for name, tensor in self.fields["llm"].items() if name not in beside}
        files = [[file_bytes(image) for image in some] for some in images]
        prompts = [list(text) if isinstance(text, tuple) else text for text in texts]
        item: Item = {"images": files, "texts": prompts, "extra": own, "cut": "cuts" in self.sharing}
        if self.answers:
            item["answers"] = [list(one) for one in self.answers]
        if numbers is not None:
            item["numbers"] = list(numbers)
        return item

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            fields={
                group: {name: tensor.to(device) for name, tensor in some.items()} for group, some in self.fields.items()
            },
        )

    def __repr__(self) -> str:
        weight, kind = self.fields["llm"]["weight"], self.fields["llm"]["kind"]
        counts = _lists((weight[..., None] * kind).sum((0, 1)))
        parts = [f"{count} {name}" for name, count in zip(GROUP_KINDS["llm"], counts, strict=True) if count]
        padding = int((weight == 0).sum())
        return f"Batch({self.rows} rows, {sum(self.images)} images: {', '.join(parts)}, {padding} padding positions)"


def _lists(tensor: Tensor) -> list[Any]:
    """`tolist`, of which torch's types do not say what is in the lists."""
    return cast(Any, tensor).tolist()
