"""A service of a server of one's own, as far as its health is asked: redis, HTTP, or nothing but a port.

python fake_services.py redis|http|port|none PORT STATUS      STATUS: the file that /status answers with
"""

from __future__ import annotations

import http.server
import socket
import socketserver
import sys
import time
from pathlib import Path


class Redis(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.rfile.readline() == b"PING\r\n":
            self.wfile.write(b"+PONG\r\n")


class Http(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Path(sys.argv[3]).read_bytes() if self.path == "/status" else b"{}")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    kind, where = sys.argv[1], ("127.0.0.1", int(sys.argv[2]))
    if kind in ("redis", "http"):
        Server(where, Redis if kind == "redis" else Http).serve_forever()
    with socket.socket() as one:
        if kind == "port":
            one.bind(where)
            one.listen()
        time.sleep(300)


if __name__ == "__main__":
    main()
