"""Tracing: nnsight's own contexts on a batch."""

from __future__ import annotations

from typing import Any, cast

from mmneuron_lens.model import Model
from mmneuron_lens.runtime.arguments import batch_of, refuse_strange
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.host import checked_remote


def trace(model: Model, batch: Batch | None, settings: dict[str, Any]) -> Any:
    """nnsight's trace on a batch."""
    tracer = model.nnsight.trace(**_given(model, batch), **_there(model, settings))
    return tracer if settings.get("remote") else _knowing(batch, tracer)


def trace_generation(model: Model, batch: Batch | None, settings: dict[str, Any]) -> Any:
    """nnsight's generation on a batch."""
    given = _given(model, batch)
    given.pop("position_ids", None)
    # nnsight looks for the `with` block one call above `generate`; name the function to trace it from here.
    function = cast(Any, type(model.nnsight)).generate.__wrapped__.__get__(model.nnsight)
    tracer = model.nnsight.trace(fn=function, **given, **_there(model, settings))
    return tracer if settings.get("remote") else _knowing(batch, tracer)


def scan(model: Model, batch: Batch, settings: dict[str, Any]) -> Any:
    """nnsight's scan of a batch."""
    given = _given(model, batch)
    if "image_sizes" in given:
        # Anyres tiling computes with these numbers, which neither fake tensors nor the meta device hold.
        given["image_sizes"] = cast(Any, batch.inputs["image_sizes"]).tolist()
    return model.nnsight.scan(**given, **settings)


def session(model: Model, settings: dict[str, Any]) -> Any:
    """nnsight's session."""
    return model.nnsight.session(**_there(model, settings))


def _knowing(batch: Batch | None, tracer: Any) -> Any:
    """A tracer whose interleaver knows the batch under way while it runs, for `lens.apply`."""
    if batch is None or not hasattr(tracer, "envoy"):
        return tracer
    interleaver, execute = tracer.envoy.interleaver, tracer.execute

    def executing(code: Any) -> None:
        # Once: a tracer that holds itself would keep the batch.
        del tracer.execute
        interleaver.given_batch = batch
        try:
            execute(code)
        finally:
            interleaver.given_batch = None

    tracer.execute = executing
    return tracer


def _there(model: Model, settings: dict[str, Any]) -> dict[str, Any]:
    """nnsight's settings with `remote` as a backend that reads plain tensors and values alone."""
    remote = checked_remote(settings.get("remote"))
    if not remote or remote == "local":
        return settings
    from mmneuron_lens.runtime.remote import ready_backend

    rest = {name: value for name, value in settings.items() if name != "remote"}
    return {**rest, "backend": ready_backend(model, remote)}


def _given(model: Model, batch: Batch | None) -> dict[str, Any]:
    if batch is None:
        return {}
    refuse_strange(model, batch_of(batch))
    # Without weights here the inputs are a server's, and must keep their numbers.
    return dict((batch if model.device.type == "meta" else batch.to(model.device)).inputs)
