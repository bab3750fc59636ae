"""A stand-in for the hub's HTTP interface on 127.0.0.1: data sets of small files, committed and read, with a token."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standInForTheHub0000"


class Hub:
    """Data sets by name, each a dict of files; `requests` are the method and path of what was asked."""

    def __init__(self) -> None:
        self.sets = dict[str, dict[str, bytes]]()
        self.private = dict[str, bool]()
        self.requests = list[str]()
        self.refuses = 0
        self.url = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The stand-in while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._asked()
        if self.hub.refuses:
            return self._json({"error": "no"}, self.hub.refuses)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            there = name in self.hub.sets
            self.hub.sets.setdefault(name, {".gitattributes": b"*.bin lfs\n"})
            self.hub.private.setdefault(name, asked.get("visibility") == "private" or asked.get("private") is True)
            return self._json({"url": f"{self.hub.url}/datasets/{name}", "name": name}, 409 if there else 200)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|paths-info)/([^/]+)", path):
            files = self.hub.sets[found[1]]
            return getattr(self, f"_{found[2].replace('-', '_')}")(files, body, found[1])
        return self._json({"error": "no such interface"}, 500)

    def do_GET(self) -> None:
        path = self._asked()
        if self.hub.refuses:
            return self._json({"error": "no"}, self.hub.refuses)
        found = re.match(r"/(api/)?datasets/([^/]+/[^/]+)", path)
        known = found is not None and found[2] in self.hub.sets
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or not known or (self.hub.private[found[2]] and not allowed):
            return self._json({"error": "Repository not found"}, 404 if allowed else 401, "RepoNotFound")
        files, rest = self.hub.sets[found[2]], path[found.end() :]
        if re.fullmatch("(/revision/[^/]+)?", rest):
            return self._json({"id": found[2], "sha": "0" * 40, "private": True, "tags": [], "siblings": []})
        if tree := re.fullmatch(r"/tree/[^/]+(/.*)?", rest):
            folder = (tree[1] or "").strip("/")
            return self._json([_entry(name, one) for name, one in files.items() if name.startswith(folder)])
        if file := re.fullmatch(r"/resolve/[^/]+/(.+)", rest):
            return self._file(files.get(unquote(file[1])))
        return self._json({"error": "no such interface"}, 500)

    do_HEAD = do_GET

    def _asked(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _preupload(self, files: dict[str, bytes], body: bytes, name: str) -> None:
        asked = [one["path"] for one in json.loads(body)["files"]]
        self._json({"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in asked]})

    def _commit(self, files: dict[str, bytes], body: bytes, name: str) -> None:
        for line in filter(None, body.split(b"\n")):
            said = json.loads(line)
            if said["key"] == "file":
                files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            if said["key"] == "deletedFile":
                del files[said["value"]["path"]]
        self._json(
            {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""}
        )

    def _paths_info(self, files: dict[str, bytes], body: bytes, name: str) -> None:
        asked = json.loads(body)["paths"]
        folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
        found = [_entry(one, files[one]) for one in asked if one in files]
        found += [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in asked if one in folders]
        self._json(found)

    def _file(self, content: bytes | None) -> None:
        if content is None:
            return self._json({"error": "Entry not found"}, 404, "EntryNotFound")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def _json(self, value: Any, status: int = 200, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
