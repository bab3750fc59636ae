"""A batch: model inputs that know which position is image, text or padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from interventions.errors import InvalidType, InvalidValue
from interventions.sites import GROUP_KINDS
from mmneuron_lens.runtime.image_spans import image_spans
from mmneuron_lens.wire.facts_types import Facts
from mmneuron_lens.wire.images import file_bytes
from mmneuron_lens.wire.rows import belonging
from mmneuron_lens.wire.types import BatchData, Item, Sharing


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
    - sharing: how rows share work: `cuts`, the columns at which a packed row runs in parts, or `spread`, which image
      each row is about where the vision tower sees each image once; empty otherwise
    """

    inputs: Mapping[str, Tensor]
    fields: Mapping[str, Mapping[str, Tensor]]
    images: tuple[int, ...]
    prompt_length: int
    facts: Facts
    tokenizer: Any = field(repr=False, default=None)
    given: tuple[tuple[tuple[Any, ...], ...], tuple[str | tuple[str, ...], ...]] = field(repr=False, default=((), ()))
    sharing: Sharing = field(repr=False, default_factory=Sharing)

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
        """Every position as text. Image positions are named by image and place in its span: `<image 1: 17>`."""
        shown: list[list[str]] = []
        padding = str(self.tokenizer.pad_token)
        for row, (ids, kinds) in enumerate(zip(_lists(self.inputs["input_ids"]), self.kind, strict=True)):
            words: list[str] = self.tokenizer.convert_ids_to_tokens(ids)
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

    def with_fields(self, **fields: Tensor) -> Batch:
        """Add your own fields along the language model's axes `[rows, tokens, ...]`, for `batch_field(name)`.

        Raises `InvalidValue` when the leading axes differ, or for `weight` and `kind`, which are the batch's own;
        `InvalidType` for what is no tensor.
        """
        shape = tuple(self.inputs["input_ids"].shape)
        for name, tensor in fields.items():
            if not isinstance(cast(object, tensor), Tensor):
                raise InvalidType(f"Field {name!r} is a tensor {list(shape)}, not {type(tensor).__name__}.")
            if name in ("weight", "kind"):
                raise InvalidValue(f"Field {name!r} is the batch's own; give yours another name, and bind that.")
            if tuple(tensor.shape[:2]) != shape:
                raise InvalidValue(
                    f"Field {name!r} starts with {list(tensor.shape[:2])}; this batch has {list(shape)}."
                )
        return replace(self, fields={**self.fields, "llm": {**self.fields["llm"], **fields}})

    def plain(self) -> BatchData:
        """The batch as the wire functions take it."""
        return {
            "inputs": dict(self.inputs),
            "fields": dict(self.fields),
            "prompt_length": self.prompt_length,
            "sharing": self.sharing,
            "tower": belonging(self.inputs, self.facts, self.images, self.sharing),
        }

    def travelling(self) -> Item:
        """The batch as the bytes of its image files and its texts, with your own fields."""
        images, texts = self.given
        own = {name: tensor for name, tensor in self.fields["llm"].items() if name not in ("weight", "kind")}
        files = [[file_bytes(image) for image in some] for some in images]
        prompts = [list(text) if isinstance(text, tuple) else text for text in texts]
        return {"images": files, "texts": prompts, "extra": own, "cut": "cuts" in self.sharing}

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
