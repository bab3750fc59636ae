"""A small NDIF over HTTP on loopback, in this process, with faults on request.

It speaks what `RemoteBackend(blocking=False)` speaks: POST /request, GET /response/{id}, and a URL for the result. A
payload goes through `RequestModel.deserialize` and runs on a model of its own. Faults are named by the number of the
request at which they strike: "drop" closes the connection, a number is an HTTP status, a callable is called.
"""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import zstandard
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc


def served_model(folder: Any) -> Any:
    """The model of a folder as a server holds it."""
    model = TransformersModel(str(folder), task="image-text-to-text", dispatch=True)
    model._module.eval()
    return model


class FakeNdif:
    """`with FakeNdif(model) as server: server.url`; the model as a server loads it, from its folder.

    rounds: how often a job answers RUNNING before it runs.
    """

    def __init__(self, model: Any, rounds: int = 1) -> None:
        self.model, self.rounds = model, rounds
        self.key = self.model.to_model_key()
        self.faults: dict[int, Any] = {}
        self.errors: list[str] = []
        self.requests = 0
        self.submitted: list[str] = []
        self.ran: list[str] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> FakeNdif:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.serve(self)

            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.serve(self)

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *trouble: Any) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def forget(self) -> None:
        """What a restart of redis and of a store in memory does."""
        self.jobs.clear()
        self.results.clear()

    def serve(self, handler: Any) -> None:
        with self.lock:
            path = handler.path
            if path in ("/status", "/env"):
                return self.say(handler, 200, self.public(path))
            self.requests += 1
            fault = self.faults.get(self.requests)
            if isinstance(fault, Callable):
                fault = fault(handler)
            if fault == "drop":
                handler.close_connection = True
                handler.connection.close()
                return None
            if isinstance(fault, int):
                return self.say(handler, fault, {"detail": "compute backend is reconnecting"})
            if handler.command == "POST":
                return self.say(handler, 200, self.receive(handler))
            kind, _, name = path.strip("/").partition("/")
            if kind == "results":
                content = self.results.get(name)
                return self.say(handler, 404, {}) if content is None else self.send(handler, 200, content)
            if name not in self.jobs:
                return self.say(handler, 404, {"detail": f"No response for request {name}."})
            return self.say(handler, 200, self.progress(name))

    def public(self, path: str) -> dict[str, Any]:
        if path == "/env":
            return {"packages": {}}
        repo = json.loads(self.key.partition(":")[2])["repo_id"]
        one = {"model_key": self.key, "repo_id": repo, "task": "image-text-to-text", "deployment_level": "HOT"}
        return {"deployments": {"one": one}}

    def receive(self, handler: Any) -> dict[str, Any]:
        boundary = handler.headers["Content-Type"].partition("boundary=")[2].encode()
        parts = {}
        for part in handler.body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            parts[head.partition(b'name="')[2].partition(b'"')[0].decode()] = content[:-2]
        assert json.loads(parts["data"])["model_key"] == self.key
        job = str(uuid.uuid4())
        compressed = json.loads(parts["data"])["compress"]
        self.jobs[job] = {"blob": parts["blob"], "compressed": compressed, "asked": 0, "last": None}
        self.submitted.append(job)
        return {"id": job, "status": "RECEIVED", "description": ""}

    def progress(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        job["asked"] += 1
        if job["last"] is None and job["asked"] > self.rounds:
            if self.errors:
                job["last"] = {"id": name, "status": "ERROR", "description": self.errors.pop(0)}
            else:
                job["last"] = self.run(name, job)
        return job["last"] or {"id": name, "status": "RUNNING", "description": ""}

    def run(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        import linecache

        kept = [dict(some) for some in (linecache.cache, SOURCES, BLOCKS)]
        try:
            saved = self.execute(job)
        except Exception as error:
            import traceback

            return {"id": name, "status": "ERROR", "description": "".join(traceback.format_exception(error))}
        finally:
            for some, before in zip((linecache.cache, SOURCES, BLOCKS), kept, strict=True):
                some.clear()
                some.update(before)
        file = io.BytesIO()
        torch.save(saved, file)
        content = file.getvalue()
        self.results[name] = zstandard.ZstdCompressor().compress(content) if job["compressed"] else content
        self.ran.append(name)
        return {"id": name, "status": "COMPLETED", "description": "", "data": f"{self.url}/results/{name}"}

    def execute(self, job: dict[str, Any]) -> dict[str, Any]:
        persistent = self.model._remoteable_persistent_objects()
        tracer = RequestModel.deserialize(job["blob"], persistent, compress=job["compressed"])
        inc()
        try:
            tracer.execute(tracer.info.code)
            saves = _saves()
            return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in saves}
        finally:
            dec()

    def say(self, handler: Any, code: int, value: Any) -> None:
        self.send(handler, code, json.dumps(value).encode())

    def send(self, handler: Any, code: int, content: bytes) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
