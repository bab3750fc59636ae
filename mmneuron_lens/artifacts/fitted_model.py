"""Fitted model: which model a lens was fitted on, and that it is applied to no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from interventions.errors import InvalidValue, UnknownName
from interventions.sites import unknown

STREAM = ("llm.embedding", "llm.residual")
"""The sites of a fitted lens: layer 0, and the layers after it."""


class Fingerprinted(Protocol):
    """A model that tells its name, "model id", and the hash of all that decides its numbers, "fingerprint"."""

    def facts(self) -> Mapping[str, object]: ...


class HasModel(Protocol):
    """A `Lens`, as far as it is needed here."""

    @property
    def model(self) -> Fingerprinted: ...


def refuse_other_model(what: str, name: str, fingerprint: str, lens: HasModel) -> None:
    """Raises `InvalidValue` for a lens on another model than the one of this name and fingerprint."""
    facts = lens.model.facts()
    if facts["fingerprint"] != fingerprint:
        raise InvalidValue(
            f"This {what} was fitted on {name} (fingerprint {fingerprint[:12]}), and the model is {facts['model id']} "
            f"({str(facts['fingerprint'])[:12]}): other weights, dtype or processor, or weights that cannot be seen. "
            "Fit one on this model, or load the model as it was; for one on a server, with Lens(name, remote=...)."
        )


def asked_sites(sites: Sequence[str] | str) -> tuple[str, ...]:
    """Sites of `STREAM` in its order. Raises `UnknownName` for another, `InvalidValue` for none."""
    asked = (sites,) if isinstance(sites, str) else tuple(sites)
    for site in asked:
        if site not in STREAM:
            raise UnknownName(f"A fitted lens reads the residual stream. {unknown('site', site, STREAM)}")
    if not asked:
        raise InvalidValue(f"sites names none; choose from {', '.join(STREAM)}.")
    return tuple(site for site in STREAM if site in asked)
