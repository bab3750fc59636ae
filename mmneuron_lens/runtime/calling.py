"""Calling: one function of a graph run by itself, on fake tensors of a batch's shapes or on random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.folding import refuse_unfoldable
from mmneuron_lens.runtime.narrowed import index_of
from mmneuron_lens.runtime.typed import ShapeError, frames, inside, place, unread
from mmneuron_lens.wire import execute
from mmneuron_lens.wire.numbering import numbered
from mmneuron_lens.wire.types import Act, SitePlan, Wanted

AT_MOST = 2**27
"""Values of a random tensor, 512 MiB in float32. For a larger one no trial is made."""

OF_VALUES = (ValueError, LookupError, ArithmeticError, AssertionError)
"""What the model's own values need not raise: a trial that ends so neither proves nor refutes."""


class Call:
    """One intervention at one site, whose value there has this shape on a batch."""

    def __init__(
        self,
        act: Act,
        plan: SitePlan,
        batch: Batch,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        module: torch.nn.Module,
        shape_of: Callable[[str], tuple[int, ...]] | None = None,
    ) -> None:
        self.shape_of = shape_of
        self.act, self.plan, self.batch, self.shape, self.module = act, plan, batch, shape, module
        self.float = dtype
        self.dtype = torch.bool if ("mask",) in plan["port"]["view"] else dtype
        self.shapes = ""
        self.given: Mapping[str, Tensor] = {}
        self.returned: Any = None
        self.folded: Any = None

    def doubt(self) -> str | None:
        """None when shapes alone prove that it fits; otherwise why they could not, and what a trial showed.

        Raises `ShapeError` where it does not fit.
        """
        self.given = self.fields()
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                self.run(torch.empty, torch.empty_like, _shaped)
            return unread(self.act["function"])
        except ShapeError:
            raise
        except Exception as error:
            unproved = error
        # Not above, where what it raises would come with all that the fake tensors went through.
        return self.trial(unproved)

    def trial(self, unproved: Exception) -> str:
        """Run on random values what could not be run on shapes. Raises `ShapeError` where that shows a fault."""
        needs_values = _needs_values(unproved)
        if torch.Size(self.shape).numel() > AT_MOST:
            if needs_values:
                return f"it {_reason(unproved)}, and random values of this shape {list(self.shape)} are too many to try"
            raise self.misfit(unproved) from self.brief(unproved)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(0)
                self.run(_random, torch.clone, _invented)
        except ShapeError:
            raise
        except Exception as error:
            if needs_values and isinstance(error, OF_VALUES):
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
                return f"it {_reason(unproved)}, and raised {said} on random values"
            raise self.misfit(error) from self.brief(error)
        return f"it {_reason(unproved)}; tried on random values, where it fits"

    def run(
        self, make: Callable[..., Tensor], copy: Callable[[Tensor], Tensor], apply: Callable[[Any], Callable[..., Any]]
    ) -> None:
        """Call the function once.

        - make: a tensor of a shape and dtype
        - copy: a tensor like another one
        - apply: a callable from a module of the model
        """
        act = self.act
        value = make(self.shape, dtype=self.dtype)
        fields = self.given
        along = {name: copy(fields[field].cpu()) for name, field in act["fields"].items()}
        along |= {name: copy(value) for name in act["gradients"]}
        whole: dict[str, Tensor] = {}
        for name, wanted in act["values"].items():
            given = self.beside(wanted, make)
            (along if wanted["alike"] else whole)[name] = given
        index = index_of(act, self.plan, self.batch, self.shape)
        if index is not None:
            value, along = value[index], {name: field[index] for name, field in along.items()}
        positions = act["positions"]
        if isinstance(positions, str):
            # Positions of a kind differ in number from row to row: they arrive as one list.
            value, along = value.flatten(0, 1), {name: field.flatten(0, 1) for name, field in along.items()}
        elif positions is not None:
            # Where all are generated tokens, they come one by one.
            columns = execute.columns_at(positions, 0, value.shape[1], value.shape[1]) or [0]
            value, along = value[:, columns], {name: field[:, columns] for name, field in along.items()}
        layered = self.plan["places"][0][0] is not None
        bound = act["constants"] | {name: tensor[0] if layered else tensor for name, tensor in act["per_layer"].items()}
        arguments = {name: copy(one.detach().cpu()) if isinstance(one, Tensor) else one for name, one in bound.items()}
        for name, paths in act["modules"].items():
            arguments[name] = execute.chain([apply(execute.find(self.module, path)) for path in paths])
        arguments |= along | whole
        shown = {"value": value, **arguments}
        self.shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in shown.items() if isinstance(one, Tensor))
        given = (value, copy(value)) if act["mode"] == "rewires" else (value,)
        try:
            returned = act["function"](*given, **arguments)
        except ShapeError as error:
            raise self.shape_error(str(error)) from None
        over, who = act["over"], f"{act['name']} at {self.plan['site']}"
        self.returned = returned = over["alone"](returned) if isinstance(over, dict) else returned
        self.accept(returned, value)
        if over is not None and not isinstance(over, str):
            self.folded = refuse_unfoldable(over["together"] if isinstance(over, dict) else over, returned, who)

    def fields(self) -> Mapping[str, Tensor]:
        """Those of the site's group, with sample and position where they are asked for."""
        group = self.plan["group"]
        if group is None:
            return {}
        if not {"sample", "position"} & set(self.act["fields"].values()):
            return self.batch.fields[group]
        return numbered(self.batch.plain(), self.batch.facts)["fields"][group]

    def beside(self, wanted: Wanted, make: Callable[..., Tensor]) -> Tensor:
        """The value of another site."""
        assert self.shape_of is not None, "whoever asks about values of other sites gives their shapes"
        flags = wanted["site"].endswith("attention.mask")
        return make(self.shape_of(wanted["site"]), dtype=torch.bool if flags else self.float)

    def accept(self, returned: object, value: Tensor) -> None:
        """Raise `ShapeError` for what a write, a mean or a target does not return."""
        act, site = self.act, self.plan["site"]
        if act["mode"] == "targets":
            got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            if not isinstance(returned, Tensor) or tuple(returned.shape) != value.shape[:1]:
                raise ShapeError(
                    f"{act['name']} at {site} returned {got} for {value.shape[0]} rows; a target returns one number a "
                    "row, float [row]."
                )
            return
        if act["mode"] != "reads" and (not isinstance(returned, Tensor) or returned.shape != value.shape):
            got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise ShapeError(
                f"{act['name']} at {site} returned {got} for a value of shape {list(value.shape)}; "
                "a write returns a tensor of the same shape."
            )
        if act["over"] == "mean" and not (isinstance(returned, tuple) and len(returned) == 2):
            raise ShapeError(f'{act["name"]}: a read with over="mean" returns the pair (sum, weight).')

    def shape_error(self, reason: str) -> ShapeError:
        return ShapeError(f"{self.act['name']} does not fit {self.plan['site']} ({self.shapes}): {reason}")

    def misfit(self, error: Exception) -> ShapeError:
        """What the function raised in one line, with its own line that raised it."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        own = [frame for frame in frames(self.brief(error)) if "/torch/" not in frame.tb_frame.f_code.co_filename]
        where = f" ({place(own[-1].tb_frame.f_code.co_filename, own[-1].tb_lineno)})" if own else ""
        return self.shape_error(reason + where)

    def brief(self, error: Exception) -> Exception:
        """The same error, whose traceback begins in the function."""
        return error.with_traceback(inside(error, self.act["function"]) or error.__traceback__)


def _needs_values(error: Exception) -> bool:
    """Whether it was raised because a fake tensor holds no values."""
    said = str(error)
    asked = isinstance(error, DataDependentOutputException | DynamicOutputShapeException)
    return asked or "FakeTensor" in said or "tensor subclass" in said


def _reason(error: Exception) -> str:
    if isinstance(error, DynamicOutputShapeException):
        return f"makes a tensor whose shape depends on values ({_operation(error)})"
    if isinstance(error, DataDependentOutputException):
        return f"takes a value out of a tensor ({_operation(error)})"
    return f"cannot run on shapes ({type(error).__name__}: {' '.join(str(error).split())[:100]})"


def _operation(error: DataDependentOutputException | DynamicOutputShapeException) -> str:
    """As it is written in Python."""
    name = str(error.func).split(".")[1]
    return "a number or a condition" if name == "_local_scalar_dense" else name.strip("_")


def _random(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
    """Values of both signs, of which some are large; flags are true and false."""
    drawn = torch.randn(shape, dtype=torch.float32, device="cpu")
    return drawn > 0 if dtype == torch.bool else drawn.pow_(3).to(dtype)


def _shaped(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """A module applied to fake values whatever device and dtype its weights have: only shapes matter here."""

    def apply(value: Tensor) -> Tensor:
        parameter = next(module.parameters(), None)
        if parameter is None:
            return module(value)
        return module(torch.empty(value.shape, dtype=parameter.dtype, device=parameter.device)).to(value.device)

    return apply


def _invented(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """Random values of the shape that a module returns: its weights may be missing, or take long."""

    def apply(value: Tensor) -> Tensor:
        with FakeTensorMode(allow_non_fake_inputs=True):
            made = _shaped(module)(torch.empty(value.shape, dtype=value.dtype, device="cpu"))
            shape, dtype = tuple(made.shape), made.dtype
        return _random(shape, dtype=dtype)

    return apply
