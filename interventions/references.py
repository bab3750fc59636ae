"""References: an intervention by its function's name, `package.module:function`, looked up before it is imported."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from itertools import accumulate
from pathlib import Path

from interventions.errors import InvalidValue
from interventions.graph import Intervention
from interventions.overs import show_over

DECORATORS = ("reads", "writes", "rewires")


def module_and_function(reference: str) -> tuple[str, str]:
    """The two names in `package.module:function`.

    Raises `InvalidValue` unless every part is a public name: none begins with `_`, as `__main__` does, and the function
    is at the top of its module.
    """
    module, _, function = reference.partition(":")
    if not all(part.isidentifier() and not part.startswith("_") for part in (*module.split("."), function)):
        raise InvalidValue(
            f"{reference!r:.200} is not package.module:function, made of names that do not begin with _."
        )
    return module, function


def refuse_untrusted(reference: str, packages: tuple[str, ...]) -> None:
    """Raise `InvalidValue` for a name outside the packages that may be loaded, and as `module_and_function`."""
    package = module_and_function(reference)[0].partition(".")[0]
    if package not in packages:
        raise InvalidValue(
            f"{reference} is outside the packages that may be loaded ({', '.join(packages)}). "
            f"If you trust this file: load_graph(path, packages=(..., {package!r}))."
        )


def intervention_at(reference: str) -> Intervention:
    """The intervention that a module defines.

    A module is imported only if its file has, at its top, a function of this name decorated with `@reads`, `@writes` or
    `@rewires`; so no program runs because a name leads to it.

    - reference: `package.module:function`.

    Raises:

    - `InvalidValue`: for another form of name, a module without a file of Python, one that has no such function, or
      only the name of another module's, and one that cannot be imported.
    """
    module, function = module_and_function(reference)
    if not _defines(module, function):
        raise InvalidValue(
            f"{module} has no function {function!r} decorated with @reads, @writes or @rewires at its top; "
            "was it renamed?"
        )
    found = imported(module, function)
    if isinstance(found, Intervention):
        plain = found.function
        if (plain.__module__, plain.__qualname__) == (module, function):
            return found
    raise InvalidValue(f"{reference} is {type(found).__name__} once {module} is imported, not its own intervention.")


def reference(intervention: Intervention) -> str:
    """`package.module:function`, or `InvalidValue` with the cure where it cannot be found again by that name."""
    function = intervention.function
    name = f"{function.__module__}:{function.__qualname__}"
    try:
        found = intervention_at(name)
    except InvalidValue as error:
        raise InvalidValue(
            f"{intervention.name} cannot be saved: {error} "
            "Move the function to a module (a .py file), decorated there, and import it from there."
        ) from None
    if found.function is not function:
        raise InvalidValue(f"{intervention.name} cannot be saved: {name} is another function now; import it again.")
    if found.mode != intervention.mode:
        raise InvalidValue(
            f"{intervention.name} cannot be saved: it {does(intervention)} and {name} {does(found)}; "
            "decorate a function of its own."
        )
    return name


def does(intervention: Intervention) -> str:
    """Its mode, and how a read is folded."""
    return intervention.mode + (f" over={show_over(intervention.over)!r}" if intervention.over else "")


def functions_of(module: str) -> list[ast.FunctionDef]:
    """The functions at the top of a module's file, none where it has no file; nothing is imported for it."""
    file = _file(module)
    if file is None:
        return []
    try:
        tree = ast.parse(importlib.util.decode_source(file.read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def imported(module: str, name: str) -> object:
    """What a module calls so, or None. Raises `InvalidValue` where it cannot be imported."""
    try:
        return vars(importlib.import_module(module)).get(name)
    except Exception as error:
        # Whatever a module of the user's raises when it is imported.
        raise InvalidValue(f"{module} cannot be imported ({type(error).__name__}: {error}).") from error


def _defines(module: str, function: str) -> bool:
    return any(node.name == function and any(map(_is_ours, node.decorator_list)) for node in functions_of(module))


def _is_ours(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else None
    return name in DECORATORS


def _file(module: str) -> Path | None:
    """The file of a module as importing would find it, its packages not imported; None where it has none."""
    path, spec = None, None
    for name in accumulate(module.split("."), "{}.{}".format):
        if spec is not None and path is None:
            # What it is said to lie in is no package.
            return None
        try:
            spec = next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)
        except KeyError:
            # A folder without `__init__.py` in a package is found through the package alone.
            spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
