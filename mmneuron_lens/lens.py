"""Lens: one vision-language model, its named sites, and graphs run on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Unpack, overload

import torch
from torch import Tensor

from interventions import Graph, Intervention
from interventions.printable import printable
from mmneuron_lens.architectures import Architecture
from mmneuron_lens.artifacts.certificate import Certificate
from mmneuron_lens.model import Model
from mmneuron_lens.runtime import encoding, many, opening, proving
from mmneuron_lens.runtime import run as running
from mmneuron_lens.runtime.arguments import (
    Running,
    batch_of,
    batches_of,
    graph_of,
    graphs_of,
    refuse_strange,
    refuse_weightless,
    rows_of,
    texts_of,
)
from mmneuron_lens.runtime.batch import Batch
from mmneuron_lens.runtime.between import Rule, points
from mmneuron_lens.runtime.caching import cache_of, cached_graph
from mmneuron_lens.runtime.host import checked_remote
from mmneuron_lens.runtime.proved import Check
from mmneuron_lens.runtime.result import Result
from mmneuron_lens.runtime.shapes import ShapeError
from mmneuron_lens.traces import applying, site_envoy, tracing

Runnable = Graph | Intervention
Graphs = Sequence[Runnable]
Batches = Iterable[Batch] | Batch


class Lens:
    """A stock transformers vision-language model with named sites; it does not change once it is made.

    `Lens("embedded/llava-next")`, `Lens("llava-hf/llava-v1.6-vicuna-7b-hf")`, `Lens("folder")`,
    `Lens.wrap(module, processor)`, `Lens.weightless("folder or id")`, `Lens("id", remote=True)`.

    What it runs on is `lens.model`, a `Model`.
    """

    def __init__(
        self,
        name_or_folder: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        quantize: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        remote: bool | str | None = None,
        discover: bool = False,
    ) -> None:
        """Load a checkpoint, or only what is needed to run it on a server.

        - name_or_folder: `embedded/llava-next`, `embedded/instructblip`, `embedded/idefics3`, `embedded/smol`, a
          folder, or a hub id
        - dtype: "float32", "bfloat16", "float16", or torch's
        - device: "cpu", "cuda", "cuda:1"; in a process of several (`torchrun`) the GPU of its LOCAL_RANK if left out
        - device_map: layers on several devices: "auto", "balanced", "sequential", or a device by the path of a part
        - quantize: "nf4" (4 bits) or "int8", where bitsandbytes is installed; nf4 computes in `dtype`
        - revision, attn_implementation: as in transformers' `from_pretrained`
        - remote: True for NDIF's configured host, or the URL of a server: no weights are loaded here, every run
          goes there, and the server is asked once for its device and weights
        - discover: for an architecture without a table, sites by discovery, proved at once; every artifact says so

        Raises `FileMissing` when it cannot be found, `UnknownName` for a name that is not there, `InvalidValue` for an
        architecture without a table of sites (before weights are read) or on which discovery is not enough, an unknown
        dtype, device or quantization, or one given with `remote`, `MissingPackage` without accelerate or bitsandbytes
        where they are needed; with `remote` also what `runtime.remote.run_remote` raises.
        """
        self._remote = remote = checked_remote(remote)
        self._model = opening.opened(
            name_or_folder,
            {"dtype": dtype, "device": device, "device_map": device_map, "quantize": quantize},
            revision=revision,
            attn_implementation=attn_implementation,
            remote=remote,
            discover=discover,
        )

    @classmethod
    def wrap(cls, module: torch.nn.Module, processor: Any, name: str | None = None, *, discover: bool = False) -> Lens:
        """A lens on a transformers model that is already loaded, with its processor.

        - module, processor: as transformers loads them
        - name: what artifacts call it; the checkpoint it was loaded from, or its class, if left out
        - discover: as in `Lens`

        Raises `InvalidType` for what is no such model or processor, and as `Lens` does for its architecture.
        """
        return cls._of(opening.wrapped(module, processor, name, discover))

    @classmethod
    def embedded(cls, name: str, **settings: Any) -> Lens:
        """The short form of `Lens("embedded/NAME", ...)`: "llava-next", "instructblip", "idefics3" or "smol".

        - name: one of these. settings: as of `Lens`
        """
        return cls(f"embedded/{name}", **settings)

    @classmethod
    def weightless(
        cls, name_or_folder: str | os.PathLike[str], *, revision: str | None = None, **settings: Any
    ) -> Lens:
        """A lens on the meta device: plans, checks and encodes; loads no weights. Raises as `Lens` does.

        - name_or_folder, revision, settings: as of `Lens`
        """
        return cls._of(opening.weightless(name_or_folder, revision, settings))

    @classmethod
    def _of(cls, model: Model) -> Lens:
        lens = cls.__new__(cls)
        lens._model, lens._remote = model, False
        return lens

    @property
    def model(self) -> Model:
        """The model below: what the functions of `runtime` take."""
        return self._model

    @property
    def remote(self) -> bool | str:
        """Where `run` runs unless it is told: False here, True on the configured host, or a server's URL."""
        return self._remote

    @property
    def name(self) -> str:
        """As artifacts and tables show it: `embedded/NAME`, a hub id, or the last part of a folder's path."""
        return self._model.name

    @property
    def module(self) -> Any:
        """The transformers model."""
        return self._model.module

    @property
    def processor(self) -> Any:
        """The checkpoint's own processor."""
        return self._model.processor

    @property
    def architecture(self) -> Architecture:
        """Where the named sites of this model lie."""
        return self._model.architecture

    @property
    def nnsight(self) -> Any:
        """The nnsight model around the module, made on first use."""
        return self._model.nnsight

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of this model's sites, in forward order."""
        return self._model.sites

    @property
    def device(self) -> torch.device:
        """Where the weights lie; "meta" without weights."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self._model.dtype

    @property
    def attention(self) -> str:
        """The attention implementation of the language model: "sdpa", "eager", ..."""
        return self._model.attention

    def __repr__(self) -> str:
        where = f"remote={self.remote!r}" if self.remote else self.device
        return f"Lens({printable(self.name)}: {self.architecture.name}, {len(self.sites)} sites, {self.dtype}, {where})"

    def __getitem__(self, site: str) -> Any:
        """The nnsight envoys of a site by layer, or one without layers: `lens["llm.mlp.act"][3].value`, `.output`."""
        return site_envoy.envoys(self._model, site)

    def __reduce__(self) -> Any:
        return site_envoy.reduced(self._model)

    def encode(
        self,
        images_of: Sequence[Any] | None,
        texts: Sequence[str] | str,
        answers: Sequence[str | Sequence[int] | Tensor] | None = None,
    ) -> Batch:
        """Images and texts as one padded batch that knows its token layout.

        - images_of: per text an image, a list of images, or None; an image is a path, the bytes of a file, a PIL image
          or an array, and is seen as a viewer shows it (`docs/pictures.md`): turned as EXIF says, on white, the first
          frame of several
        - texts: prompts; where images stand in the text (LLaVA), one without `<image>` gets one per image before it
        - answers: per text an answer behind it, text or token ids (`out.tokens`), for `lens.run` to say how likely it
          is: field `answer`, int64 `[rows, tokens]`, has the token of it that comes next, -1 where none does

        Raises `InvalidValue` for an image that cannot be read, a count that does not match, no text at all, or a text
        without an image where the architecture needs one; `InvalidType` for a text that is none.
        """
        return encoding.encode(self._model, images_of, texts_of(texts), answers)

    def pack(self, rows: Sequence[tuple[Sequence[Any], Sequence[str]]], *, cut: bool = False) -> Batch:
        """A batch of `(images, prompts)` rows that computes once what the prompts of a row share; not for generation.

        cut: run long prefixes and their questions apart; then only reads that sum over positions fit. Raises
        `InvalidValue` for a row without an image or prompt, or of several images where the architecture takes one;
        `InvalidType` for a row of another form.
        """
        return encoding.packed(self._model, rows_of(rows), cut=cut)

    def check(self, graph: Runnable, batch: Batch, *, max_new_tokens: int | None = None) -> Check:
        """Prove on fake tensors that a graph fits this model and batch; needs no weights. Raises what does not fit.

        - max_new_tokens: check it for `generate`, which has more steps and positions than `run`

        Returns what was proved, and what shapes alone cannot run (`act[act > 0.5]`, `.item()`), with the reason: that
        was tried on random values.
        """
        generation = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        try:
            return running.check(self._model, graph_of(graph), batch_of(batch), generation)
        except ShapeError as error:
            raise error.with_traceback(None) from error.__cause__

    @overload
    def run(self, graph: Runnable, batches: Batches, **settings: Unpack[Running]) -> Result: ...
    @overload
    def run(self, graph: Graphs, batches: Batches, **settings: Unpack[Running]) -> list[Result]: ...
    def run(
        self,
        graph: Runnable | Graphs,
        batches: Batches,
        *,
        sources: Batches | None = None,
        logits: bool = False,
        remote: bool | str | None = None,
        max_rows: int | None = None,
    ) -> Result | list[Result]:
        """Run a graph: one forward per batch. Of several graphs, as few forwards as their rows fit, and a result each.

        - batches: one, or several, of this model. sources: for graphs that rewire, one paired batch per batch
        - logits: keep them, in `.logits`
        - remote: run on NDIF, at the configured host (True) or the URL given; the images' files go up, folded results
          come down; `lens.remote` if left out
        - max_rows: of several graphs, rows of a forward, one copy of the batch a graph; as many as come to 16,384
          positions if left out

        Everything that can be wrong with the graph is raised before the first forward; what is wrong with a batch,
        before its own.
        """
        return self._run(graph, batches, None, sources, logits, remote, max_rows=max_rows)

    def run_between(
        self,
        graph: Runnable,
        batches: Batches,
        baselines: Batches,
        *,
        steps: int = 5,
        rule: Rule = "midpoint",
        remote: bool | str | None = None,
    ) -> Result:
        """Run a graph whose `gradient(...)` is its mean along the straight line from a baseline: integrated gradients.

        The line lies at `llm.embedding`; values are those on the batch itself, `value_of(source=True)` on the baseline.

        - batches, baselines: of these one per batch, of the same shape
        - steps: points of the line, each a forward and a backward
        - rule: where they lie, in shares of the way to the batch: "midpoint", (i - 1/2) / steps, or "right", i / steps
        - remote: as in `run`

        Source: Sundararajan et al. 2017 (arXiv 1703.01365), equation 1; with "right" its equation 3. Raises as `run`,
        and `InvalidValue` for a graph without a gradient, or with one before `llm.embedding`.
        """
        between = points(steps, rule)
        return self._run(graph_of(graph), batches, None, baselines, False, remote, max_rows=None, between=between)

    @overload
    def generate(self, graph: Runnable, batches: Batches, *, max_new_tokens: int, **settings: Any) -> Result: ...
    @overload
    def generate(self, graph: Graphs, batches: Batches, *, max_new_tokens: int, **settings: Any) -> list[Result]: ...
    def generate(
        self,
        graph: Runnable | Graphs,
        batches: Batches,
        *,
        max_new_tokens: int,
        sources: Batches | None = None,
        logits: bool = False,
        remote: bool | str | None = None,
        max_rows: int | None = None,
        **settings: Any,
    ) -> Result | list[Result]:
        """Generate answers under a graph: one generation per batch; the answers are in `.text` and `.tokens`.

        - max_new_tokens: tokens an answer has at most
        - batches, sources, logits, remote, max_rows: as in `run`; logits are those of the answers, teacher-forced
        - settings: others of transformers' `generate`, such as `num_beams` and `do_sample`

        Writes act on every step, reads on the prompt, unless `.at(steps=...)` says otherwise. Raises as `run` does.
        """
        generation = {"max_new_tokens": max_new_tokens, **settings}
        return self._run(graph, batches, generation, sources, logits, remote, max_rows=max_rows)

    def _run(
        self,
        graph: Any,
        given: Batches,
        generation: Any,
        sources: Any,
        logits: bool,
        remote: Any,
        *,
        max_rows: Any,
        between: list[float] | None = None,
    ) -> Any:
        graphs, batches = graphs_of(graph, max_rows), batches_of(given)
        paired = None if sources is None else batches_of(sources, "a source")
        remote = self.remote if remote is None else checked_remote(remote)
        try:
            if isinstance(graphs, list):
                return many.run_many(self._model, graphs, batches, paired, logits, remote, generation, max_rows)
            if remote:
                from mmneuron_lens.runtime.remote import run_remote

                return run_remote(
                    self._model, graphs, batches, paired, logits, remote=remote, generation=generation, between=between
                )
            if generation is None:
                return running.run(self._model, graphs, batches, paired, logits, between)
            return running.generate(self._model, graphs, batches, paired, logits, generation=generation)
        except ShapeError as error:
            # A line of the user's function: ours that led to it are left out.
            raise error.with_traceback(None) from error.__cause__

    def run_with_cache(self, batch: Batch, sites: Sequence[str] | str = "*") -> tuple[Tensor, dict[str, Any]]:
        """The logits and the activations by site name, as TransformerLens gives them: `[layer, ...]` per site.

        - sites: names and globs, in whose order the activations come. Globs leave out what this batch does not reach
          and weights that the attention implementation does not return.
        """
        graph = cached_graph(self._model, batch_of(batch), sites)
        return cache_of(self.run(graph, batch, logits=True), graph)

    def trace(self, batch: Batch | None = None, **settings: Any) -> Any:
        """nnsight's own trace on a batch: `with lens.trace(batch): ...`; gradients work there. settings: nnsight's."""
        return tracing.trace(self._model, batch, settings)

    def trace_generation(self, batch: Batch | None = None, **settings: Any) -> Any:
        """nnsight's own generation: `with lens.trace_generation(batch, max_new_tokens=3) as tracer: ...`.

        - settings: nnsight's, and those of transformers' `generate`
        """
        return tracing.trace_generation(self._model, batch, settings)

    def apply(self, graph: Runnable, tracer: Any = None) -> Result:
        """A graph inside a trace: its results in the block at once, or with a tracer when that has ended."""
        return applying.apply(self._model, graph_of(graph), tracer)

    def scan(self, batch: Batch, **settings: Any) -> Any:
        """nnsight's scan: the forward of a batch on fake tensors, for shapes. settings: nnsight's."""
        return tracing.scan(self._model, batch, settings)

    def session(self, **settings: Any) -> Any:
        """nnsight's session: several traces as one. settings: nnsight's."""
        return tracing.session(self._model, settings)

    def prove(self, batch: Batch | None = None) -> Certificate:
        """Prove that every site is what it is called, and that every shortcut computes what it stands for.

        Sites: right axes, equal to a plain hook, changing one moves the logits or cannot, and nothing before it;
        neurons lie at activation modules, patches stand in the order of the image, queries, keys and values act so.
        Shortcuts: encode's logits are those of the processor's own inputs, a batch is its rows alone, packed questions
        are each alone.

        Returns a certificate that can be printed and saved, one `Proof` per site in it; raises `ProofFailed` naming the
        first that fails.
        """
        refuse_weightless(self._model, cure="")
        if batch is not None:
            refuse_strange(self._model, batch_of(batch))
        return proving.prove(self._model, batch)
