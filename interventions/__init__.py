"""Typed intervention graphs over named submodules. Knows no checkpoint."""

from interventions.ablating import mean_ablate_neurons, scale_neurons, zero_neurons
from interventions.attention import knock_out_attention
from interventions.attribution import direct_logit_attribution
from interventions.bindings import batch_field, module, per_layer
from interventions.counting import (
    count_active,
    count_active_by_kind,
    count_checked,
    count_not_finite,
    count_positions,
    mean_activation,
    sum_activations,
)
from interventions.decorators import reads, rewires, writes
from interventions.errors import MMNeuronError
from interventions.graph import Graph, Intervention
from interventions.hidden import keep, last_hidden_state, root_mean_square
from interventions.patching import patch_activations
from interventions.saving import load_graph, save_graph
from interventions.sites import GROUP_KINDS, NEURON_SITES, SITES, Site
from interventions.steering import add_vector
from interventions.sweeping import Sweep, sweep
from interventions.unembedding import lens_entropy, logit_lens
from interventions.values import gradient, value_of

__all__ = [
    "GROUP_KINDS",
    "NEURON_SITES",
    "SITES",
    "Graph",
    "Intervention",
    "MMNeuronError",
    "Site",
    "Sweep",
    "add_vector",
    "batch_field",
    "count_active",
    "count_active_by_kind",
    "count_checked",
    "count_not_finite",
    "count_positions",
    "direct_logit_attribution",
    "gradient",
    "keep",
    "knock_out_attention",
    "last_hidden_state",
    "lens_entropy",
    "load_graph",
    "logit_lens",
    "mean_ablate_neurons",
    "mean_activation",
    "module",
    "patch_activations",
    "per_layer",
    "reads",
    "rewires",
    "root_mean_square",
    "save_graph",
    "scale_neurons",
    "sum_activations",
    "sweep",
    "value_of",
    "writes",
    "zero_neurons",
]
