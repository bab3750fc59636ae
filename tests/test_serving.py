"""What is asked before a job is sent, how a server's error is shown, and which answers are read at all."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from typing import ClassVar

import pytest
import torch
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.response import ResponseModel, Status

from mmneuron_lens.runtime import serving
from mmneuron_lens.runtime.host import Host

KEY = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "owner/model", "revision": null, "task": "t"}'


@pytest.fixture
def server():
    """A server with two pages, `/status` and `/env`; set `pages` and `code`, read `headers`."""

    class Pages(BaseHTTPRequestHandler):
        pages: ClassVar[dict] = {}
        code = 200
        headers_seen: ClassVar[list] = []

        def do_GET(self):
            Pages.headers_seen.append(dict(self.headers))
            self.send_response(Pages.code)
            self.end_headers()
            self.wfile.write(json.dumps(Pages.pages[self.path]).encode())

        def log_message(self, format, *given):
            return None

    listening = HTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Pages.url = f"http://127.0.0.1:{listening.server_port}"  # type: ignore[attr-defined]
    serve(Pages)
    serving._differences.cache_clear()
    yield Pages
    listening.shutdown()
    thread.join()
    listening.server_close()


def serve(pages, level="HOT", key=KEY, **packages):
    entry = {"model_key": key, "deployment_level": level, "repo_id": "owner/model", "task": "t"}
    there = {name: version(name) for name in ("nnsight", "transformers", "torch")} | packages
    pages.pages = {"/status": {"deployments": {"1": entry}}, "/env": {"packages": there}}


def test_a_served_model_of_the_same_versions_passes_and_no_key_is_sent(server):
    serving.refuse_unserved(Host(server.url, "a-secret"), KEY)
    assert len(server.headers_seen) >= 2
    assert "a-secret" not in str(server.headers_seen)


def test_a_model_that_is_not_served_is_refused_with_what_is(server):
    serve(server, key=KEY.replace("owner/model", "other/one"))
    with pytest.raises(
        LookupError,
        match=r"does not serve owner/model as image-text-to-text; it serves owner/model \(t\)\. Serve it yourself",
    ):
        serving.refuse_unserved(Host(server.url, "a-secret"), KEY)


def test_a_cold_model_is_said_to_take_minutes(server):
    serve(server, level="COLD")
    with pytest.warns(UserWarning, match="owner/model is cold .* takes minutes"):
        serving.refuse_unserved(Host(server.url, "a-secret"), KEY)


def test_another_nnsight_is_refused_and_another_torch_is_said(server):
    serve(server, nnsight="0.5.1")
    with pytest.raises(ImportError, match=r'runs nnsight 0\.5\.1, here is .*pip install "nnsight==0\.5\.\*"'):
        serving.refuse_unserved(Host(server.url, "a-secret"), KEY)
    serving._differences.cache_clear()
    serve(server, torch="2.1.0+cu121")
    with pytest.warns(UserWarning, match=r"runs torch 2\.1\.0.*last digits"):
        serving.refuse_unserved(Host(server.url, "a-secret"), KEY)


def test_a_server_that_is_not_ready_and_one_that_is_not_there(server):
    server.code = 503
    with pytest.raises(ConnectionError, match=r"answers HTTP 503 from /status; it is not ready: try again in a minute"):
        serving.refuse_unserved(Host(server.url, "a-secret"), KEY)
    with pytest.raises(ConnectionError, match=r"No NDIF server answers at http://127\.0\.0\.1:9 .*mmneuron ndif up"):
        serving.refuse_unserved(Host("http://127.0.0.1:9"), KEY)


def trace_of(*frames: tuple[str, str, int, str, str]) -> str:
    lines = [f'  File "{block}{file}", line {line}, in {name}\n    {code}' for block, file, line, name, code in frames]
    return "Traceback (most recent call last):\n" + "\n".join(lines)


OURS = ("[read:197] ", f"{serving.TRAVELLING}/execute.py", 205, "read", 'act["function"](value)')
USERS = ("[total:3] ", "/home/me/notebook.py", 7, "total", "return act @ weight")
LIBRARY = ("", "/usr/lib/torch/functional.py", 90, "matmul", "raise")


def test_an_error_is_the_message_and_the_users_line():
    text = trace_of(LIBRARY, OURS, USERS, LIBRARY) + "\nRuntimeError: size mismatch,\nof 5 and 3\n"
    assert serving.explained(text, "https://there") == (
        "https://there: RuntimeError: size mismatch, of 5 and 3 "
        "(in total, /home/me/notebook.py, line 7: return act @ weight)"
    )


def test_an_error_without_a_users_line_names_ours_and_one_without_a_traceback_stays():
    text = trace_of(LIBRARY, OURS) + "\nKeyError: 'image'\n"
    assert serving.explained(text, "https://there").endswith(', line 205: act["function"](value))')
    assert serving.explained("Your job exceeded the limit.\n", "https://there") == "Your job exceeded the limit."


def test_the_backend_shows_errors_so_and_keeps_the_traceback():
    from conftest import tiny_lens

    from mmneuron_lens.runtime.backend import backend_of

    lens = tiny_lens("llava_next")
    lens.nnsight.repo_id = "owner/model"
    from nnsight.modeling.huggingface import _ID_CACHE

    _ID_CACHE["owner/model"] = "owner/model"
    backend = backend_of(lens.model, "https://there/")
    backend.display.enabled = False
    text = trace_of(USERS) + "\nRuntimeError: no"
    with pytest.raises(RemoteError) as caught:
        backend.handle(ResponseModel(id="1", status=Status.ERROR, description=text))
    assert str(caught.value).startswith("https://there: RuntimeError: no (in total, /home/me/notebook.py, line 7")
    assert caught.value.traceback == text  # type: ignore[attr-defined]


class Runs:
    def __reduce__(self):
        return print, ("owned",)


def test_results_are_loaded_as_tensors_only(monkeypatch):
    from conftest import tiny_lens

    from mmneuron_lens.runtime.backend import backend_of
    from mmneuron_lens.runtime.transport import RemoteFailed

    lens = tiny_lens("llava_next")
    monkeypatch.setattr(type(lens.nnsight), "to_model_key", lambda self: KEY)
    backend = backend_of(lens.model, "https://there")
    backend.compress = False
    file = io.BytesIO()
    torch.save({"value": Runs()}, file)
    with pytest.raises(
        RemoteFailed, match=r"https://there: the answer is not plain tensors and values \(it names"
    ) as caught:
        backend.finalize(file.getvalue())
    assert "print" in caught.value.traceback
