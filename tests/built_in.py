"""Every built-in intervention with whatever it needs on a tiny model: three layers, hidden size 32, 48 neurons."""

from __future__ import annotations

import torch

import interventions
from interventions import Intervention, answer_log_probability, batch_field, gradient, per_layer

NEURONS = torch.arange(3 * 48).reshape(3, 48) % 3 == 0
PAIRS = per_layer(torch.tensor([[0, 5], [1, 7], [40, 47]]))
SAMPLES = per_layer(torch.tensor([[0, 1], [2, 0], [1, 1]]))
OF_ANSWER = gradient(answer_log_probability)
ENCODER = {"encoder": torch.linspace(-1, 1, 32 * 60).reshape(32, 60), "encoder_bias": torch.ones(60)}
ENCODER["decoder_bias"] = torch.ones(32)
OF_FIELDS = ("add_difference", "put_heads", "put_values", "resample_ablate_neurons")


def bound(name: str) -> Intervention:
    """A built-in intervention with whatever it needs."""
    one = getattr(interventions, name)
    given = {
        "zero_neurons": {"neurons": per_layer(NEURONS)},
        "scale_neurons": {"neurons": per_layer(NEURONS), "factor": 0.5},
        "mean_ablate_neurons": {"neurons": per_layer(NEURONS), "mean": per_layer(torch.randn(3, 48))},
        "add_vector": {"vector": torch.ones(32)},
        "direct_logit_attribution": {"direction": torch.linspace(-1, 1, 32)},
        "jacobian_lens": {"jacobian": per_layer(torch.randn(3, 32, 32))},
        "jacobian_entropy": {"jacobian": per_layer(torch.randn(3, 32, 32))},
        "tuned_lens": {"weight": per_layer(torch.randn(3, 32, 32)), "bias": per_layer(torch.randn(3, 32))},
        "neuron_write_in": {"direction": per_layer(torch.randn(3, 48))},
        "amplify_neurons": {"neurons": per_layer(NEURONS), "strength": 2.0},
        "resample_ablate_neurons": {"neurons": per_layer(NEURONS), "bank": per_layer(torch.randn(3, 2, 48))},
        "patch_heads": {"heads": torch.tensor([True, False, False, True])},
        "put_heads": {"heads": torch.tensor([True, False, False, True])},
        "put_values": {"given": batch_field("difference")},
        "top_images": {"images": torch.arange(8)},
        "sample_activations": {"neurons": PAIRS, "samples": SAMPLES, "width": 64},
        "sae_features": ENCODER,
        "count_features": ENCODER,
        "splice_autoencoder": {**ENCODER, "decoder": torch.ones(60, 32)},
        "scale_features": {**ENCODER, "decoder": torch.ones(60, 32), "features": torch.ones(60) > 0, "factor": 0.5},
        "root_mean_square": {"epsilon": 1e-6},
        "logit_difference": {"right": torch.tensor([3, 4, 5]), "wrong": torch.tensor([5, 6, 7])},
        "attribution": {"gradient": OF_ANSWER},
        "integrated_gradients": {"gradient": OF_ANSWER},
        "summed_attribution": {"gradient": OF_ANSWER},
    }
    one = one.bind(**given[name]) if name in given else one
    # Generated tokens have no field of one's own.
    return one.at(steps="prompt") if one.mode == "writes" and name in OF_FIELDS else one


SOURCED = ("patch_activations", "patch_heads", "integrated_gradients")
BUILT_IN = [name for name in interventions.__all__ if isinstance(getattr(interventions, name), Intervention)]
