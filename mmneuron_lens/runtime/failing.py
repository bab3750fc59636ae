"""Failing: what a function of a graph raises while the model runs, without the model's own frames."""

from __future__ import annotations

from mmneuron_lens.runtime.typed import ShapeError, frames, inside
from mmneuron_lens.wire import execute
from mmneuron_lens.wire.types import SitePlan


def briefly(error: Exception, plans: list[SitePlan]) -> Exception | None:
    """The error to raise in place of one that a function of a graph raised; None for any other.

    It stays what it is, its traceback begins in the function, and a note names the intervention, the site and the
    layer. What does not fit a function's annotations, or what a write may not return, is a `ShapeError` in one line.
    """
    serving = [frame for frame in frames(error) if frame.tb_frame.f_code is execute.serve.__code__]
    if not serving:
        return None
    seen = serving[-1].tb_frame.f_locals
    if "act" not in seen:
        return None
    layer = "" if seen["layer"] is None else f", layer {seen['layer']}"
    where = f"in {seen['act']['name']} at {seen['plan']['site']}{layer}"
    if isinstance(error, ShapeError):
        return ShapeError(f"{error} ({where})")
    own = next((found for plan in plans for act in plan["acts"] if (found := inside(error, act["function"]))), None)
    if own is None:
        # A write that returned another shape, or a fault of ours.
        wrote = list(frames(error))[-1].tb_frame.f_code is execute.write.__code__
        return ShapeError(f"{error} ({where})") if wrote and isinstance(error, ValueError) else None
    error.add_note(f"({where})")
    return error.with_traceback(own)
