"""The residual stream of a batch, from the embedding to the last layer, by hooks on the model's own modules."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interventions.errors import InvalidType, InvalidValue, UnknownName
from interventions.sites import GROUP_KINDS, unknown
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.arguments import refuse_strange, refuse_weightless
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.wire.execute import chain, find
from mmneuron_lens.wire.forward import make_context
from mmneuron_lens.wire.ports import put, take
from mmneuron_lens.wire.types import Context


def residual_stream(lens: Lens, batch: Batch, *, gradients: bool = False) -> list[Float[Tensor, "row token hidden"]]:
    """The embedding, and what each layer leaves, on the devices where the layers are.

    - gradients: keep the graph from the embedding on, for `torch.autograd.grad`; weights take no part in it

    Raises `InvalidValue` for a lens without weights, and a batch of another model or of packed rows.
    """
    refuse_weightless(lens.model, cure="")
    refuse_strange(lens.model, batch)
    if batch.sharing or any(isinstance(text, tuple) for text in batch.given[1]):
        raise InvalidValue("A lens is fitted on rows of one prompt each; make the batch with lens.encode.")
    batch = batch.to(lens.device)
    context, kept = make_context(batch.plain(), 1, {}, None, []), list[Tensor]()
    place = lens.architecture.place
    with ExitStack() as stack:
        if gradients:
            stack.enter_context(frozen(lens.module))
        first = lens.module.get_submodule(place("llm.embedding").path)
        stack.callback(_hook_embedding(lens, first, context, kept, gradients).remove)
        for layer, path in place("llm.residual").paths():
            keeping = _keeping(lens, layer, context, kept)
            stack.callback(lens.module.get_submodule(path).register_forward_hook(keeping).remove)
        with torch.set_grad_enabled(gradients):
            lens.module(**batch.inputs, use_cache=False, logits_to_keep=1)
    return kept


def unembedding(lens: Lens) -> Callable[[Tensor], Tensor]:
    """Hidden states to logits: the final norm and the unembedding, as lenses apply them."""
    paths = [lens.architecture.place(site).path for site in ("llm.norm", "llm.unembed")]
    return chain([find(lens.module, path) for path in paths])


def positions_counted(batch: Batch, kinds: Sequence[str] | None, skip: int = 0) -> Bool[Tensor, "row token"]:
    """Where a batch has real positions of these kinds, those that come first in each prompt left out.

    - kinds: "image", "text"; all of them if None
    - skip: how many real positions of each prompt do not count

    Raises `UnknownName` for a kind that is none, or that no prompt has; `InvalidValue` for a prompt that ends before.
    """
    fields = batch.fields["llm"]
    real = fields["weight"] > 0
    left = real & (real.cumsum(1) > skip)
    short = (~left.any(1)).nonzero()
    if len(short):
        row = int(short[0])
        raise InvalidValue(
            f"skip={skip} leaves nothing of row {row}, a prompt of {int(real[row].sum())} positions; give a smaller "
            "skip, or leave the prompt out."
        )
    if kinds is None:
        return left
    names = GROUP_KINDS["llm"]
    if isinstance(kinds, str) or not kinds:
        raise InvalidType(f"kinds is a list of kinds of position, or None for all of them, not {kinds!r}.")
    for kind in kinds:
        if kind not in names:
            raise UnknownName(unknown("kind of position", str(kind), names))
    chosen = left & fields["kind"][..., [names.index(kind) for kind in kinds]].any(-1)
    if not bool(chosen.any()):
        raise UnknownName(f"no prompt of a batch has {' or '.join(kinds)} positions behind the first {skip}.")
    return chosen


def refuse_below(least: int, **numbers: int | None) -> None:
    """Raises `InvalidType` for what is no whole number, `InvalidValue` for one below `least`; None passes."""
    for name, number in numbers.items():
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidType(f"{name} is a whole number, not {number!r}.")
        if number < least:
            raise InvalidValue(f"{name} is {number}; it is at least {least}.")


@contextmanager
def frozen(module: torch.nn.Module) -> Generator[None]:
    """No weight asks for a gradient meanwhile."""
    asking = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def _hook_embedding(lens: Lens, module: torch.nn.Module, context: Context, kept: list[Tensor], gradients: bool) -> Any:
    port = lens.architecture.place("llm.embedding").port

    def enter(value: Tensor) -> Tensor:
        root = value.detach().requires_grad_() if gradients else value
        kept.append(root)
        return root

    def before(_: Any, positional: Any, keywords: Any) -> Any:
        seen = SimpleNamespace(inputs=(positional, keywords))
        held, value = take(seen, port, None, context)
        put(seen, port, held, enter(value), None, context)
        return seen.inputs

    def after(_: Any, __: Any, output: Any) -> Any:
        seen = SimpleNamespace(output=output)
        held, value = take(seen, port, None, context)
        put(seen, port, held, enter(value), None, context)
        return seen.output

    if port["at"] == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)


def _keeping(lens: Lens, layer: int | None, context: Context, kept: list[Tensor]) -> Callable[..., None]:
    port = lens.architecture.place("llm.residual").port

    def keep(_: Any, __: Any, output: Any) -> None:
        kept.append(take(SimpleNamespace(output=output), port, layer, context)[1])

    return keep
