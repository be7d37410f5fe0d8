"""A plain web server that knows nothing of a mesh: answers every request with what it received, as JSON.

Usage: web.py SERVICE VERSION PORT
"""

from __future__ import annotations

import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVICE, VERSION, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        answer = {
            "service": SERVICE, "version": VERSION, "host": socket.gethostname(), "path": self.path,
            "headers": dict(self.headers.items()), "body": self.rfile.read(length).decode("latin-1"),
        }  # fmt: skip
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("x-version", VERSION)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet: the mesh's access log is what the demo shows."""


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    Server(("::", PORT), Handler).serve_forever()
