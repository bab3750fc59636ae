"""A graph: interventions that share one forward pass, in the order they were joined."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from interventions.errors import InvalidType, InvalidValue
from interventions.intervention import Intervention, named_sites
from interventions.sites import SITES, site_order


@dataclass(frozen=True)
class Graph:
    """Interventions joined with `|`. Data only: it can be printed, compared and saved before anything runs.

    At one site they act left to right; between sites the model's own order decides. `|` is associative and
    `Graph()` is its identity.
    """

    interventions: tuple[Intervention, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(self.interventions))
        taken: dict[tuple[str, str], Intervention] = {}
        for intervention in self.interventions:
            if not isinstance(intervention, Intervention):
                raise InvalidType(
                    f"A graph is made of interventions, not {type(intervention).__name__}: "
                    "decorate the function with @reads, @writes or @rewires."
                )
            if intervention.mode != "reads":
                continue
            for site in named_sites(intervention.sites, tuple(SITES)):
                if (intervention.name, site) in taken:
                    raise InvalidValue(
                        f"Two results would come back as out[{intervention.name!r}, {site!r}]. "
                        f'Rename one: {intervention.name}.named("...").'
                    )
                taken[intervention.name, site] = intervention

    def __or__(self, other: Intervention | Graph) -> Graph:
        if isinstance(other, Intervention):
            other = Graph((other,))
        if not isinstance(other, Graph):
            return NotImplemented
        return Graph(self.interventions + other.interventions)

    def __len__(self) -> int:
        return len(self.interventions)

    def __iter__(self):
        return iter(self.interventions)

    def check_bound(self) -> None:
        """Raise `TypeError` for the first intervention with an argument that nothing is bound to."""
        for intervention in self.interventions:
            if intervention.missing:
                names = ", ".join(f"{name}=..." for name in intervention.missing)
                raise InvalidType(f"{intervention.name} is not complete: write {intervention.name}.bind({names}).")

    def by_site(self) -> dict[str, list[Intervention]]:
        """What acts at each standard site, sites in forward order, interventions left to right."""
        acting: dict[str, list[Intervention]] = {}
        for intervention in self.interventions:
            for site in named_sites(intervention.sites, tuple(SITES)):
                acting.setdefault(site, []).append(intervention)
        return dict(sorted(acting.items(), key=lambda item: site_order(item[0])))

    def __repr__(self) -> str:
        if not self.interventions:
            return "Graph() — runs the model and changes nothing"
        lines = ["Graph"]
        for site, interventions in self.by_site().items():
            layers = "every layer" if SITES[site].per_layer else "once"
            lines.append(f"  {site} [{SITES[site].axes}], {layers}")
            lines += [f"    {_line(intervention)}" for intervention in interventions]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(site) if index == 0 else ''}</td><td>{escape(_line(intervention))}</td></tr>"
            for site, interventions in self.by_site().items()
            for index, intervention in enumerate(interventions)
        )
        return f"<table><tr><th>site</th><th>acts, in this order</th></tr>{rows}</table>"


def _line(intervention: Intervention) -> str:
    text = repr(intervention)
    site_list = f" at {', '.join(intervention.sites)}"
    return text.replace(site_list, "", 1)
