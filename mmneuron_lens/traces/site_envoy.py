"""Site envoys: nnsight's envoy of a site, with the value that a graph sees there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from interventions.errors import InvalidValue
from mmneuron_lens.model import Model
from mmneuron_lens.runtime.shipping import bare
from mmneuron_lens.traces.site_values import Spot, read_value, worker_at, write_value
from mmneuron_lens.wire.execute import find


class SiteEnvoy:
    """nnsight's envoy of the module that holds a site, with the site's own `value`; what it has not is the envoy's.

    `value` is the tensor that a graph reads at this site and layer, in the same axes. It can be assigned and edited in
    place, and has a gradient inside `with loss.backward():`. In a generation it is that of the step under way, with a
    row per beam.
    """

    __slots__ = ("_envoy", "_spot")

    def __init__(self, envoy: Any, spot: Spot) -> None:
        object.__setattr__(self, "_envoy", envoy)
        object.__setattr__(self, "_spot", spot)

    @property
    def value(self) -> Shaped[Tensor, "..."]:
        """The site's value in the pass under way.

        Raises `InvalidValue` outside a trace, for a site that the model already ran past or that this batch does not
        reach, and for an in-place edit of a site that is read only.
        """
        return self._asked(lambda: read_value(self._envoy, self._spot))

    @value.setter
    def value(self, new: Shaped[Tensor, "..."]) -> None:
        self._asked(lambda: write_value(self._envoy, self._spot, new))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        from nnsight.intervention.interleaver import OutOfOrderError

        try:
            return ask()
        except OutOfOrderError:
            if worker_at(self._envoy, self._spot)[0].iteration != 0:
                # A loop over steps that ends before its last one.
                raise
            raise InvalidValue(
                f"{self._spot['shown']}.value: the model already ran past it, or this batch does not reach it; "
                "ask for sites in forward order, or each in a `with tracer.invoke():` of its own."
            ) from None
        except ValueError as error:
            raise InvalidValue(str(error)) from error.__cause__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envoy, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value":
            object.__setattr__(self, name, value)
        else:
            setattr(self._envoy, name, value)

    def __call__(self, *values: Any, **settings: Any) -> Any:
        return self._envoy(*values, **settings)

    def __getitem__(self, key: Any) -> Any:
        return self._envoy[key]

    def __len__(self) -> int:
        return len(self._envoy)

    def __bool__(self) -> bool:
        return bool(self._envoy)

    def __repr__(self) -> str:
        return f"{self._spot['shown']}: {self._envoy!r}"

    def __reduce__(self) -> Any:
        # A server has no class of this package.
        return bare(travelled), (self._envoy, self._spot)


def envoys(model: Model, site: str) -> Any:
    """The envoys of a site by layer, or one envoy where the site has no layers."""
    found = [SiteEnvoy(find(model.nnsight, path), spot) for path, spot in spots_of(model, site)]
    return found if model.architecture.place(site).layers is not None else found[0]


def spots_of(model: Model, site: str) -> list[tuple[str, Spot]]:
    """Module path and spot of a site at each of its layers. Raises `UnknownName` for a site that is not there."""
    place = model.architecture.place(site)
    return [
        (
            path,
            {
                "site": site,
                "layer": layer,
                "shown": f'lens["{site}"]' if layer is None else f'lens["{site}"][{layer}]',
                "port": place.port,
                "fixed": place.fixed,
                "windows": dict(model.architecture.facts["windows"]),
            },
        )
        for layer, path in place.paths()
    ]


def travelled(envoy, spot):
    """What a site envoy becomes on a server: the same, by functions that were sent along."""

    class Travelled:
        value = property(
            lambda self: read_value(envoy, spot),
            lambda self, new: write_value(envoy, spot, new),
        )

        def __getattr__(self, name):
            return getattr(envoy, name)

        def __setattr__(self, name, new):
            if name == "value":
                write_value(envoy, spot, new)
            else:
                setattr(envoy, name, new)

        def __call__(self, *values, **settings):
            return envoy(*values, **settings)

        def __getitem__(self, key):
            return envoy[key]

    return Travelled()


def travelled_lens(root, table):
    """What a lens becomes on a server: the envoys of its sites by name."""

    class TravelledLens:
        def __getitem__(self, site):
            if site not in table:
                raise KeyError(f"No site {site!r}; there are {', '.join(table)}.")
            found = [travelled(find(root, path), spot) for path, spot in table[site]]
            return found[0] if table[site][0][1]["layer"] is None else found

        def __getattr__(self, name):
            raise AttributeError(f"A lens that is sent has its sites alone, lens[site]; lens.{name} works here only.")

    return TravelledLens()


def reduced(model: Model) -> Any:
    """A lens as pickle takes it: its sites, for a trace that runs where this package is not."""
    return bare(travelled_lens), (model.nnsight, {site: spots_of(model, site) for site in model.sites})
