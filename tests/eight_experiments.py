"""Eight experiments as a user writes them, at most ten lines each; held to plain hooks, and to a server.

A target, as in `logit_difference.bind(right=..., wrong=...)`, is bound to the rows of the batches it is read on.
"""

from __future__ import annotations

import torch

from interventions import (
    add_vector,
    gradient,
    integrated_gradients,
    keep,
    largest,
    logit_lens,
    patch_activations,
    sweep,
    top_activations,
)
from mmneuron_lens.experiments.knock_out import knocked_out
from mmneuron_lens.experiments.probes import fit_probes


def encoded(lens, samples):
    """Their pictures and questions as one batch."""
    return lens.encode([one.images for one in samples], [one.question for one in samples])


def patch_heat_map(lens, batch, others, layer, row=0):
    """The neuron that is most active on these pictures against others, and its activation over one of them."""
    post, other = (one[0] for one in lens.run(keep.at("llm.mlp.post", layers=layer), [batch, others])["keep"])
    image = batch.positions("image", row)
    here, there = post[:, image].amax(1), other[:, image].amax(1)
    neuron = int((here.mean(0) - there.mean(0)).argmax())
    return neuron, batch.patch_map(post[row, :, neuron], row)


def steering(lens, batch, towards, target, scales):
    """A target by layer and by how often the difference of two means is added: [layer, scale, row]."""
    states = lens.run(keep.at("llm.residual", positions=-1), [towards, batch])["keep"]
    vectors = states[0].mean((1, 2)) - states[1].mean((1, 2))
    doses = [
        add_vector.bind(vector=vector, scale=scale).at(layers=layer) | target
        for layer, vector in enumerate(vectors)
        for scale in scales
    ]
    found = torch.stack([one[target.name][0] for one in lens.run(doses, batch)])
    return found.unflatten(0, (-1, len(scales)))


def attention_knock_out(lens, batch, target, layers, queries, keys, window):
    """What a target loses when some positions no longer see others in a window of layers: [layer, row]."""
    cuts = [knocked_out(lens, batch, queries=queries, keys=keys, around=layer, window=window) for layer in layers]
    plain, *cut = (one[target.name][0] for one in lens.run([target, *(one | target for one in cuts)], batch))
    return torch.stack(cut) - plain


def patching(lens, batch, source, target, layers, positions):
    """Which share of the way from a batch to its source one patched state goes: [layer, position]."""
    heat = sweep(patch_activations, layers=layers, positions=positions) | target
    found = heat.grid(lens.run(heat, batch, sources=source), target.name).mean(-1)
    corrupted, clean = (one.mean() for one in lens.run(target, [batch, source])[target.name])
    return (found - corrupted) / (clean - corrupted)


def attribution_to_positions(lens, batch, baseline, target, steps):
    """Integrated gradients [row, token], and what each row should sum up to [row]."""
    read = integrated_gradients.bind(gradient=gradient(target)).at("llm.embedding")
    given = lens.run_between(read, batch, baseline, steps=steps)["integrated_gradients"][0].sum(-1)
    here, there = lens.run(target, [batch, baseline])[target.name]
    return given, here - there


def top_images(lens, samples, layer, neuron, k, rows=8):
    """The samples whose pictures make a neuron most active, and its activation over each picture."""
    batches = [encoded(lens, samples[start : start + rows]) for start in range(0, len(samples), rows)]
    top = top_activations.folded(largest(k, by="activation", distinct="sample")).at(layers=layer, positions="image")
    best = lens.run(top, batches)["top_activations"]["sample"][0, neuron].tolist()
    shown = encoded(lens, [samples[number] for number in best])
    act = lens.run(keep.at("llm.mlp.act", layers=layer), shown)["keep"][0][0, ..., neuron]
    return best, [shown.patch_map(values, row) for row, values in enumerate(act)]


def probe(lens, batches, labels, position):
    """The accuracy of a linear probe of every layer, and of one of shuffled labels, per cent: [layer] each."""
    found = fit_probes(lens, batches, labels, position=position)
    return 100 * found.accuracy, 100 * found.shuffled.mean(1)


def tuned_beside_logit(lens, fitted, batch, position):
    """The most likely word at every layer, the embedding first, by the logit lens and by a tuned one: [layer, row]."""
    stream = ["llm.embedding", "llm.residual"]
    lenses = [one.at(stream, positions=position) for one in (logit_lens, fitted.bound(lens))]
    out = lens.run(lenses[0] | lenses[1], batch)
    by_lens = [[out[one.name, site][0]["tokens"] for site in stream] for one in lenses]
    return [torch.cat([first[None], others])[:, :, 0, 0] for first, others in by_lens]


EXPERIMENTS = (
    patch_heat_map,
    steering,
    attention_knock_out,
    patching,
    attribution_to_positions,
    top_images,
    probe,
    tuned_beside_logit,
)
