"""Typed intervention graphs over named submodules. Knows no checkpoint."""

from interventions.ablating import (
    amplify_neurons,
    mean_ablate_neurons,
    resample_ablate_neurons,
    scale_neurons,
    zero_neurons,
)
from interventions.attention import knock_out_attention
from interventions.attribution import attribution, direct_logit_attribution, integrated_gradients, summed_attribution
from interventions.autoencoder_files import Autoencoder, load_autoencoder
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
from interventions.extremes import maximum_activation
from interventions.folds import largest
from interventions.graph import Graph, Intervention
from interventions.hidden import keep, last_hidden_state, root_mean_square
from interventions.moments import moments
from interventions.patching import patch_activations
from interventions.path_patching import add_difference, patch_heads, put_heads, put_values
from interventions.sample_activations import sample_activations
from interventions.saving import load_graph, save_graph
from interventions.sites import GROUP_KINDS, NEURON_SITES, SITES, Site
from interventions.sparse_autoencoder import count_features, sae_features, scale_features, splice_autoencoder
from interventions.steering import add_vector
from interventions.sweeping import Sweep, sweep
from interventions.targets import answer_log_probability, logit_difference
from interventions.top_activations import top_activations
from interventions.top_images import top_images
from interventions.unembedding import jacobian_entropy, jacobian_lens, lens_entropy, logit_lens, tuned_lens
from interventions.values import gradient, value_of
from interventions.write_in import neuron_write_in

__all__ = [
    "GROUP_KINDS",
    "NEURON_SITES",
    "SITES",
    "Autoencoder",
    "Graph",
    "Intervention",
    "MMNeuronError",
    "Site",
    "Sweep",
    "add_difference",
    "add_vector",
    "amplify_neurons",
    "answer_log_probability",
    "attribution",
    "batch_field",
    "count_active",
    "count_active_by_kind",
    "count_checked",
    "count_features",
    "count_not_finite",
    "count_positions",
    "direct_logit_attribution",
    "gradient",
    "integrated_gradients",
    "jacobian_entropy",
    "jacobian_lens",
    "keep",
    "knock_out_attention",
    "largest",
    "last_hidden_state",
    "lens_entropy",
    "load_autoencoder",
    "load_graph",
    "logit_difference",
    "logit_lens",
    "maximum_activation",
    "mean_ablate_neurons",
    "mean_activation",
    "module",
    "moments",
    "neuron_write_in",
    "patch_activations",
    "patch_heads",
    "per_layer",
    "put_heads",
    "put_values",
    "reads",
    "resample_ablate_neurons",
    "rewires",
    "root_mean_square",
    "sae_features",
    "sample_activations",
    "save_graph",
    "scale_features",
    "scale_neurons",
    "splice_autoencoder",
    "sum_activations",
    "summed_attribution",
    "sweep",
    "top_activations",
    "top_images",
    "tuned_lens",
    "value_of",
    "writes",
    "zero_neurons",
]
