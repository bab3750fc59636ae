"""Placement: on which devices a model's weights lie, in which dtype, and in how many bits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from interventions.errors import InvalidValue
from interventions.sites import unknown
from mmneuron_lens.extras import missing

DTYPES = ("float32", "bfloat16", "float16")

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""How accelerate divides a model among the GPUs that are there."""

QUANTIZATIONS = ("nf4", "int8")
"""nf4: 4 bits a weight (QLoRA, arXiv 2305.14314, section 3). int8: 8 bits (LLM.int8, arXiv 2208.07339)."""


def checked_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    """A dtype as given. Raises `InvalidValue` with the choices for a name that is none, and for torch's others."""
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise InvalidValue(unknown("dtype", str(dtype), DTYPES))
    return dtype


def checked_device(device: str | torch.device | None) -> str | torch.device | None:
    """A device as given; without one, a process of several (`torchrun`) takes the GPU of its LOCAL_RANK.

    Raises `InvalidValue` with the choices for a device that is not there, torch's own included.
    """
    if device is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    devices = _devices()
    if device is not None and str(device) not in (*devices, *(("cuda",) if len(devices) > 1 else ())):
        raise InvalidValue(f"{unknown('device', str(device), devices)} `mmneuron doctor` says what torch sees here.")
    return device


def checked_device_map(device_map: Any) -> Any:
    """A `device_map` as transformers takes it: a way to divide, a device, or devices by the path of a part.

    JSON is read. Raises `InvalidValue` for what is none of these or a device that is not there, and `MissingPackage`
    without accelerate.
    """
    if isinstance(device_map, str) and device_map.lstrip().startswith("{"):
        try:
            device_map = json.loads(device_map)
        except ValueError as error:
            raise InvalidValue(f"device_map {device_map} is no JSON: {error}.") from error
    devices = _devices()
    by_path = isinstance(device_map, Mapping)
    named = [*devices, *(() if by_path else DEVICE_MAPS), *(("cuda",) if len(devices) > 1 else ())]
    for where in device_map.values() if by_path else (device_map,):
        shown = f"cuda:{where}" if isinstance(where, int) else str(where)
        if shown not in named:
            raise InvalidValue(unknown("device in device_map" if by_path else "device_map", shown, named))
    if find_spec("accelerate") is None:
        raise missing("device_map", "accelerate")
    return device_map


def checked_placement(
    device: str | torch.device | None, device_map: Any, quantize: str | None
) -> tuple[str | torch.device | None, Any]:
    """The device to move a loaded model to, and the `device_map` to load it with; one of them is None.

    Raises `InvalidValue` where both are given, and as `checked_device`, `checked_device_map` and `quantization_of` do.
    """
    if quantize is not None:
        refuse_quantize(quantize)
    if device_map is not None:
        if device is not None:
            raise InvalidValue(f"device is {device} and device_map {device_map}; give one of them.")
        return None, checked_device_map(device_map)
    device = checked_device(device)
    if quantize is not None and device is not None:
        # Quantized on their way there: such weights do not move.
        return None, {"": str(device)}
    return device, None


def refuse_quantize(quantize: str) -> None:
    """Raise `InvalidValue` for a name that is none, `MissingPackage` without the packages that it needs."""
    if quantize not in QUANTIZATIONS:
        raise InvalidValue(unknown("quantization", str(quantize), QUANTIZATIONS))
    absent = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if absent:
        raise missing(f"quantize={quantize!r}", *absent)


def quantization_of(quantize: str, dtype: str | torch.dtype | None) -> Any:
    """The configuration with which transformers loads linear layers in fewer bits; the unembedding stays as it is.

    - quantize: "nf4" or "int8"
    - dtype: what nf4 computes in, bfloat16 where neither user nor checkpoint says; int8 computes in float16

    Raises as `refuse_quantize` does.
    """
    from transformers import BitsAndBytesConfig

    refuse_quantize(quantize)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def quantization(config: Any) -> str | None:
    """How a model's weights are held in fewer bits, by its configuration: "nf4", "int8", another method, or None."""
    held = getattr(config, "quantization_config", None)
    if held is None:
        return None
    said = held if isinstance(held, Mapping) else held.to_dict()
    if said.get("load_in_8bit"):
        return "int8"
    method = said["quant_method"]
    return said["bnb_4bit_quant_type"] if said.get("load_in_4bit") else str(getattr(method, "value", method))


def refuse_offloaded(module: torch.nn.Module, repo: str) -> None:
    """Raise `InvalidValue` for weights that lie on no device between forwards, so that nothing can tell them."""
    away = [name for name, value in module.named_parameters() if value.is_meta]
    if away:
        raise InvalidValue(
            f"{repo}: {len(away)} weights, {away[0]} first, fit on no device of device_map; "
            "give devices that hold the whole model, or quantize it."
        )


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
