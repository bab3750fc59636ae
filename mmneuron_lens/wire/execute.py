"""Execute: what the worker of one site does while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmneuron_lens.wire.beside import (
    add_target,
    asking,
    complete,
    follow,
    go_back,
    pass_on,
    ready,
    refuse_cut,
    refuse_incomplete,
)
from mmneuron_lens.wire.facts_types import Layer
from mmneuron_lens.wire.ports import put, take
from mmneuron_lens.wire.rows import rows_at, source_at
from mmneuron_lens.wire.types import Act, Chosen, Context, Index, Module, Results, SitePlan, Value, Waiting


def serve(plan: SitePlan, root: Module, context: Context, step: int, results: Results) -> None:
    """Visit the layers of one site in one forward pass: read each value once, apply, write once."""
    for layer, path in plan["places"]:
        acts = [act for act in plan["acts"] if acts_here(act, layer, step, context["columns"])]
        given = layer in context["beside"]["wanted"].get(plan["site"], ())
        if not acts and not given:
            continue
        envoy = find(root, path)
        held, value = take(envoy, plan["port"], layer, context)
        changed = own = False
        for act in acts:
            if act["mode"] == "reads":
                read_or_wait(asking(act, plan, layer, step, value.detach(), context), root, context, results)
            elif act["mode"] != "targets":
                one = asking(act, plan, layer, step, value, context)
                refuse_incomplete([one])
                value, own = write(act, plan, context, step, value, bound(one, root, context), own)
                changed = True
        if any(act["gradients"] for act in acts):
            value = follow(plan, acts, envoy, held, value, changed, layer, context)
        elif changed:
            put(envoy, plan["port"], held, value, layer, context)
        if given:
            pass_on(plan, layer, step, value, context)
        aim([act for act in acts if act["mode"] == "targets"], plan, root, context, layer, step, value, results)
        for one in ready(context):
            read_now(one, root, context, results)


def read_or_wait(one: Waiting, root: Module, context: Context, results: Results) -> None:
    """Run a read, or keep its value until what else it is given has come by."""
    if complete(one):
        read_now(one, root, context, results)
        return
    if not one["act"]["gradients"]:
        # What the model does to it in place later must not reach it.
        one["value"] = one["value"].clone()
    context["beside"]["waiting"].append(one)


def read_now(one: Waiting, root: Module, context: Context, results: Results) -> None:
    act, arguments = one["act"], bound(one, root, context)
    keep(results, act, one["layer"], read(act, one["plan"], context, one["step"], one["value"], arguments))


def aim(
    acts: list[Act],
    plan: SitePlan,
    root: Module,
    context: Context,
    layer: Layer,
    step: int,
    value: Shaped[Tensor, "..."],
    results: Results,
) -> None:
    """Run the targets at a site, go back from them, and run the reads that waited for it."""
    if not acts:
        return
    for act in acts:
        arguments = bound(asking(act, plan, layer, step, value, context), root, context)
        index = rows_at(act, plan, context, value.shape, 1)
        part = value if index is None else value[index]
        arguments = narrowed(act, plan, context, arguments, index, None, part.shape)
        refuse_cut(act, plan["site"], value, context)
        add_target(act, act["function"](part, **arguments), part.shape[0], context)
    go_back(context)
    for one in ready(context):
        read_now(one, root, context, results)
    # Every read that was to be given them has been.
    context["beside"]["gradients"].clear()


def acts_here(act: Act, layer: Layer, step: int, columns: list[int] | None) -> bool:
    """Whether an intervention acts at this layer and forward pass (0 is the prompt).

    Under teacher forcing one pass holds all steps, and `choose` takes the columns of those that are due.
    """
    if act["layers"] is not None and layer is not None and layer not in act["layers"]:
        return False
    return columns is not None or due(act, step)


def due(act: Act, step: int) -> bool:
    """Whether an intervention acts at a step."""
    steps = act["steps"]
    if act["mode"] == "rewires" and step > 0:
        return False
    if steps == "all":
        return True
    if steps == "prompt":
        return step == 0
    if steps == "generated":
        return step > 0
    return step in steps


def find(root: Module, path: str) -> Module:
    """The envoy or module at a dotted path. nnsight serves a child named `output` as `E_output`."""
    for name in path.split("."):
        if name.isdigit():
            root = root[int(name)]
        elif name == "output" and hasattr(root, "E_output"):
            root = root.E_output
        else:
            root = getattr(root, name)
    return root


def bound(one: Waiting, root: Module, context: Context) -> dict[str, Any]:
    """The arguments of an intervention at its layer and step."""
    act, plan, layer, value = one["act"], one["plan"], one["layer"], one["value"]
    arguments = {name: beside(constant, value) for name, constant in act["constants"].items()}
    for name, tensor in act["per_layer"].items():
        arguments[name] = beside(tensor if layer is None else tensor[layer], value)
    for name, paths in act["modules"].items():
        arguments[name] = chain([find(root, path) for path in paths])
    for name, field in act["fields"].items():
        arguments[name] = field_at(field, plan, context, one["step"], value, act)
    for name, given in one["given"].items():
        arguments[name] = beside(given, value)
    if act["mode"] == "rewires":
        arguments["source"] = beside(context["sources"][plan["site"], layer], value)
    return arguments


def along(act: Act) -> list[str]:
    """The arguments that lie along the positions of the value, and are narrowed with it."""
    alike = [name for name, wanted in act["values"].items() if wanted["alike"]]
    return [*act["fields"], *alike, *act["gradients"]]


def beside(argument: Any, value: Shaped[Tensor, "..."]) -> Any:
    """A tensor where the value is: layers of one model may lie on several devices."""
    return argument.to(value.device) if isinstance(argument, torch.Tensor) else argument


def chain(modules: list[Module]) -> Callable[[Tensor], Tensor]:
    """The modules one after another; what they make of a tensor comes back to where it is."""

    def apply(tensor):
        made = tensor
        for module in modules:
            made = module(made)
        return made.to(tensor.device)

    return apply


def field_at(
    name: str, plan: SitePlan, context: Context, step: int, value: Shaped[Tensor, "..."], act: Act
) -> Shaped[Tensor, "..."]:
    """A field at one step: as laid out for the prompt, one column of generated tokens afterwards."""
    assert plan["group"] is not None, f"{plan['site']} has no positions"
    fields = context["fields"][plan["group"]]
    if step == 0 or not plan["stepped"]:
        field = fields[name]
    elif name == "weight":
        field = torch.ones(context["rows"], 1, dtype=torch.int64, device=value.device)
    elif name in ("sample", "position"):
        # The prompt's last column is a real one, and its sample that of the row.
        field = fields[name][:, -1:] + (step if name == "position" else 0)
    else:
        field = torch.zeros(context["rows"], 1, fields["kind"].shape[-1], dtype=torch.bool, device=value.device)
        field[..., -1] = True
    field = field.to(value.device)
    if sees_beams(act, plan, step) and context["beams"] > 1:
        field = field.repeat_interleave(context["beams"], dim=0)
    return field


def sees_beams(act: Act, plan: SitePlan, step: int) -> bool:
    """Writes and `all_beams` reads see the LLM's rows beam by beam; other reads see one row per sample."""
    return plan["stepped"] and (act["mode"] != "reads" or act["all_beams"] or step > 0)


def read(
    act: Act, plan: SitePlan, context: Context, step: int, value: Shaped[Tensor, "..."], arguments: dict[str, Any]
) -> Value:
    if context["beams"] > 1 and plan["stepped"] and not sees_beams(act, plan, step):
        value = value[:: context["beams"]]
        for name, wanted in act["values"].items():
            if wanted["alike"] and not wanted["source"]:
                arguments[name] = arguments[name][:: context["beams"]]
    index = rows_at(act, plan, context, value.shape, context["beams"] if sees_beams(act, plan, step) else 1)
    value = value if index is None else value[index]
    chosen = choose(act, plan, context, step, value, index)
    arguments = narrowed(act, plan, context, arguments, index, chosen, value.shape)
    value = value if chosen is None else value[chosen]
    return detached(act["function"](value, **arguments), value)


def write(
    act: Act,
    plan: SitePlan,
    context: Context,
    step: int,
    value: Shaped[Tensor, "*all"],
    arguments: dict[str, Any],
    own: bool = False,
) -> tuple[Shaped[Tensor, "*all"], bool]:
    """The value with what a write makes of its part of it, and whether that is a tensor of ours alone.

    own: whether the value is one, which may then be changed in place.
    """
    source = arguments.pop("source", None)
    index = rows_at(act, plan, context, value.shape, context["beams"] if plan["stepped"] else 1)
    part = value if index is None else value[index]
    chosen = choose(act, plan, context, step, part, index)
    if source is not None:
        source = source_at(act, plan, context, source, part.shape[0])
    given = part if chosen is None else part[chosen]
    arguments = narrowed(act, plan, context, arguments, index, chosen, part.shape)
    if source is not None:
        source = source if chosen is None else source[chosen]
        if source.shape != given.shape:
            raise ValueError(
                f"{act['name']} at {plan['site']}: the source batch has shape {list(source.shape)} there and this "
                f"batch {list(given.shape)}; encode both with prompts and images of equal length."
            )
        new = act["function"](given, source, **arguments)
    else:
        new = act["function"](given, **arguments)
    if not isinstance(new, torch.Tensor) or new.shape != given.shape:
        got = list(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
        raise ValueError(
            f"{act['name']} at {plan['site']} returned {got} for a value of shape {list(given.shape)}; "
            "a write returns a tensor of the same shape."
        )
    new = new.to(value.dtype)
    if index is None and chosen is None:
        return new, False
    # A backward may need the value as it was.
    whole = value if own and not torch.is_grad_enabled() else value.clone()
    if index is None:
        whole[chosen] = new
    elif chosen is None:
        whole[index] = new
    else:
        part = whole[index].clone()
        part[chosen] = new
        whole[index] = part
    return whole, True


def narrowed(
    act: Act,
    plan: SitePlan,
    context: Context,
    arguments: dict[str, Any],
    index: Index | None,
    chosen: Chosen | None,
    shape: Sequence[int],
) -> dict[str, Any]:
    """The arguments, of which those that lie along the value are narrowed as it is: to rows, then to positions.

    index, chosen: of rows and of positions. shape: of the value narrowed to rows. Raises `ValueError` for the value of
    a source batch of another shape.
    """
    made = dict(arguments)
    for name in along(act):
        given, wanted = made[name], act["values"].get(name)
        if wanted and wanted["source"]:
            given = source_at(act, plan, context, given, shape[0])
            if tuple(given.shape[:2]) != tuple(shape[:2]):
                raise ValueError(
                    f"{act['name']} at {plan['site']}: the source batch has {list(given.shape[:2])} positions at "
                    f"{wanted['site']} and this batch {list(shape[:2])}; encode both with prompts and images of equal "
                    "length."
                )
        elif index is not None:
            given = given[index]
        made[name] = given if chosen is None else given[chosen]
    return made


def choose(
    act: Act,
    plan: SitePlan,
    context: Context,
    step: int,
    value: Shaped[Tensor, "row token ..."],
    index: Index | None = None,
) -> Chosen | None:
    """An index of the positions to act on (rows x tokens), or None for all of them.

    index: the rows that `value` is narrowed to already.
    """
    positions, columns = act["positions"], context["columns"]
    partial = columns is not None and plan["stepped"] and act["steps"] != "all"
    if positions is None and not partial:
        return None
    tokens = value.shape[1]
    length = context["prompt_length"] if plan["stepped"] else tokens
    offset = 0 if step == 0 or not plan["stepped"] else length + step - 1
    chosen = list(range(tokens))
    if positions is not None and not isinstance(positions, str):
        chosen = columns_at(positions, offset, tokens, length)
    if partial and columns is not None:
        chosen = [column for column in chosen if due(act, columns[column])]
    if not isinstance(positions, str):
        # The same columns in every row: the value keeps its axes.
        return (slice(None), chosen)
    kind = field_at("kind", plan, context, step, value, act)[..., plan["kinds"].index(positions)]
    kind = kind if index is None else kind[index]
    columns_due = torch.zeros(tokens, dtype=torch.bool, device=value.device)
    columns_due[chosen] = True
    return kind & columns_due


def columns_at(positions: tuple[Any, ...], offset: int, tokens: int, length: int) -> list[int]:
    """Which of the `tokens` columns from `offset` on are meant, in the order asked, counted from `offset`.

    Negative positions count from the prompt's end, `length`.
    """
    if positions[0] != "slice":
        asked = [position + length if position < 0 else position for position in positions]
        return [column - offset for column in asked if offset <= column < offset + tokens]
    here = slice(*positions[1:])
    # The end of a slice moves with the tokens that are generated.
    found = [
        column for column in range(tokens) if offset + column in range(*here.indices(max(length, offset + column + 1)))
    ]
    return found[::-1] if (here.step or 1) < 0 else found


def detached(result: Value, value: Shaped[Tensor, "..."]) -> Value:
    """A result that later in-place edits of the model cannot reach; numbers, flags and text stay as they are."""
    if isinstance(result, dict):
        return {name: detached(part, value) for name, part in result.items()}
    if isinstance(result, (list, tuple)):
        parts = [detached(part, value) for part in result]
        return parts if isinstance(result, list) else tuple(parts)
    if not isinstance(result, torch.Tensor):
        return result
    result = result.detach()
    same = result.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    return result.clone() if same else result


def keep(results: Results, act: Act, layer: Layer, result: Value) -> None:
    """Collect what a read returned, by key and layer; several steps are one list here, folded later."""
    results.setdefault(act["key"], {}).setdefault(layer, []).append(result)
