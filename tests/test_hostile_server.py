"""A server that does what none should: every case ends in one line, in bounded bytes, and the key goes nowhere else."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nnsight
import pytest
import torch
import zstandard
from conftest import mixed_batch, tiny_lens
from drawn_corpus import write_corpus
from fake_ndif import FakeNdif, served_model

from interventions import count_active, keep, mean_activation
from interventions.errors import InvalidType, InvalidValue, MMNeuronError, ServerUnreachable
from mmneuron_lens import Lens
from mmneuron_lens.batching.remote import Jobs
from mmneuron_lens.corpora.folder import read_folder
from mmneuron_lens.experiments.count import count_domain
from mmneuron_lens.runtime import serving, transport
from mmneuron_lens.runtime.host import Host, checked_remote, host_of
from mmneuron_lens.runtime.jobs.records import Records
from mmneuron_lens.runtime.transport import RemoteFailed, page, result_bytes, stores_named, unpacked

KEY = "a-secret-key"


class Scripted:
    """A server on loopback whose every page is a function of the handler; remembers the headers it was sent."""

    def __init__(self) -> None:
        self.pages: dict[str, Callable[[Any], None]] = {}
        self.headers: list[dict[str, str]] = []

    def __enter__(self) -> Scripted:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.headers.append(dict(self.headers))
                script.pages[self.path](self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *trouble: Any) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def says(content: bytes | str, status: int = 200, **headers: str) -> Callable[[Any], None]:
    content = content.encode() if isinstance(content, str) else content

    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        pass


def closes(handler: Any) -> None:
    handler.connection.close()


@pytest.fixture
def server():
    with Scripted() as script:
        serving._differences.cache_clear()
        yield script


@pytest.fixture
def lens(monkeypatch):
    lens = tiny_lens("llava_next")
    monkeypatch.setattr(type(lens.nnsight), "to_model_key", lambda self: 'class:{"repo_id": "owner/model"}')
    return lens


# Addresses.


@pytest.mark.parametrize(
    "remote",
    [
        "", " ", "there", "ftp://there", "http://[::1", "https://", "https://a b", "https://there:port", "http://10.0.0.5:8001",
        "http://there.org", "https://me:word@there", "https://there?key=1", "https://there\x1b[31m", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_server_is_refused_before_anything_is_sent(remote, lens):
    for refused in (
        lambda: checked_remote(remote),
        lambda: lens.run(count_active, mixed_batch(lens), remote=remote),
        lambda: lens.generate(count_active, mixed_batch(lens), max_new_tokens=1, remote=remote),
        lambda: lens.session(remote=remote),
        lambda: Lens("embedded/llava-next", remote=remote),
    ):
        with pytest.raises(InvalidValue, match="remote") as caught:
            refused()
        assert str(caught.value).isprintable()
        assert "word" not in str(caught.value)


def test_what_is_a_server_is_taken():
    assert [checked_remote(one) for one in (None, False, True, "local")] == [False, False, True, "local"]
    for good in (
        "https://there",
        "http://127.0.0.1:8001/",
        "http://localhost:1",
        "http://[::1]:8001",
        "https://there/ndif",
    ):
        assert checked_remote(good) == good.rstrip("/")
    with pytest.raises(InvalidType, match="not 7"):
        checked_remote(7)  # type: ignore[arg-type]


def test_a_key_belongs_to_the_host_it_was_set_for(monkeypatch):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "https://api.ndif.us")
    assert host_of(True).key == KEY
    assert host_of("https://api.ndif.us:443/").key == KEY
    for other in (
        "https://api.ndif.us.evil.org", "https://ndif.us", "https://api.ndif.us:8443", "http://127.0.0.1:8001",
        "http://localhost", "https://evil.org",
    ):  # fmt: skip
        assert host_of(other).key == ""
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "http://127.0.0.1:8001")
    assert host_of("http://127.0.0.1:8001").key == KEY
    assert KEY not in repr(host_of(True))


# Pages.

PACKED = gzip.compress(bytes(10**8))
PAGES = {
    "a redirect": (says("", 302, Location="https://evil.org/status"), RemoteFailed, "redirect, which is not followed"),
    "a page of HTML": (says("<html>hello</html>"), RemoteFailed, "'<html>hello</html>', which is no JSON"),
    "nothing": (says(""), RemoteFailed, "answers with nothing"),
    "a list": (says("[]"), RemoteFailed, "answers with list in place of an object"),
    "a number": (says("7"), RemoteFailed, "answers with int in place of an object"),
    "nested without end": (says("[" * 10**6), RemoteFailed, "which is no JSON"),
    "packed a thousand times": (
        says(PACKED, Content_Encoding="gzip"),
        RemoteFailed,
        "packed unasked",
    ),
    "without end": (endless, RemoteFailed, "more than 16,777,216 bytes"),
    "a closed connection": (closes, ServerUnreachable, "No NDIF server answers"),
    "401": (
        says('{"detail": "no \\u001b[31mkey"}', 401),
        ServerUnreachable,
        r"HTTP 401: no \\x1b\[31mkey.*NDIF_API_KEY",
    ),
    "404": (says("<html>", 404), ServerUnreachable, "HTTP 404 from /status; it may be no NDIF server"),
    "429": (says("", 429), ServerUnreachable, "HTTP 429 .*ask too often"),
    "500": (says("Internal", 500), ServerUnreachable, "HTTP 500 .*not ready"),
    "a model list of another form": (says('{"deployments": [1, 2]}'), MMNeuronError, "it serves nothing"),
    "models of another form": (says('{"deployments": {"1": 7, "2": null}}'), MMNeuronError, "it serves nothing"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_no_server_should_send_is_one_line(name, server, lens, monkeypatch):
    answer, kind, expected = PAGES[name]
    server.pages = {"/status": answer, "/env": answer}
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)
    with pytest.raises(kind, match=expected) as caught:
        lens.run(count_active, mixed_batch(lens), remote=server.url)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 700
    assert KEY not in str(server.headers)


def test_a_server_that_dribbles_is_left(server, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(transport.time, "monotonic", lambda: 10.0 * next(ticks))
    server.pages = {"/status": endless}
    with pytest.raises(RemoteFailed, match="still answering after 60 seconds"):
        page(Host(server.url), "/status")


@pytest.mark.parametrize("there", ["1.2; rm -rf ~", '5.0" && curl evil', 7, None, ["5.1"], "9.9$(x)", "\x1b[2J9.9.9"])
def test_a_version_that_is_none_lands_in_no_command(there, server, lens):
    model = {"model_key": lens.nnsight.to_model_key(), "deployment_level": "HOT", "repo_id": "owner/model", "task": "t"}
    server.pages = {
        "/status": says(json.dumps({"deployments": {"1": model}})),
        "/env": says(json.dumps({"packages": {"nnsight": there, "torch": there}})),
    }
    serving.refuse_unserved(Host(server.url), model["model_key"])


# Results.


def test_results_come_from_the_host_that_was_asked_or_a_store_that_is_named(server):
    server.pages = {"/results/1": says(b"x")}
    host = Host(server.url, KEY)
    assert result_bytes(host, f"{server.url}/results/1") == b"x"
    assert KEY not in str(server.headers)
    for url in (
        "https://evil.org/1", "http://169.254.169.254/latest", "file:///etc/passwd", "ftp://127.0.0.1/1", "http://[::1",
        "", "https://127.0.0.1.evil.org/1", 7, None, b"tensors", {"url": 1},
    ):  # fmt: skip
        with pytest.raises(RemoteFailed, match=r"neither its own|in place of a result"):
            result_bytes(host, url)
    there = Host("https://api.ndif.us")
    with pytest.raises(RemoteFailed, match=r"NDIF_RESULT_HOSTS=store\.org"):
        result_bytes(there, "https://store.org/1")
    with pytest.raises(RemoteFailed, match="neither its own"):
        result_bytes(there, "http://127.0.0.1:9000/1")
    with pytest.raises(RemoteFailed, match="neither its own"):
        result_bytes(there, "http://store.org/1", ("store.org",))
    assert stores_named({"NDIF_RESULT_HOSTS": " Store.org, other.net "}) == ("store.org", "other.net")
    with pytest.raises(InvalidValue, match="names of hosts"):
        stores_named({"NDIF_RESULT_HOSTS": "https://store.org"})


def test_a_redirected_result_and_one_that_is_too_large_are_not_read(server, monkeypatch):
    monkeypatch.setattr(transport, "RESULT", 10**6)
    server.pages = {"/far": says("", 307, Location="http://169.254.169.254/"), "/endless": endless}
    with pytest.raises(RemoteFailed, match="redirect"):
        result_bytes(Host(server.url), f"{server.url}/far")
    with pytest.raises(RemoteFailed, match=r"a result of more than 1,000,000 bytes; read fewer layers"):
        result_bytes(Host(server.url), f"{server.url}/endless")
    with pytest.raises(RemoteFailed, match=r"a result of more than 1,000,000 bytes"):
        unpacked(Host(server.url), zstandard.ZstdCompressor().compress(bytes(10**8)))
    with pytest.raises(RemoteFailed, match="cannot be unpacked"):
        unpacked(Host(server.url), b"no zstd")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A served model, a lens on it, and the server, which really runs jobs."""
    folder = tmp_path_factory.mktemp("served")
    made = tiny_lens("llava_next")
    made.module.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    # Its folder is its name; the client has to be first to say so.
    Lens.weightless(folder).nnsight.to_model_key()
    with FakeNdif(served_model(folder)) as fake:
        yield Lens(folder, remote=fake.url), fake


def test_an_honest_server_gives_what_is_computed_here(there):
    lens, fake = there
    here = Lens(lens.model.repo)
    batch = mixed_batch(here)
    graph = count_active | mean_activation | keep.at("llm.norm")
    one, other = lens.run(graph, batch), here.run(graph, batch)
    for key in [("count_active", "llm.mlp.act"), ("mean_activation", "llm.mlp.act")]:
        assert torch.equal(one[key], other[key])
    assert torch.equal(one["keep", "llm.norm"][0], other["keep", "llm.norm"][0])
    envoy = lens["llm.norm"]
    with lens.trace(batch, remote=fake.url):
        held = envoy.output.save()
    assert torch.equal(held, other["keep", "llm.norm"][0])


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def apply(saved: dict[str, Any]) -> Any:
        given = dict(saved["returned"])
        result = change(given)
        return {"returned": given if result is None else result}

    return apply


AT = ("count_active", "llm.mlp.act")
ANSWERS = {
    "no result": (lambda saved: {}, "without its results"),
    "another name": (lambda saved: {"other": saved["returned"]}, "without its results"),
    "a number": (lambda saved: {"returned": 7}, "without its results"),
    "a tensor": (lambda saved: torch.ones(3), "the answer is Tensor"),
    "no values": (changed(lambda given: given.update(values={})), "without count_active at llm.mlp.act"),
    "one value too many": (changed(lambda given: given["values"].update({("a", "b"): 1})), "that nobody asked for"),
    "values as a list": (changed(lambda given: given.update(values=[])), "values came back as list"),
    "no answers": (changed(lambda given: given.pop("answers")), "without its results"),
    "answers that are none": (changed(lambda given: given.update(answers=[1])), "no tensors"),
    "one layer": (changed(lambda given: given["values"].update({AT: given["values"][AT][:1]})), "shape"),
    "one neuron": (changed(lambda given: given["values"].update({AT: given["values"][AT][:, :1]})), "shape"),
    "booleans": (changed(lambda given: given["values"].update({AT: given["values"][AT] > 0})), "bool"),
    "floats": (changed(lambda given: given["values"].update({AT: given["values"][AT].float()})), "float32"),
    "text": (changed(lambda given: given["values"].update({AT: "many"})), "str"),
    "None": (changed(lambda given: given["values"].update({AT: None})), "NoneType"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_is_not_what_was_asked_is_refused(name, there, monkeypatch):
    lens, _ = there
    change, expected = ANSWERS[name]
    honest = FakeNdif.execute
    monkeypatch.setattr(FakeNdif, "execute", lambda self, job: change(honest(self, job)))
    with pytest.raises(RemoteFailed, match=expected) as caught:
        lens.run(count_active, mixed_batch(Lens.weightless(lens.model.repo)))
    assert str(caught.value).isprintable()


def test_a_job_that_is_complete_without_data_or_unknown_for_ever_is_one_line(there, monkeypatch):
    lens, _ = there
    batch = mixed_batch(Lens.weightless(lens.model.repo))
    for data in ({}, {"data": None}, {"data": 7}, {"data": ["a"]}):
        monkeypatch.setattr(
            FakeNdif,
            "progress",
            lambda self, name, data=data: {"id": name, "status": "COMPLETED", "description": "", **data},
        )
        with pytest.raises(RemoteFailed, match="says a job is complete with"):
            lens.run(count_active, batch)
    monkeypatch.setattr(FakeNdif, "progress", lambda self, name: {"status": "DONE"})
    with pytest.raises(RemoteFailed, match=r"a job's status cannot be read \(id, status\)"):
        lens.run(count_active, batch)


def test_a_job_the_server_forgets_ends(there, monkeypatch):
    from mmneuron_lens.runtime import remote
    from mmneuron_lens.runtime.backend import backend_of

    lens, fake = there
    seconds = [0.0]

    def waits(some: float) -> None:
        seconds[0] += some
        fake.forget()

    def clocked(model, where, **settings):
        return backend_of(model, where, wait=waits, now=lambda: seconds[0], **settings)

    monkeypatch.setattr(remote, "backend_of", clocked)
    monkeypatch.setattr(fake, "rounds", 10**9)
    with pytest.raises(RemoteFailed, match=r"does not know job .* any more"):
        lens.run(count_active, mixed_batch(Lens.weightless(lens.model.repo)))
    assert 60 < seconds[0] < 62


def test_a_file_of_tensors_behind_a_pickle_is_not_read(there, monkeypatch, capfd):
    lens, _ = there
    honest = FakeNdif.run

    def run(self: FakeNdif, name: str, job: dict[str, Any]) -> dict[str, Any]:
        import os
        import pickle

        said = honest(self, name, job)

        class Runs:
            def __reduce__(self) -> Any:
                return os.system, ("echo owned",)

        content = zstandard.ZstdDecompressor().decompress(self.results[name])
        file = io.BytesIO(pickle.dumps(Runs(), protocol=2) + content)
        self.results[name] = zstandard.ZstdCompressor().compress(file.getvalue())
        return said

    monkeypatch.setattr(FakeNdif, "run", run)
    with pytest.raises(RemoteFailed, match="something lies before its first entry"):
        lens.run(count_active, mixed_batch(Lens.weightless(lens.model.repo)))
    assert "owned" not in capfd.readouterr().out


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return read_folder(write_corpus(tmp_path_factory.mktemp("corpus"), ("common",)))[0]


def of_counts(change: Callable[[torch.Tensor], torch.Tensor], name: str, part: str = "") -> Callable[..., Any]:
    def apply(given: dict[str, Any]) -> None:
        values = given["values"]
        key = (name, "llm.mlp.act")
        if part:
            values[key] = {**values[key], part: change(values[key][part])}
        else:
            values[key] = change(values[key])

    return changed(apply)


IMPOSSIBLE = {
    "more active than there are positions": (
        of_counts(lambda counts: counts + 10**6, "count_checked", "active"),
        "active",
    ),
    "active less than never": (of_counts(lambda counts: counts - 10**6, "count_checked", "active"), "active"),
    "other positions": (of_counts(lambda counts: counts * 2, "count_positions"), "counted over"),
    "no positions": (of_counts(lambda counts: counts * 0, "count_positions"), "counted over"),
    "one layer": (of_counts(lambda counts: counts[:1], "count_checked", "active"), "shape"),
    "one neuron": (of_counts(lambda counts: counts[..., :1], "count_checked", "active"), "shape"),
    "booleans": (of_counts(lambda counts: counts > 0, "count_checked", "active"), "bool"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_counts_that_cannot_be_are_not_kept_and_are_asked_for_again(name, there, samples, tmp_path, monkeypatch):
    lens, fake = there
    change, expected = IMPOSSIBLE[name]
    honest = FakeNdif.execute
    records = Records(tmp_path / "jobs")
    with monkeypatch.context() as hostile:
        hostile.setattr(FakeNdif, "execute", lambda self, job: change(honest(self, job)))
        with pytest.raises(RemoteFailed, match=expected):
            count_domain(lens, samples, batch_size=2, jobs=Jobs(fake.url, records))
    counts = count_domain(lens, samples, batch_size=2, jobs=Jobs(fake.url, records))
    here = count_domain(Lens(lens.model.repo), samples, batch_size=2)
    assert all(torch.equal(counts.active[site], here.active[site]) for site in here.active)
