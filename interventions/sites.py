"""Sites: the named, typed places in the forward pass of a vision-language model.

A site has the same name in every architecture. Its axes are written as a jaxtyping dimension string;
its `group` says which of the batch's fields (`weight`, `kind`) lie along its leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from interventions.errors import UnknownName


@dataclass(frozen=True)
class Site:
    """One place in the forward pass.

    - name: the same in every architecture
    - axes: of its value, layers aside, as a jaxtyping dimension string
    - per_layer: whether there is one in every layer
    - group: the field group whose `weight` and `kind` have this site's leading axes, or None where a value has no
      positions (a pooled vector, an attention map)
    - says: what it is, in a few words
    """

    name: str
    axes: str
    per_layer: bool
    group: str | None
    says: str


GROUP_KINDS: dict[str, tuple[str, ...]] = {
    "vision": ("cls", "patch"),
    "projector": ("patch",),
    "qformer.query": ("query",),
    "qformer.text": ("text",),
    "llm": ("image", "text", "generated"),
}
"""The kinds of position in each group; the `kind` field is one-hot along a last axis in this order."""

_HEADS = "one value per head, before rotary position embedding"

_IN_FORWARD_ORDER = (
    Site("vision.attention.q", "tile patch head dimension", True, "vision", f"queries, {_HEADS}"),
    Site("vision.attention.k", "tile patch head dimension", True, "vision", f"keys, {_HEADS}"),
    Site("vision.attention.v", "tile patch head dimension", True, "vision", "values, one per head"),
    Site("vision.attention.pattern", "tile head query key", True, None, "attention weights (eager attention only)"),
    Site("vision.attention.z", "tile patch head dimension", True, "vision", "heads' outputs before they are mixed"),
    Site("vision.attention.out", "tile patch hidden", True, "vision", "what attention adds to the residual stream"),
    Site("vision.mlp.act", "tile patch neuron", True, "vision", "neurons: after the activation function"),
    Site("vision.mlp.post", "tile patch neuron", True, "vision", "neurons as the down projection is given them"),
    Site("vision.residual", "tile patch hidden", True, "vision", "the residual stream after the layer"),
    Site("vision.pooled", "tile hidden", False, None, "the pooled image embedding (Figure 2)"),
    Site("qformer.query.act", "batch query neuron", True, "qformer.query", "neurons of the query branch"),
    Site("qformer.text.act", "batch word neuron", True, "qformer.text", "neurons of the instruction branch"),
    Site("qformer.output", "batch token hidden", False, None, "queries, then the instruction's tokens"),
    Site(
        "projector.deep.act", "tile patch neuron", True, "projector", "neurons of projectors inside the tower, by depth"
    ),
    Site("projector.act", "tile patch neuron", False, "projector", "neurons of the MLP projector"),
    Site("projector.output", "tile patch hidden", False, "projector", "image features in the word embedding space"),
    Site("llm.embedding", "batch token hidden", False, "llm", "embeddings with the image features in place: layer 0"),
    Site("llm.attention.mask", "batch query key", True, None, "True where a position may attend to a key"),
    Site("llm.attention.q", "batch token head dimension", True, "llm", f"queries, {_HEADS}"),
    Site("llm.attention.k", "batch token head dimension", True, "llm", f"keys, {_HEADS}"),
    Site("llm.attention.v", "batch token head dimension", True, "llm", "values, one per head"),
    Site("llm.attention.pattern", "batch head query key", True, None, "attention weights (eager attention only)"),
    Site("llm.attention.z", "batch token head dimension", True, "llm", "heads' outputs before they are mixed"),
    Site("llm.attention.out", "batch token hidden", True, "llm", "what attention adds to the residual stream"),
    Site("llm.mlp.act", "batch token neuron", True, "llm", "neurons: act_fn(gate_proj(x)), before times up_proj"),
    Site("llm.mlp.post", "batch token neuron", True, "llm", "neurons as the down projection is given them"),
    Site("llm.mlp.out", "batch token hidden", True, "llm", "what the MLP adds to the residual stream"),
    Site("llm.residual", "batch token hidden", True, "llm", "the residual stream after the layer"),
    Site("llm.norm", "batch token hidden", False, "llm", "the last hidden state, after the final norm"),
    Site("llm.unembed", "batch token hidden", False, "llm", "what the unembedding is given"),
    Site("llm.logits", "batch token vocabulary", False, "llm", "what the unembedding returns"),
)

SITES: dict[str, Site] = {site.name: site for site in _IN_FORWARD_ORDER}
"""Every standard site by name, in forward order (within a layer, for sites that have layers)."""

NEURON_SITES = tuple(name for name in SITES if name.endswith(".act"))
"""The sites whose last axis is the paper's neurons (section 3.1)."""


def site_order(name: str) -> int:
    """Position of a site in the forward pass; sites this package does not know come last."""
    names = list(SITES)
    return names.index(name) if name in SITES else len(names)


def is_glob(pattern: str) -> bool:
    """Whether a pattern may mean several sites."""
    return any(character in pattern for character in "*?[")


def matching(pattern: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a site name or glob means, in forward order.

    Raises `UnknownName` naming the choices when nothing matches.
    """
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise UnknownName(unknown("site", pattern, names))
    return tuple(sorted(found, key=site_order))


def named_sites(patterns: tuple[str, ...], available: tuple[str, ...]) -> tuple[str, ...]:
    """The sites among `available` (one architecture's) that names and globs mean, in their order, each once.

    Raises `UnknownName` naming the choices for a name that is not available; globs may mean none.
    """
    found: set[str] = set()
    for pattern in patterns:
        found.update(
            [name for name in matching(pattern, tuple(SITES)) if name in available]
            if is_glob(pattern)
            else matching(pattern, available)
        )
    return tuple(name for name in available if name in found)


def unknown(what: str, value: object, choices: tuple[str, ...] | list[str]) -> str:
    """One line: the unknown thing, the nearest choice, all choices."""
    near = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {what} {value!r}.{hint} Choices: {', '.join(choices) or 'none'}."
