"""Attention: cutting positions off from one another."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from interventions.decorators import writes
from interventions.errors import InvalidValue, OutOfRange


@writes("llm.attention.mask")
def knock_out_attention(
    allowed: Bool[Tensor, "batch query key"],
    queries: Bool[Tensor, "row prompt"],
    keys: Bool[Tensor, "row prompt"],
    generated: bool = False,
) -> Bool[Tensor, "batch query key"]:
    """Forbid the marked queries to attend to the marked keys, in all heads. A position always sees itself.

    - allowed: bool `[row, query, key]`, whether a query may attend to a key; a row per beam
    - queries: bool `[row, prompt]`, positions of the prompt; a row per sample, whose beams are treated alike
    - keys: bool `[row, prompt]`, likewise
    - generated: whether generated tokens are cut off from the marked keys too

    Needs eager or sdpa attention.
    """
    beams = allowed.shape[0] // queries.shape[0]
    length, new = allowed.shape[-1], allowed.shape[-1] - keys.shape[-1]
    # Along the whole sequence so far; the queries of this step are its last columns.
    keys = pad(keys, (0, new)).repeat_interleave(beams, dim=0)
    queries = pad(queries, (0, new), value=generated)[:, length - allowed.shape[-2] :].repeat_interleave(beams, dim=0)
    cut = queries[:, :, None] & keys[:, None, :]
    offset = length - allowed.shape[-2]
    itself = cut.new_ones(cut.shape[1:]).tril(offset).triu(offset)
    return allowed & ~(cut & ~itself)


def layers_around(layer: int, window: int, layers: int) -> range:
    """The layers of a window around one: as many below as above, of an even window one more below.

    - layer: negative ones from the end
    - window: how many layers
    - layers: how many the model has

    At the ends of the stack the window is clipped, so that fewer come back: their number says it.

    Raises:

    - `OutOfRange`: for a layer that is not there.
    - `InvalidValue`: for a window of no layer.
    """
    if not -layers <= layer < layers:
        raise OutOfRange(f"There is no layer {layer}; there are 0 to {layers - 1}.")
    if window < 1:
        raise InvalidValue(f"window is {window}; a window has at least 1 layer.")
    start = layer % layers - window // 2
    return range(max(start, 0), min(start + window, layers))
