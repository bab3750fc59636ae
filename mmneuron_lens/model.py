"""Model: a loaded vision-language model and what is known of it, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from interventions.printable import printable
from mmneuron_lens.architectures import Architecture, architecture_of, loading, placement
from mmneuron_lens.architectures.checking import check_places
from mmneuron_lens.architectures.processing import fitted
from mmneuron_lens.fingerprint import fingerprint_of
from mmneuron_lens.wire.types import Served

ModelFacts = TypedDict(
    "ModelFacts",
    {
        "model id": str,
        "revision": str | None,
        "fingerprint": str,
        "dtype": str,
        "device": str,
        "attention": str,
        "quantization": NotRequired[str],
        "discovered": NotRequired[bool],
        "proof": NotRequired[str],
    },
)
"""What identifies a model in an artifact: plain JSON, no path. `quantization` only where weights are in fewer bits;
`discovered` where its sites are of no table, with the digest of their proof."""


@dataclass(frozen=True, eq=False)
class Model:
    """A transformers vision-language model with its processor and its table of sites; two are equal if they are one.

    - module: the transformers model, with weights or on the meta device
    - processor: the checkpoint's own, or a copy that says what it left out
    - architecture: where its named sites lie
    - name: as artifacts and tables show it: `embedded/NAME`, a hub id, or the last part of a folder's path
    - repo: a folder or hub id, by which an NDIF server knows it
    - revision: of a hub id
    - served: what a server said of its device and weights, where it was asked
    - missing: what the processor left out, as filled from the configuration, by name
    - proof: of sites that were discovered, the digest of their certificate, "" until they are proved; None where they
      are of a table
    """

    module: Any = field(repr=False)
    processor: Any = field(repr=False)
    architecture: Architecture = field(repr=False)
    name: str
    repo: str
    revision: str | None = None
    served: Served | None = field(repr=False, default=None)
    missing: Mapping[str, Any] = field(repr=False, default_factory=dict[str, Any])
    proof: str | None = field(repr=False, default=None)

    @cached_property
    def nnsight(self) -> Any:
        """The nnsight model around the module, made on first use."""
        return loading.wrap(self.module, self.processor, self.repo, self.revision)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything that decides this model's numbers (`fingerprint_of`), computed on first use."""
        weights = None if self.served is None else self.served["weights"]
        return fingerprint_of(self.module, self.processor, repo=self.repo, revision=self.revision, weights=weights)

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites, in forward order."""
        return self.architecture.sites

    @property
    def device(self) -> torch.device:
        """Where the first weight lies; "meta" without weights."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first weight that is not quantized: the server's, where one was asked."""
        if self.served is not None and self.served["weights"]:
            dtypes = [getattr(torch, weight["dtype"]) for weight in self.served["weights"]]
        else:
            dtypes = [weight.dtype for weight in self.module.parameters()]
        return next((dtype for dtype in dtypes if dtype.is_floating_point), dtypes[0])

    @property
    def quantization(self) -> str | None:
        """How weights are held in fewer bits: "nf4", "int8", or another method's name; None where they are not."""
        return placement.quantization(self.module.config)

    @property
    def attention(self) -> str:
        """The attention implementation of the language model: "sdpa", "eager", ..."""
        return self.module.config.get_text_config()._attn_implementation or "eager"

    @property
    def attentions(self) -> dict[str, str]:
        """The attention implementations of the language model, "llm", and of the vision tower, "vision"."""
        tower = getattr(self.module.config, "vision_config", None)
        return {"llm": self.attention, "vision": getattr(tower, "_attn_implementation", None) or "eager"}

    def facts(self) -> ModelFacts:
        """What identifies this model.

        `device` names each kind of device that holds weights once, as "cpu+cuda"; it is "server" where the weights are
        on one and it does not say more.
        """
        kinds = sorted({weight.device.type for weight in self.module.parameters()})
        here = "server" if self.device.type == "meta" else "+".join(kinds)
        facts: ModelFacts = {
            "model id": self.name,
            "revision": self.revision or getattr(self.module.config, "_commit_hash", None),
            "fingerprint": self.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": here if self.served is None else self.served["device"],
            "attention": self.attention,
        }
        if self.quantization is not None:
            facts["quantization"] = self.quantization
        return facts if self.proof is None else {**facts, "discovered": True, "proof": self.proof}


def model_of(
    module: Any,
    processor: Any,
    *,
    repo: str,
    name: str | None = None,
    revision: str | None = None,
    architecture: Architecture | None = None,
) -> Model:
    """A model whose table of sites is checked against its modules, and whose processor against its configuration.

    - repo: a folder or hub id
    - name: as `Model.name`; of the repo if left out
    - architecture: its sites, where they are of no table

    A processor that leaves out what the configuration says is completed, on a copy. Raises `InvalidValue` for an
    architecture without a table, a table that does not fit the module, or a processor that does not fit either.
    """
    architecture = architecture or architecture_of(module.config)
    check_places(architecture, module)
    processor, missing = fitted(architecture, module, processor)
    model = Model(module, processor, architecture, name or shown_name(repo), repo, revision, missing=missing)
    if model.quantization is not None:
        # Now: on a CPU, bitsandbytes packs weights anew in the first forward.
        _ = model.fingerprint
    return model


def shown_name(repo: str) -> str:
    """A checkpoint's name in artifacts and tables: the last part of a folder's path, or the hub id as it is."""
    return printable(Path(repo).resolve().name) if Path(repo).is_dir() else repo
