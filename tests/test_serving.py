"""What is asked before a job is sent, how a server's error is shown, and which answers are read at all."""

from __future__ import annotations

import io
import json
import pickle
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from typing import ClassVar

import pytest
import torch
from mmneuron_lens.runtime.envelope import refuse_unsafe
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.response import ResponseModel, Status

from mmneuron_lens.runtime import serving

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


def test_a_served_model_of_the_same_versions_passes_and_no_key_is_sent(server, monkeypatch):
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a-secret")
    serving.refuse_unserved(server.url, KEY)
    assert len(server.headers_seen) >= 2
    assert "a-secret" not in str(server.headers_seen)


def test_a_model_that_is_not_served_is_refused_with_what_is(server):
    serve(server, key=KEY.replace("owner/model", "other/one"))
    with pytest.raises(
        LookupError,
        match=r"does not serve owner/model as image-text-to-text; it serves owner/model \(t\)\. Serve it yourself",
    ):
        serving.refuse_unserved(server.url, KEY)


def test_a_cold_model_is_said_to_take_minutes(server):
    serve(server, level="COLD")
    with pytest.warns(UserWarning, match="owner/model is cold .* takes minutes"):
        serving.refuse_unserved(server.url, KEY)


def test_another_nnsight_is_refused_and_another_torch_is_said(server):
    serve(server, nnsight="0.5.1")
    with pytest.raises(ImportError, match=r'runs nnsight 0\.5\.1, here is .*pip install "nnsight==0\.5\.\*"'):
        serving.refuse_unserved(server.url, KEY)
    serving._differences.cache_clear()
    serve(server, torch="2.1.0+cu121")
    with pytest.warns(UserWarning, match=r"runs torch 2\.1\.0.*last digits"):
        serving.refuse_unserved(server.url, KEY)


def test_a_server_that_is_not_ready_and_one_that_is_not_there(server):
    server.code = 503
    with pytest.raises(ConnectionError, match=r"is not ready \(HTTP 503 from /status\); try again in a minute"):
        serving.refuse_unserved(server.url, KEY)
    with pytest.raises(ConnectionError, match=r"No NDIF server answers at http://127\.0\.0\.1:9 .*mmneuron ndif up"):
        serving.refuse_unserved("http://127.0.0.1:9", KEY)


def trace_of(*frames: tuple[str, str, int, str, str]) -> str:
    lines = [f'  File "{block}{file}", line {line}, in {name}\n    {code}' for block, file, line, name, code in frames]
    return "Traceback (most recent call last):\n" + "\n".join(lines)


OURS = ("[read:197] ", f"{serving.TRAVELLING}/execute.py", 205, "read", 'act["function"](value)')
USERS = ("[total:3] ", "/home/me/notebook.py", 7, "total", "return act @ weight")
LIBRARY = ("", "/usr/lib/torch/functional.py", 90, "matmul", "raise")


def test_an_error_is_the_message_and_the_users_line():
    text = trace_of(LIBRARY, OURS, USERS, LIBRARY) + "\nRuntimeError: size mismatch,\nof 5 and 3\n"
    assert serving.explained(text, "http://there") == (
        "http://there: RuntimeError: size mismatch, of 5 and 3 "
        "(in total, /home/me/notebook.py, line 7: return act @ weight)"
    )


def test_an_error_without_a_users_line_names_ours_and_one_without_a_traceback_stays():
    text = trace_of(LIBRARY, OURS) + "\nKeyError: 'image'\n"
    assert serving.explained(text, "http://there").endswith(', line 205: act["function"](value))')
    assert serving.explained("Your job exceeded the limit.\n", "http://there") == "Your job exceeded the limit."


def test_the_backend_shows_errors_so_and_keeps_the_traceback():
    from conftest import tiny_lens

    from mmneuron_lens.runtime.remote import backend_of

    lens = tiny_lens("llava_next")
    lens.nnsight.repo_id = "owner/model"
    from nnsight.modeling.huggingface import _ID_CACHE

    _ID_CACHE["owner/model"] = "owner/model"
    backend = backend_of(lens.model, "http://there/")
    backend.display.enabled = False
    text = trace_of(USERS) + "\nRuntimeError: no"
    with pytest.raises(RemoteError) as caught:
        backend.handle(ResponseModel(id="1", status=Status.ERROR, description=text))
    assert str(caught.value).startswith("http://there: RuntimeError: no (in total, /home/me/notebook.py, line 7")
    assert caught.value.traceback == text  # type: ignore[attr-defined]


def test_a_result_inside_its_status_is_read():
    sent = ResponseModel(id="1", status=Status.COMPLETED, description="done", data=b"\x00" * 300, meta={"runtime": 0.5})
    refuse_unsafe(sent.pickle())
    refuse_unsafe(ResponseModel(id="1", status=Status.COMPLETED, data=bytes(70_000)).pickle())


def test_answers_of_every_length_near_a_frame_of_pickle_are_read():
    # A pickle is cut into frames at 64 KiB; for some lengths the cut falls between the words that name a job's state.
    for length in range(2**16 - 200, 2**16 + 20):
        content = pickle.dumps({"text": "x" * length, "status": Status.COMPLETED}, protocol=4)
        refuse_unsafe(zipped(content))


def zipped(content: bytes, name: str = "archive/data.pkl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


class Runs:
    def __reduce__(self):
        return print, ("owned",)


# What a hostile server could try: a callable, one behind an allowed name, opcodes that hide one, another file.
HOSTILE = {
    "a callable": zipped(pickle.dumps({"data": Runs()}, protocol=4)),
    "an old opcode": zipped(pickle.dumps({"data": Runs()}, protocol=0)),
    "the right name, then another": zipped(pickle.dumps([Status.ERROR, Runs()], protocol=4)),
    # Status is pushed as two words, taken off again, and what lies below is called.
    "hidden by taking off": zipped(
        b"\x80\x04\x8c\x08builtins\x8c\x05print\x8c\x17nnsight.schema.response\x8c\x06Status00\x93\x8c\x02hi\x85R."
    ),
    "hidden in the memo": zipped(
        b"\x80\x04\x8c\x08builtins\x94\x8c\x05print\x94\x8c\x17nnsight.schema.response\x8c\x06Status"
        b"h\x00h\x01\x93\x8c\x02hi\x85R."
    ),
    "a call of a state's method": zipped(b"\x80\x04cnnsight.schema.response\nStatus.mro\n)R."),
    "TorchScript": zipped(b"\x80\x04N.", "archive/constants.pkl"),
    "no zip at all": pickle.dumps(Runs()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_that_could_run_code_is_not_read(name, capsys):
    with pytest.raises(ValueError, match="it is not read"):
        refuse_unsafe(HOSTILE[name])
    assert "owned" not in capsys.readouterr().out


def test_results_are_loaded_as_tensors_only(monkeypatch):
    from conftest import tiny_lens

    from mmneuron_lens.runtime.remote import RemoteFailed, backend_of

    lens = tiny_lens("llava_next")
    monkeypatch.setattr(type(lens.nnsight), "to_model_key", lambda self: KEY)
    backend = backend_of(lens.model, "http://there")
    backend.compress = False
    file = io.BytesIO()
    torch.save({"value": Runs()}, file)
    with pytest.raises(RemoteFailed, match="http://there: the answer is not plain tensors; it is not read") as caught:
        backend.finalize(file.getvalue())
    assert "Weights only load failed" in caught.value.traceback
