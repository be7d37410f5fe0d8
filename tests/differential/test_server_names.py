"""TLS towards upstreams whose name is that of each request (auto_sni, auto_san_validation), ours and the real Envoy."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.differential.bootstrap import template
from tests.differential.proxies import Proxy
from wire import x509
from wire.secret_file import write_secret

TYPE = "type.googleapis.com/envoy.extensions."
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Server:
    """Answers with the server name that it was asked for; its one certificate is for *.wild.example."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        root_key, key = x509.new_key(), x509.new_key()
        root = x509.self_signed_root(root_key, ttl=timedelta(days=1), now=now)
        (folder / "root.pem").write_bytes(x509.to_pem(root))
        leaf = x509.issue(
            key.public_key(), ca_cert=root, ca_key=root_key, ttl=timedelta(days=1), now=now,
            dns_sans=["*.wild.example"],
        )  # fmt: skip
        (folder / "leaf.pem").write_bytes(x509.to_pem([leaf, root]))
        write_secret(folder / "leaf.key", x509.key_to_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
        names: dict[ssl.SSLObject | ssl.SSLSocket, str | None] = {}

        def note(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            names[connection] = name

        context.sni_callback = note

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = str(names.get(self.connection)).encode()  # type: ignore[call-overload]
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(params=["ours", pytest.param("envoy", marks=pytest.mark.envoy)])
def entry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The port of a proxy that calls the server."""
    server = Server(tmp_path)
    tls = {
        "@type": TYPE + "transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": {"trusted_ca": {"filename": "@{folder}/root.pem"}}},
    }
    options = {
        "@type": TYPE + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "upstream_http_protocol_options": {"auto_sni": True, "auto_san_validation": True},
    }
    spec = {
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    {
                        "match": {"prefix": "/rewritten"},
                        "route": {"cluster": "a", "host_rewrite_literal": "r.wild.example"},
                    },
                    {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
                ],
            }
        ],
        "clusters": {
            "a": {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "typed_extension_protocol_options": {HTTP_OPTIONS: options},
            }
        },
    }
    text, names = template(spec)
    unused = str(server.port)
    proxy = Proxy(request.param, text, names, {"a": str(server.port), "b": unused, "dead": unused}, tmp_path)
    try:
        proxy.wait()
        yield proxy.ports["main"]
    finally:
        proxy.close()
        server.close()


def get(port: int, host: str, path: str = "/") -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", path, headers={"host": host})
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    finally:
        client.close()


def test_the_server_is_asked_for_and_judged_by_the_name_of_each_request(entry: int) -> None:
    # Each name twice: connections are used again for their own name and no other.
    for host in ("a.wild.example", "b.wild.example:8443", "a.wild.example", "b.wild.example"):
        assert get(entry, host) == (200, host.partition(":")[0])
    assert get(entry, "other.example", "/rewritten") == (200, "r.wild.example")
    for host in ("other.example", "wild.example", "a.b.wild.example", "127.0.0.1", "evil.example"):
        assert get(entry, host)[0] == 503
    assert get(entry, "a.wild.example") == (200, "a.wild.example")
