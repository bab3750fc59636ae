"""What a remote job costs: bytes up and down, seconds over a local run, and a 13B client's memory and time.

    mmneuron ndif up --model embedded/llava-next --cpu
    python benchmarks/remote.py http://127.0.0.1:8001 > benchmarks/remote.md

Bytes are what the client sends and receives, after compression. The 13B client is measured in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
BATCH = 10
IN_FLIGHT = (1, 4, 8)
PUBLISHED = ("llava-hf/llava-v1.6-vicuna-13b-hf", "Salesforce/instructblip-vicuna-13b")


def photographs(count: int) -> list[bytes]:
    """Smooth noise of 640 x 480 as JPEG files: of the size and compressibility of photographs."""
    import numpy
    from PIL import Image

    noise = numpy.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=numpy.uint8)).resize((640, 480))
        file = io.BytesIO()
        coarse.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def sizes(content: bytes) -> tuple[int, int]:
    """A result's bytes as sent and unpacked."""
    import zstandard

    return len(content), len(zstandard.ZstdDecompressor().decompress(content))


def costs(url: str) -> list[dict[str, float]]:
    """One row for 1, 10, 50 and 100 images, counting the language model's neurons."""
    # The package first: it imports beartype before nnsight.
    from mmneuron_lens import Lens  # isort: skip
    import nnsight
    import torch

    from interventions import count_active_by_kind
    from mmneuron_lens.runtime import remote

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    torch.set_num_threads(1)
    sent: list[int] = []
    received: list[tuple[int, int]] = []
    genuine = remote.backend_of

    def measured(*given, **settings):
        backend = genuine(*given, **settings)
        post, finalize = backend._post, backend.finalize
        backend._post = lambda request, blob: (sent.append(len(blob)), post(request, blob))[1]
        backend.finalize = lambda content: (received.append(sizes(content)), finalize(content))[1]
        return backend

    remote.backend_of = measured
    local = Lens.embedded("llava-next")
    client = Lens.weightless(local.model.repo)
    files = photographs(100)
    rows = []
    for count in (1, 1, 10, 50, 100):
        some = files[:count]
        batches = [
            client.encode(some[at : at + BATCH], ["What is in the picture?"] * len(some[at : at + BATCH]))
            for at in range(0, count, BATCH)
        ]
        started = time.perf_counter()
        here = local.run(count_active_by_kind, batches)
        between = time.perf_counter()
        there = client.run(count_active_by_kind, batches, remote=url)
        ended = time.perf_counter()
        key = ("count_active_by_kind", "llm.mlp.act")
        assert torch.equal(here[key], there[key])
        rows.append(
            {
                "images": count,
                "files": sum(map(len, some)),
                "up": sent[-1],
                "down": received[-1][0],
                "unpacked": received[-1][1],
                "local": between - started,
                "remote": ended - between,
            }
        )
    # The first job of all warms both sides up.
    return rows[1:]


def flights(url: str) -> list[dict[str, float]]:
    """For 1, 10 and 100 images in durable jobs of one batch each: seconds for so many jobs in flight, and bytes up."""
    from mmneuron_lens import Lens  # isort: skip
    import torch

    from interventions import Graph, count_active_by_kind
    from mmneuron_lens.runtime.jobs import server as jobs_server
    from mmneuron_lens.runtime.jobs.records import Records
    from mmneuron_lens.runtime.jobs.run import run_jobs
    from mmneuron_lens.runtime.jobs.watch import Limits

    sent: list[int] = []
    genuine = jobs_server.backend_of

    def measured(*given, **settings):
        backend = genuine(*given, **settings)
        post = backend._post
        backend._post = lambda request, blob: (sent.append(len(blob)), post(request, blob))[1]
        return backend

    jobs_server.backend_of = measured
    local = Lens.embedded("llava-next")
    client = Lens.weightless(local.model.repo)
    files, graph = photographs(100), Graph((count_active_by_kind,))
    key = ("count_active_by_kind", "llm.mlp.act")
    rows = []
    for count in (1, 10, 100):
        parts = [files[at : min(at + BATCH, count)] for at in range(0, count, BATCH)]

        def encoded(some):
            return client.encode(some, ["What is in the picture?"] * len(some))

        started = time.perf_counter()
        here = local.run(graph, [encoded(some) for some in parts])[key]
        row = {"images": count, "jobs": len(parts), "local": time.perf_counter() - started}
        for limit in IN_FLIGHT:
            jobs = {str(at): lambda some=some: ([encoded(some)], {}) for at, some in enumerate(parts)}
            found = []
            sent.clear()
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                limits = Limits(in_flight=limit, poll_seconds=0.05)
                run_jobs(
                    client.model, graph, jobs, lambda name, values, facts, found=found: found.append(values[key]),
                    remote=url, records=Records(folder), limits=limits,
                )  # fmt: skip
                row[limit] = time.perf_counter() - started
            assert torch.equal(sum(found), here)
            row["up"] = sum(sent)
        rows.append(row)
    return rows


def client_of(name: str) -> None:
    """Make a client of a published configuration, encode, check and make a job's bytes; print its costs as JSON."""
    sys.path.insert(0, str(TESTS))
    import mmneuron_lens  # noqa: F401, I001  (first: it imports beartype before nnsight)
    import tiny_models
    import torch
    from transformers import BlipImageProcessor, InstructBlipProcessor, LlavaNextImageProcessor, LlavaNextProcessor

    from interventions import count_active_by_kind, per_layer, zero_neurons
    from mmneuron_lens import Lens
    from mmneuron_lens.runtime import remote

    torch.set_num_threads(1)
    config = json.loads((TESTS / "published_configs.json").read_text())[name]["config"]
    tokenizer = tiny_models.tokenizer()
    # The small tokenizer knows the picture's placeholder by another number; all else is as published.
    for key in ("image_token_index", "image_token_id"):
        if key in config:
            config[key] = tokenizer.convert_tokens_to_ids("<image>")
    if "llava" in name:
        processor = LlavaNextProcessor(
            LlavaNextImageProcessor(image_grid_pinpoints=config["image_grid_pinpoints"]),
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    else:
        images = BlipImageProcessor(size={"height": 224, "width": 224})
        processor = InstructBlipProcessor(images, tokenizer, tokenizer, num_query_tokens=32)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        processor.save_pretrained(folder)
        before = peak_memory()
        started = time.perf_counter()
        lens = Lens.weightless(folder)
        made = time.perf_counter()
        files = photographs(10)
        batch = lens.encode(files, ["What is in the picture?"] * 10)
        encoded = time.perf_counter()
        text = lens.module.config.get_text_config()
        mask = torch.zeros(text.num_hidden_layers, text.intermediate_size, dtype=torch.bool)
        mask[:, :7] = True
        graph = zero_neurons.bind(neurons=per_layer(mask)) | count_active_by_kind.at("*.act")
        lens.check(graph, batch)
        checked = time.perf_counter()
        blob = payload_of(lens, graph, batch, remote)
        ended = time.perf_counter()
        print(
            json.dumps(
                {
                    "model": name,
                    "parameters": sum(parameter.numel() for parameter in lens.module.parameters()),
                    "before": before,
                    "peak": peak_memory(),
                    "make": made - started,
                    "encode": encoded - made,
                    "check": checked - encoded,
                    "bytes": ended - checked,
                    "files": sum(map(len, files)),
                    "up": len(blob),
                }
            )
        )


def payload_of(lens, graph, batch, remote) -> bytes:
    """The bytes of a job, made and not sent."""

    class Sent(Exception):
        pass

    made: list[bytes] = []
    genuine = remote.backend_of

    def stopping(*given, **settings):
        backend = genuine(*given, **settings)

        class Stopping(type(backend)):
            def __call__(self, tracer=None):
                made.append(self._serialize(tracer))
                raise Sent

        backend.__class__ = Stopping
        return backend

    remote.backend_of = stopping
    remote.refuse_unserved = lambda host, key: None
    with contextlib.suppress(Sent):
        lens.run(graph, batch, remote="http://127.0.0.1:9")
    return made[0]


def peak_memory() -> float:
    """The most resident memory of this process so far, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main(url: str) -> None:
    print("# What a remote job costs\n")
    print(f"Written by `python benchmarks/remote.py URL`; {processor_name()}, one thread a side, server and client on")
    print(
        "the same machine, embedded LLaVA-NeXT, float32, `count_active_by_kind`, batches of 10, one question an image."
    )
    print(
        "Results equal the local run exactly. Times vary with what else the machine does: its load average before was"
    )
    print(f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n")
    print(
        "| images | image files, bytes | up | up / files | up per image | down | down per image | unpacked "
        "| local s | remote s | over local s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in costs(url):
        n = int(row["images"])
        print(
            f"| {n} | {row['files']:,} | {row['up']:,} | {row['up'] / row['files']:.3f} | {row['up'] // n:,} "
            f"| {row['down']:,} | {row['down'] // n:,} | {row['unpacked']:,} "
            f"| {row['local']:.2f} | {row['remote']:.2f} | {row['remote'] - row['local']:.2f} |"
        )
    print("\n## Jobs in flight\n")
    print("The same counts as durable jobs of at most 10 images each (`run_jobs`): every job's id and facts go")
    print("to disk. Seconds from images to counts, encoding included; the model does one job at a time.\n")
    limits = "".join(f" {limit} in flight, s |" for limit in IN_FLIGHT)
    print(f"| images | jobs | up | up per image | local s |{limits} over local, s a job |")
    print("|---|---|---|---|---|" + "---|" * len(IN_FLIGHT) + "---|")
    for row in flights(url):
        n, best = int(row["images"]), min(row[limit] for limit in IN_FLIGHT)
        print(
            f"| {n} | {row['jobs']} | {row['up']:,} | {row['up'] // n:,} | {row['local']:.2f} |"
            + "".join(f" {row[limit]:.2f} |" for limit in IN_FLIGHT)
            + f" {(best - row['local']) / row['jobs']:.2f} |"
        )
    print("\n## A client of 13B\n")
    print(
        "The published configuration on the meta device, the published image sizes, a job of 10 images; no weights, and"
    )
    print("nothing was sent. MB of resident memory: before is Python with torch and transformers imported.\n")
    print("| model | parameters | MB before | MB peak | make s | encode s | check s | bytes s | files | up |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in PUBLISHED:
        done = subprocess.run([sys.executable, __file__, "client", name], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['parameters']:,} | {row['before']:.0f} | {row['peak']:.0f} | {row['make']:.1f} "
            f"| {row['encode']:.1f} | {row['check']:.1f} | {row['bytes']:.1f} | {row['files']:,} | {row['up']:,} |"
        )


if __name__ == "__main__":
    client_of(sys.argv[2]) if sys.argv[1] == "client" else main(sys.argv[1])
