"""Saved folds: how a read is folded, as JSON: a word, one of our folds with its arguments, or a function by name."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any, cast

from interventions.errors import InvalidValue
from interventions.folds import largest
from interventions.graph import Intervention
from interventions.overs import Fold, Over, Word
from interventions.references import functions_of, imported, module_and_function, refuse_untrusted
from interventions.saved_form import SavedFold
from interventions.sites import unknown

OURS: dict[str, Callable[..., Fold]] = {"largest": largest}
"""What loading calls, with plain arguments: these and nothing else."""


def packed_over(intervention: Intervention, own: Over | None) -> Word | SavedFold | None:
    """How a read is folded, as JSON. own: how the read that its function's name leads to is folded.

    Raises `InvalidValue` with the cure for a function that could not be found again.
    """
    over = intervention.over
    if over is None or isinstance(over, str):
        return cast("Word | None", over)
    if isinstance(over, Fold):
        return {"fold": over.name, "arguments": dict(over.settings)}
    name = _named(over)
    if over is not own:
        try:
            found = _function_at(name)
        except InvalidValue as error:
            raise InvalidValue(
                f"{intervention.name} cannot be saved: its fold {over.__name__}: {error} Move the function to a module "
                f"(a .py file), beside a read that is decorated with over={over.__name__}, and import it from there."
            ) from None
        if found is not over:
            raise InvalidValue(f"{intervention.name} cannot be saved: {name} is another function now; import it again.")
    return {"fold": name, "arguments": {}}


def restored_over(saved: Word | SavedFold | None, own: Over | None, packages: tuple[str, ...]) -> Over | None:
    """The fold that was saved. own: how the read is folded that it was saved of.

    A function is imported only of these packages, and only where its module folds a read with it; it is not called.
    Raises `InvalidValue` for any other, and what making one of ours raises.
    """
    if saved is None or isinstance(saved, str):
        return saved
    name, arguments = saved["fold"], saved["arguments"]
    if ":" not in name:
        return _ours(name, arguments)
    if arguments:
        raise InvalidValue(f"{name:.200} is a function, which takes no arguments here; save the graph again.")
    if own is not None and not isinstance(own, str | Fold) and name == _named(own):
        return own
    refuse_untrusted(name, packages)
    return _function_at(name)


def _ours(name: str, arguments: dict[str, Any]) -> Fold:
    if name not in OURS:
        raise InvalidValue(unknown("fold", name[:80], tuple(OURS)))
    taken = inspect.signature(OURS[name]).parameters
    for argument in arguments:
        if argument not in taken:
            raise InvalidValue(f"{name}: {unknown('argument', argument[:80], tuple(taken))}")
    for argument, parameter in taken.items():
        if argument not in arguments and parameter.default is inspect.Parameter.empty:
            raise InvalidValue(f"{name}: {argument} is missing.")
    return OURS[name](**arguments)


def _named(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _function_at(name: str) -> Callable[[Any, Any], Any]:
    module, function = module_and_function(name)
    top = functions_of(module)
    if not any(one.name == function for one in top) or not any(_folds_with(one, function) for one in top):
        raise InvalidValue(f"{module} has no function {function!r} at its top that it folds a read with.")
    found = imported(module, function)
    if not inspect.isfunction(found) or _named(found) != name:
        raise InvalidValue(f"{name} is {type(found).__name__} once {module} is imported, not its own function.")
    return cast("Callable[[Any, Any], Any]", found)


def _folds_with(node: ast.FunctionDef, function: str) -> bool:
    """Whether a function is decorated with `@reads(..., over=function)`."""
    for decorator in node.decorator_list:
        if not isinstance(decorator, ast.Call):
            continue
        called = decorator.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name == "reads" and any(
            one.arg == "over" and isinstance(one.value, ast.Name) and one.value.id == function
            for one in decorator.keywords
        ):
            return True
    return False
