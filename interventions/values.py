"""Values: what an intervention is given beside the value at its site: another site's, a source's, a gradient."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from interventions.bindings import Arguments, BatchField, Binding, Constant, ConstantTensor, Packed
from interventions.errors import InvalidType, InvalidValue, UnknownName
from interventions.graph import Intervention
from interventions.references import reference
from interventions.sites import SITES, unknown


@dataclass(frozen=True, eq=False)
class ValueOf(Binding):
    """The value of a site in the same forward, or in that of the paired source batch; None is the site acted at."""

    site: str | None
    source: bool = False

    def __post_init__(self) -> None:
        if self.site is not None and self.site not in SITES:
            raise UnknownName(f"value_of: {unknown('site', self.site, tuple(SITES))}")
        if not isinstance(cast(object, self.source), bool):
            raise InvalidType(f"value_of: source is True or False, not {self.source!r}.")
        if self.site is None and not self.source:
            raise InvalidValue(
                "value_of() names no site, and the value at the site itself is the first argument; name another site, "
                "or write source=True for the value that the source batch has there."
            )

    def show(self) -> str:
        what = self.site or "this site"
        return f"value_of({what}, source)" if self.source else f"value_of({what})"

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        return {"value_of": {"site": self.site, "source": self.source}}

    def identity(self) -> tuple[Hashable, ...]:
        return ("value of", self.site, self.source)

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.value_of(name, self.site or site, self.source)


@dataclass(frozen=True, eq=False)
class Gradient(Binding):
    """The gradient, at the site and layer acted at, of the sum over rows of a target: a read of one number a row."""

    target: Intervention = field()

    def __post_init__(self) -> None:
        target = cast(object, self.target)
        if not isinstance(target, Intervention) or target.mode != "reads":
            raise InvalidType(
                f"gradient takes a read of one number a row, such as answer_log_probability, not {target!r:.80}."
            )
        if len(self.target.sites) != 1 or self.target.sites[0] not in SITES or SITES[self.target.sites[0]].per_layer:
            raise InvalidValue(f"{self.target.name}: a target reads at one site without layers, such as llm.logits.")
        if self.target.where:
            raise InvalidValue(f"{self.target.name}: a target is not narrowed ({self.target.where}).")
        for name, bound in self.target.bindings.items():
            if not isinstance(bound, Constant | ConstantTensor | BatchField):
                raise InvalidValue(f"{self.target.name}: {name}={bound.show()}; a target takes constants and fields.")

    def show(self) -> str:
        return f"gradient({self.target.name})"

    def pack(self, tensors: dict[str, Tensor]) -> Packed:
        bindings = {name: bound.pack(tensors) for name, bound in self.target.bindings.items()}
        return {
            "gradient": {
                "function": reference(self.target),
                "name": self.target.name,
                "site": self.target.sites[0],
                "bindings": bindings,
            }
        }

    def identity(self) -> tuple[Hashable, ...]:
        return ("gradient", self.target.identity())

    def give(self, name: str, site: str, arguments: Arguments) -> None:
        arguments.gradient(name, self.target)


def value_of(site: str | None = None, *, source: bool = False) -> ValueOf:
    """Bind the value of another site in the same forward, at the same layer.

    What it gives is what the model goes on with there: the value after all writes at that site. A read may bind a site
    that comes earlier or later; a write, one that comes earlier. Where both sites have the same positions, the value is
    narrowed to the positions and rows that the intervention is narrowed to; otherwise it is whole.

    - site: the name of a site of the same stack of layers, or of one without layers; with `source=True`, the site that
      is acted at if left out.
    - source: the value on the paired source batch, as a rewire is given it, instead of this one.

    Raises:

    - `UnknownName`: for a site that does not exist.
    - `InvalidValue`: for no site at all, without `source`.
    """
    return ValueOf(site, source)


def gradient(target: Intervention) -> Gradient:
    """Bind the gradient of a target at the site and layer where a read acts, of the shape of the value there.

    - target: a read at one site without layers, usually `llm.logits`, that returns one number a row, float `[row]`,
      such as `answer_log_probability` or `logit_difference`; its arguments are constants and fields of the batch. Rows
      do not meet in a forward, so each row's gradient is that of its own number.

    The forward keeps what one backward needs, and the read runs when that is done; interventions that share a target
    share the backward. The gradient is taken with all writes of the graph in force.

    Raises:

    - `InvalidType`: for what is no read.
    - `InvalidValue`: for a target of several sites, at a site with layers, narrowed, or with another kind of argument.
    """
    return Gradient(target)
