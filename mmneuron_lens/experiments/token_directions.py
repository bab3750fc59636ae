"""Token directions: what raises a token's logit, in the residual stream and in every neuron of the language model.

Read from the weights. Exact for a bias-free RMS norm before the unembedding and MLPs whose down projection adds to the
residual stream itself; anything else is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interventions import neuron_write_in, per_layer, root_mean_square
from interventions.errors import InvalidType, InvalidValue, OutOfRange
from mmneuron_lens.experiments.whole_rows import refuse_packed_rows
from mmneuron_lens.lens import Lens
from mmneuron_lens.runtime.arguments import refuse_weightless
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.readable_tokens import readable

_AGREEMENT = 1e-3


class FinalNorm(NamedTuple):
    """The RMS norm before the unembedding: x / root_mean_square(x) * weight.

    - weight: float32 `[hidden]`; of a norm that multiplies by 1 + w, such as Gemma's, that sum
    - epsilon: as `root_mean_square` takes it
    """

    weight: Tensor
    epsilon: float


def final_norm(lens: Lens) -> FinalNorm:
    """The final norm of the language model, whose formula is checked on random values.

    Raises `InvalidValue` for a model without weights, and for a norm that is no bias-free RMS norm.
    """
    refuse_weightless(lens.model, cure="")
    norm = _module(lens, "llm.norm")
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is not None and epsilon is not None:
        given = weight.detach().float()
        state = torch.randn(
            len(given), generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
        ).add(0.5)
        with torch.no_grad():
            made = norm(state.to(weight)[None, None])[0, 0].float().cpu()
        scale = (state.pow(2).mean() + epsilon).sqrt()
        for whole in (given.cpu(), 1 + given.cpu()):
            expected = state / scale * whole
            tolerance = _AGREEMENT if weight.dtype == torch.float32 else 0.05
            if (made - expected).norm() <= tolerance * expected.norm():
                return FinalNorm(whole, float(epsilon))
    raise InvalidValue(
        f"The final norm of {lens.name} ({type(norm).__name__}) is no bias-free RMS norm, so contributions do not sum "
        "up to a logit; read the hidden states with logit_lens instead."
    )


def unembedding_direction(lens: Lens, token: str | int, against: str | int | None = None) -> Float[Tensor, " hidden"]:
    """A token's row of the unembedding times the weight of the final norm: what `direct_logit_attribution` is given.

    - token: an id, or text that is one token
    - against: of another token, whose row is taken off; the contributions are then to the difference of two logits

    Returns float32 `[hidden]` on the CPU.

    Raises `InvalidValue` as `final_norm` does, and for a text of several tokens, `OutOfRange` for an id that is not
    there, `InvalidType` for a token of another type.
    """
    norm, rows = final_norm(lens), _linear(lens, "llm.logits", None)
    row = rows[token_id(lens, token)].float()
    if against is not None:
        row = row - rows[token_id(lens, against)].float()
    return row.cpu() * norm.weight


def write_in_weights(lens: Lens, token: str | int, against: str | int | None = None) -> Float[Tensor, "layer neuron"]:
    """<W_down[:, i], u> of every neuron of the language model: what one unit of it adds to a token's logit.

    - token, against: as in `unembedding_direction`

    Before the final norm divides by its scale. For `neuron_write_in.bind(direction=per_layer(...))`.

    Returns float32 `[layer, neuron]` on the CPU.

    Raises as `unembedding_direction` does, and `InvalidValue` for quantized weights and for a decoder with a norm
    behind its MLP (Gemma 2 and 3, GLM-4V), where a neuron's share depends on all the others.
    """
    refuse_norm_behind(lens)
    direction = unembedding_direction(lens, token, against)
    layers = lens.architecture.place("llm.mlp.post").layers or 0
    downs = (_linear(lens, "llm.mlp.post", layer) for layer in range(layers))
    return torch.stack([(direction.to(down.device) @ down.float()).cpu() for down in downs])


def write_in(
    lens: Lens, batch: Batch, token: str | int, against: str | int | None = None, position: int = -1
) -> Float[Tensor, "layer row neuron"]:
    """The contribution of every neuron of the language model to a token's logit at one position, in logits.

    - batch: of `lens.encode`
    - token, against: as in `unembedding_direction`
    - position: a column of the padded batch; -1 is the last of every prompt

    c_i = z_i <W_down[:, i], u> / root_mean_square(last residual). Raises as `write_in_weights` does, and `InvalidValue`
    for a packed batch.

    Returns float32 `[layer, row, neuron]` on the CPU.
    """
    refuse_packed_rows(batch)
    weights = per_layer(write_in_weights(lens, token, against))
    scale = root_mean_square.bind(epsilon=final_norm(lens).epsilon).at("llm.residual", layers=-1, positions=position)
    out = lens.run(neuron_write_in.bind(direction=weights).at(positions=position) | scale, batch)
    added = out["neuron_write_in", "llm.mlp.post"][0].float()
    return (added / out["root_mean_square", "llm.residual"][0][0][..., None])[:, :, 0].cpu()


def token_id(lens: Lens, token: str | int) -> int:
    """The id of a token, with or without weights.

    Raises `InvalidValue` for a text of several, `OutOfRange` for an id that is not there.
    """
    rows = int(_module(lens, "llm.logits").out_features)
    if isinstance(token, str):
        ids = lens.processor.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            pieces = [readable(lens.processor.tokenizer, one, strip=False) for one in ids]
            raise InvalidValue(f"{token!r} is {len(ids)} tokens, {pieces}; give a text of one token, or an id.")
        return int(ids[0])
    if not isinstance(token, int) or isinstance(token, bool):
        raise InvalidType(f"A token is a text of one token, or an id, not {token!r:.80}.")
    if not 0 <= token < rows:
        raise OutOfRange(f"There is no token {token}; {lens.name} has 0 to {rows - 1}.")
    return token


def refuse_norm_behind(lens: Lens) -> None:
    """Raise `InvalidValue` for a decoder whose MLP has a norm between its down projection and the residual stream."""
    behind = lens.architecture.place("llm.mlp.out").path
    if not lens.architecture.place("llm.mlp.post").path.startswith(behind):
        raise InvalidValue(
            f"{lens.name} has a norm behind its MLP ({behind.rpartition('.')[2]}), so what a neuron adds depends on "
            "all others of its layer; take direct_logit_attribution of the whole MLP, or a gradient."
        )


def down_projection(lens: Lens, layer: int) -> Float[Tensor, "hidden neuron"]:
    """W_down of a layer of the language model, whose columns are what its neurons write.

    Raises `InvalidValue` for a model without weights or with quantized ones, `OutOfRange` for a layer.
    """
    layers = lens.architecture.place("llm.mlp.post").layers or 0
    if not -layers <= layer < layers:
        raise OutOfRange(f"There is no layer {layer}; the language model of {lens.name} has 0 to {layers - 1}.")
    return _linear(lens, "llm.mlp.post", layer % layers)


def unembedding(lens: Lens) -> Float[Tensor, "token hidden"]:
    """W_U. Raises `InvalidValue` for a model without weights or with quantized ones."""
    return _linear(lens, "llm.logits", None)


def _linear(lens: Lens, site: str, layer: int | None) -> Tensor:
    refuse_weightless(lens.model, cure="")
    found = _module(lens, site, layer)
    if lens.model.quantization is not None or not isinstance(found, torch.nn.Linear):
        how = lens.model.quantization or type(found).__name__
        raise InvalidValue(
            f"{site} of {lens.name} holds no plain matrix of weights ({how}); load it in float32, bfloat16 or float16."
        )
    return found.weight.detach()


def _module(lens: Lens, site: str, layer: int | None = None) -> Any:
    return lens.module.get_submodule(dict(lens.architecture.place(site).paths())[layer])
