"""Lens: one vision-language model, its named sites, and graphs run on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from interventions import Graph, Intervention, keep
from interventions.errors import InvalidValue
from interventions.sites import matching
from mmneuron_lens.architectures import architecture_of, loading
from mmneuron_lens.architectures.checking import check_places
from mmneuron_lens.runtime import compile as compiling
from mmneuron_lens.runtime import run as running
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.shapes import check_plans
from mmneuron_lens.wire import encode, images, layout


class Lens:
    """A stock transformers vision-language model with named sites.

    `Lens("llava-hf/llava-v1.6-vicuna-7b-hf")`, `Lens("folder")`, `Lens.embedded("llava-next")`,
    `Lens.wrap(model, processor)`, `Lens.weightless("folder or id")`.

    module: the transformers model; nnsight: the nnsight model around it; processor: the checkpoint's own.
    """

    def __init__(
        self,
        repo_or_folder: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        """Load a checkpoint: `dtype`, `device_map`, `revision`, `attn_implementation` as in `from_pretrained`.

        Raises `OSError` when it cannot be found, `ValueError` for an architecture without a table of sites.
        """
        settings = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
        given = {name: value for name, value in settings.items() if value is not None}
        module, processor = loading.load(str(repo_or_folder), revision, **given)
        self._adopt(module if device is None else module.to(device), processor, str(repo_or_folder), revision)

    @classmethod
    def wrap(cls, module: torch.nn.Module, processor: Any) -> Lens:
        """A lens on a model that is already loaded."""
        lens = cls.__new__(cls)
        lens._adopt(module.eval(), processor, getattr(module, "name_or_path", "") or type(module).__name__, None)
        return lens

    @classmethod
    def embedded(cls, name: str, **settings: Any) -> Lens:
        """A small trained model that ships with the package, `"llava-next"` or `"instructblip"`; or `"smol"`.

        The last has a real language model and is assembled on its first use, from parts that are fetched then.
        """
        lens = cls(loading.embedded_folder(name), **settings)
        lens.name = f"embedded/{name}"
        return lens

    @classmethod
    def weightless(
        cls, repo_or_folder: str | os.PathLike[str], *, revision: str | None = None, **settings: Any
    ) -> Lens:
        """A lens on the meta device: plans, checks and encodes; loads no weights."""
        lens = cls.__new__(cls)
        module, processor = loading.load_meta(str(repo_or_folder), revision, **settings)
        lens._adopt(module, processor, str(repo_or_folder), revision)
        return lens

    def _adopt(self, module: Any, processor: Any, name: str, revision: str | None) -> None:
        self.module = module
        self.processor = processor
        self.name = self.repo = name
        # Where `run` runs unless it is told: here, or on a server, as its `remote` says.
        self.remote: bool | str = False
        # What that server said it serves, of `runtime.remote.ask_served`.
        self.served: dict[str, Any] | None = None
        self.revision = revision
        self.architecture = architecture_of(module.config)
        check_places(self.architecture, module)
        self._nnsight: Any = None
        # Graphs that were checked, with the kind of batch: a sweep of many runs checks each once.
        self.proved: set[tuple[Any, ...]] = set()

    @property
    def nnsight(self) -> Any:
        """The nnsight model, made on first use."""
        if self._nnsight is None:
            self._nnsight = loading.wrap(self.module, self.processor, self.repo, self.revision)
        return self._nnsight

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of this model's sites, in forward order."""
        return self.architecture.sites

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def attention(self) -> str:
        """The attention implementation of the language model: "sdpa", "eager", ..."""
        return self.module.config.get_text_config()._attn_implementation or "eager"

    def __repr__(self) -> str:
        return f"Lens({self.name}: {self.architecture.name}, {len(self.sites)} sites, {self.dtype}, {self.device})"

    def __getitem__(self, site: str) -> Any:
        """The nnsight envoys of a site: `lens["llm.mlp.act"][3]`, or one envoy where the site has no layers."""
        from mmneuron_lens.wire.execute import find

        place = self.architecture.place(site)
        envoys = [find(self.nnsight, path) for _, path in place.paths()]
        return envoys if place.layers is not None else envoys[0]

    def encode(self, images_of: Sequence[Any] | None, texts: Sequence[str] | str) -> Batch:
        """Images and texts as one padded batch that knows its token layout.

        images_of: per text an image, a list of images, or None; an image is a path, the bytes of a file, a PIL
        image or an array. texts: prompts. Where images stand in the text (LLaVA), prompts without `<image>` get one
        per image before them. Raises `ValueError` for an image that cannot be read, a count that does not
        match, or a text without an image where the architecture needs one.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        per_text = _per_text(images_of, len(texts))
        pictures = [[images.decode(image) for image in some] for some in per_text]
        facts = self.architecture.facts
        if facts["images_in_text"]:
            token = getattr(self.processor, "image_token", "<image>")
            texts = [with_placeholders(text, len(some), token) for text, some in zip(texts, pictures, strict=True)]
        elif any(len(some) != 1 for some in pictures):
            counts = [len(some) for some in pictures]
            raise InvalidValue(f"{self.architecture.name} takes exactly one image per text; these have {counts}.")
        inputs = encode.encode(self.processor, pictures, texts)
        return Batch(
            inputs=inputs,
            fields=layout.lay_out(inputs, facts),
            images=tuple(len(some) for some in pictures),
            prompt_length=inputs["input_ids"].shape[1],
            facts=facts,
            tokenizer=self.processor.tokenizer,
            given=(tuple(map(tuple, per_text)), tuple(texts)),
        )

    def check(self, graph: Graph | Intervention, batch: Batch) -> None:
        """Prove on fake tensors that a graph fits this model and batch; needs no weights. Raises what does not fit."""
        plans = compiling.compile_graph(_graph(graph), self.architecture, typed=True, attention=self.attention)
        check_plans(plans, batch, self.architecture, self.module, self.dtype)

    def run(
        self,
        graph: Graph | Intervention,
        batches: Iterable[Batch] | Batch,
        *,
        sources: Iterable[Batch] | Batch | None = None,
        logits: bool = False,
        remote: bool | str | None = None,
        **generation: Any,
    ) -> Result:
        """Run a graph: a forward per batch, or a generation when settings such as `max_new_tokens` are given.

        sources: for graphs that rewire, one paired batch per batch. logits: keep them. remote: run on NDIF, at the
        configured host (True) or the URL given; the images' files go up, folded results come down. Left out, it is
        `lens.remote`. Everything that can be wrong with the graph is raised before the first forward.
        """
        batches = [batches] if isinstance(batches, Batch) else batches
        sources = [sources] if isinstance(sources, Batch) else sources
        remote = self.remote if remote is None else remote
        if remote:
            from mmneuron_lens.runtime.remote import run_remote

            return run_remote(self, _graph(graph), batches, sources, generation, logits, remote)
        return running.run(self, _graph(graph), batches, sources, generation, logits)

    def run_with_cache(self, batch: Batch, sites: Sequence[str] | str = "*") -> tuple[Tensor, dict[str, Any]]:
        """The logits and the activations by site name, as TransformerLens gives them: `[layer, ...]` per site.

        sites: names and globs. Globs leave out what this batch does not reach and weights that the attention
        implementation does not return.
        """
        patterns = (sites,) if isinstance(sites, str) else tuple(sites)
        names = [name for pattern in patterns for name in matching(pattern, self.sites)]
        reached = [name for name in dict.fromkeys(names) if name in patterns or self._reached(name, batch)]
        out = self.run(keep.at(reached), batch, logits=True)
        return out.logits[0], {site: values[0] for (_, site), values in out.items()}

    def _reached(self, site: str, batch: Batch) -> bool:
        if site.endswith("attention.pattern") and self.attention != "eager":
            return False
        return site.startswith("llm.") or "vision" in batch.fields

    def trace(self, batch: Batch | None = None, **settings: Any) -> Any:
        """nnsight's own trace on a batch: `with lens.trace(batch): ...`; gradients work there."""
        return self.nnsight.trace(**self._given(batch), **settings)

    def generate(self, batch: Batch | None = None, **settings: Any) -> Any:
        """nnsight's own generation on a batch: `with lens.generate(batch, max_new_tokens=3) as tracer: ...`."""
        given = self._given(batch)
        given.pop("position_ids", None)
        # nnsight looks for the `with` block one call above `generate`; name the function to trace it from here.
        function = type(self.nnsight).generate.__wrapped__.__get__(self.nnsight)
        return self.nnsight.trace(fn=function, **given, **settings)

    def scan(self, batch: Batch, **settings: Any) -> Any:
        """nnsight's scan: the forward on fake tensors, for shapes."""
        given = self._given(batch)
        if "image_sizes" in given:
            # Anyres tiling computes with these numbers, which fake tensors do not hold.
            given["image_sizes"] = given["image_sizes"].tolist()
        return self.nnsight.scan(**given, **settings)

    def session(self, **settings: Any) -> Any:
        """nnsight's session: several traces as one."""
        return self.nnsight.session(**settings)

    def prove(self, batch: Batch | None = None) -> list[Any]:
        """Prove every site: right axes, equal to a plain hook, and that changing it moves the logits or cannot.

        Returns one `Proof` per site; raises `AssertionError` naming the first that fails.
        """
        from mmneuron_lens.runtime.proving import prove

        return prove(self, batch)

    def _given(self, batch: Batch | None) -> dict[str, Any]:
        return {} if batch is None else dict(batch.to(self.device).inputs)


def _graph(graph: Graph | Intervention) -> Graph:
    return Graph((graph,)) if isinstance(graph, Intervention) else graph


def _per_text(images_of: Sequence[Any] | None, count: int) -> list[list[Any]]:
    if images_of is None:
        return [[] for _ in range(count)]
    if isinstance(images_of, str | bytes | os.PathLike) or not isinstance(images_of, Sequence):
        images_of = [images_of]
    if len(images_of) != count:
        raise InvalidValue(
            f"{len(images_of)} entries of images for {count} texts; give one entry (or a list, or None) per text."
        )
    return [list(some) if isinstance(some, list | tuple) else [] if some is None else [some] for some in images_of]


def with_placeholders(text: str, count: int, token: str) -> str:
    """The prompt with a placeholder line per image before it, unless it has them. Raises `ValueError` on a mismatch."""
    present = text.count(token)
    if present == 0 and count:
        return f"{token}\n" * count + text
    if present != count:
        raise InvalidValue(f"{present} {token} in the text for {count} images: {text[:80]!r}.")
    return text
