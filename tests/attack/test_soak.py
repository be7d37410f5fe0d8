"""A worker after a hundred thousand connections of all kinds is the worker that it was before them.

HOSTMESH_SOAK is how many connections: `make soak` has a hundred thousand, the suite as many as it has time for; so it is with
HOSTMESH_SOAK_CHANGES and configurations.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf.message import Message

from agent.table.build import CLUSTER, LISTENER
from agent.table.decode.text import parse
from tests.attack import churn
from tests.attack.churn import Kind
from tests.attack.load import under_attack
from tests.attack.remote_worker import RemoteWorker
from tests.leftovers import Leftovers
from tests.ports import free_port
from wire import x509
from wire.secret_file import write_secret

CONNECTIONS = int(os.environ.get("HOSTMESH_SOAK", "40000"))
CHANGES = int(os.environ.get("HOSTMESH_SOAK_CHANGES", "300"))
FLAT = 2 << 20
"""Bytes by which the worker may have grown after the warm-up."""
SHARES = {
    "http": 58, "opaque": 20, "refused by policy": 5, "not HTTP": 5, "reset": 4, "dead upstream": 2, "bare hello": 2,
    "not TLS": 1, "http over tls": 2, "opaque over tls": 1,
}  # fmt: skip
"""Of a hundred connections."""
_TYPE = "type.googleapis.com/envoy.extensions."
_HTTP = {
    "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]}]
}  # fmt: skip


def _opaque(cluster: str = "a") -> dict[str, Any]:
    kind = _TYPE + "filters.network.tcp_proxy.v3.TcpProxy"
    return {"name": "t", "typed_config": {"@type": kind, "stat_prefix": "t", "cluster": cluster}}


def _spec(folder: Path) -> dict[str, Any]:
    now = datetime.now(UTC)
    root_key, key = x509.new_key(), x509.new_key()
    root = x509.self_signed_root(root_key, ttl=timedelta(days=1), now=now)
    leaf = x509.issue(
        key.public_key(), ca_cert=root, ca_key=root_key, ttl=timedelta(days=1), now=now, dns_sans=["a"]
    )
    (folder / "chain.pem").write_bytes(x509.to_pem([leaf, root]))
    write_secret(folder / "key.pem", x509.key_to_pem(key))
    files = {
        "certificate_chain": {"filename": "@{folder}/chain.pem"},
        "private_key": {"filename": "@{folder}/key.pem"},
    }
    socket_type = _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext"
    secure = {
        "transport_socket": {
            "name": "tls",
            "typed_config": {"@type": socket_type, "common_tls_context": {"tls_certificates": [files]}},
        }
    }
    deny = {
        "name": "rbac",
        "typed_config": {
            "@type": _TYPE + "filters.network.rbac.v3.RBAC",
            "stat_prefix": "r",
            "rules": {
                "action": "DENY",
                "policies": {"all": {"permissions": [{"any": True}], "principals": [{"any": True}]}},
            },
        },
    }
    return {
        "listeners": {
            "main": _HTTP,
            "opaque": {"filters": [_opaque()]},
            "policy": {"filters": [deny, _opaque()]},
            "nowhere": {"filters": [_opaque("dead")]},
            "secure": {**_HTTP, "chain": secure},
            "bulk": {"filters": [_opaque()], "chain": secure},
        }
    }


def _hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a").do_handshake()
    return out.read()


def test_a_worker_after_very_many_connections_is_what_it_was(tmp_path: Path) -> None:
    echo, upstream = churn.echo()
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = free.getsockname()[1]
    try:
        with under_attack(_spec(tmp_path), tmp_path, {}, a=str(upstream), dead=str(dead)) as attack:
            ports = attack.proxy.ports
            get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
            kinds = {
                kind.name: kind
                for kind in (
                    Kind("http", ports["main"], get, b"ok"),
                    Kind("opaque", ports["opaque"], b"hello", b"hello"),
                    Kind("refused by policy", ports["policy"], b"hello"),
                    Kind("not HTTP", ports["main"], b"GARBAGE\r\n\r\n", b"400"),
                    Kind("reset", ports["main"], get, b"ok", reset=True),
                    Kind("dead upstream", ports["nowhere"], b"hello"),
                    Kind("bare hello", ports["secure"], _hello()),
                    Kind("not TLS", ports["bulk"], b"GARBAGE\r\n\r\n"),
                    Kind("http over tls", ports["secure"], get, b"ok", tls=True),
                    Kind("opaque over tls", ports["bulk"], b"hello", b"hello", tls=True),
                )
            }

            def load(connections: int) -> None:
                churn.run(
                    [(kinds[name], max(1, connections * share // 100)) for name, share in SHARES.items()]
                )

            load(CONNECTIONS // 10)
            before = attack.resident()
            load(CONNECTIONS - CONNECTIONS // 10)
            grown = attack.resident() - before
            assert grown <= FLAT, f"grown by {grown / CONNECTIONS:.0f} bytes a connection"
            echo.terminate()
            echo.join()
    finally:
        echo.terminate()
        echo.join()


_CLUSTER = """
name: {name}
type: STATIC
connect_timeout: 1s
load_assignment:
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}
"""
_LISTENER = """
name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
filter_chains:
- filters:
  - name: http
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: {stat_prefix}
      codec_type: HTTP1
      route_config:
        name: local
        virtual_hosts:
        - name: all
          domains: ["*"]
          routes:
          - {{match: {{path: /here}}, direct_response: {{status: 200, body: {{inline_string: ok}}}}}}
          - {{match: {{prefix: /{route}}}, route: {{cluster: c1}}}}
          - {{match: {{prefix: /}}, route: {{cluster: c2}}}}
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"""


def _configuration(number: int, ports: list[int]) -> dict[str, dict[str, Message]]:
    """The configuration of this number: clusters, endpoints, routes, chains and listeners come, change and go."""

    def cluster(name: str, port: int) -> Message:
        return parse(_CLUSTER.format(name=name, port=port), cluster_pb2.Cluster, name)

    def listener(name: str, port: int, stat_prefix: str, route: str) -> Message:
        text = _LISTENER.format(name=name, port=port, stat_prefix=stat_prefix, route=route)
        return parse(text, listener_pb2.Listener, name)

    clusters = {f"c{each}": cluster(f"c{each}", 1000 + (number + each) // 10 % 50) for each in range(1, 6)}
    clusters |= {f"x{number % 7}": cluster(f"x{number % 7}", 2000)}
    listeners = {"main": listener("main", ports[0], f"s{number // 3 % 3}", f"r{number % 5}")}
    if number % 4 == 0:
        listeners["other"] = listener("other", ports[1], "other", f"r{number % 3}")
    return {CLUSTER: clusters, LISTENER: listeners}


def _ask(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(b"GET /here HTTP/1.1\r\nhost: a\r\n\r\n")
        assert sock.recv(65536).endswith(b"ok")


def test_a_worker_after_very_many_configurations_is_what_it_was(tmp_path: Path) -> None:
    worker = RemoteWorker(tmp_path / "log")
    ports = [free_port(), free_port()]
    cycle = 420
    """Configurations come again after so many: the same one is in force at every look."""
    made = {number: _configuration(number, ports) for number in range(min(cycle, CHANGES))}
    try:

        def change(numbers: range) -> None:
            for number in numbers:
                worker.apply(made[number % len(made)])
                _ask(ports[0])

        warm = min(len(made), CHANGES // 3)
        change(range(warm))
        worker.apply(made[0])
        left = Leftovers(worker.holdings)
        before = worker.resident()
        change(range(warm, CHANGES))
        worker.apply(made[0])
        left.check()
        grown = worker.resident() - before
        assert grown <= FLAT, f"grown by {grown / CHANGES:.0f} bytes a change"
    finally:
        worker.close()
