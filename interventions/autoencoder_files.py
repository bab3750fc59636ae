"""Sparse autoencoders on disk: safetensors files with W_enc, b_enc, W_dec, b_dec, and some with a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from interventions.errors import FileMissing, InvalidValue

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Tensors that a file must have, as SAELens names and lays them out."""


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The weights of a sparse autoencoder.

    - encoder: `[hidden, feature]`
    - encoder_bias: `[feature]`
    - decoder: `[feature, hidden]`
    - decoder_bias: `[hidden]`
    - threshold: `[feature]`, of a JumpReLU; None without one
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    threshold: Tensor | None = None

    def bindings(self, part: Literal["encoder", "whole"] = "whole") -> dict[str, Tensor | None]:
        """Arguments by name, to `bind`.

        - part: "encoder" for `sae_features` and `count_features`, "whole" for those that write.
        """
        found: dict[str, Tensor | None] = {"encoder": self.encoder, "encoder_bias": self.encoder_bias}
        found |= {"decoder_bias": self.decoder_bias, "threshold": self.threshold}
        return found if part == "encoder" else {**found, "decoder": self.decoder}

    def __repr__(self) -> str:
        kind = "" if self.threshold is None else ", with a threshold"
        return f"Autoencoder({self.encoder.shape[1]} features of {self.encoder.shape[0]} hidden{kind})"


def load_autoencoder(path: str | Path) -> Autoencoder:
    """Read a sparse autoencoder from a safetensors file with `W_enc` `[hidden, feature]`, `b_enc`, `W_dec`, `b_dec`.

    - path: the file; one with a tensor `threshold` `[feature]` is a JumpReLU.

    How many features a TopK keeps, and whether the decoder's bias is taken off before encoding, stands in no tensor:
    see the `cfg.json` beside it, and bind `top_k=` and `centred=`.

    Raises:

    - `FileMissing`: where there is no file.
    - `InvalidValue`: for what is no safetensors file, a tensor that it lacks or has beside these, or shapes that do not
      fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissing(f"{path} is not there; give the .safetensors file of an autoencoder.")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise InvalidValue(f"{path} is no safetensors file ({error}); convert it, pickles are not read.") from error
    _check(path, tensors)
    encoder, encoder_bias, decoder, decoder_bias = (tensors[name] for name in NAMES)
    return Autoencoder(encoder, encoder_bias, decoder, decoder_bias, tensors.get("threshold"))


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    known = {*NAMES, "threshold"}
    if lacking := [name for name in NAMES if name not in tensors]:
        raise InvalidValue(f"{path} has no {lacking[0]}; it has {', '.join(tensors) or 'nothing'}, not {list(NAMES)}.")
    if strange := sorted(tensors.keys() - known):
        raise InvalidValue(
            f"{path} has {strange[0]}, of which nothing is known here; an autoencoder with more than "
            f"{', '.join(sorted(known))} computes something else."
        )
    hidden, feature = tensors["b_dec"].shape[-1:], tensors["b_enc"].shape[-1:]
    expected = {"W_enc": hidden + feature, "b_enc": feature, "W_dec": feature + hidden, "b_dec": hidden}
    expected["threshold"] = feature
    for name, tensor in tensors.items():
        if tensor.shape != expected[name] or not tensor.is_floating_point():
            raise InvalidValue(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, and {list(expected[name])} would fit "
                "b_enc [feature] and b_dec [hidden]; transpose it, or see whether it is another autoencoder."
            )
