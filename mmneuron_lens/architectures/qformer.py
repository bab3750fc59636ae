"""The Q-Former: learned queries that read the image, and beside them the instruction."""

from __future__ import annotations

from typing import Any

from mmneuron_lens.architectures.architecture import Place


def places(config: Any, base: str, instruction: bool) -> dict[str, Place]:
    """Sites of a Q-Former at `base`; `instruction` says whether it reads text beside the queries."""
    layer, layers, sizes = f"{base}.encoder.layer.{{l}}", config.num_hidden_layers, {"neuron": config.intermediate_size}
    found = {
        "qformer.query.act": Place(f"{layer}.intermediate_query.intermediate_act_fn", layers, sizes),
        "qformer.output": Place(base, None, {"hidden": config.hidden_size}, item="last_hidden_state"),
    }
    if instruction:
        found["qformer.text.act"] = Place(
            f"{layer}.intermediate.intermediate_act_fn",
            layers,
            sizes,
            dead=frozenset({layers - 1}),
            why_dead="only the queries leave the Q-Former, so the instruction's last MLP feeds nothing",
        )
    return found
