"""A worker after a hundred thousand connections of all kinds is the worker that it was before them.

HOSTMESH_SOAK is how many connections: `make soak` has a hundred thousand, the suite as many as it has time for.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.attack import churn
from tests.attack.churn import Kind
from tests.attack.load import under_attack
from wire import x509
from wire.secret_file import write_secret

CONNECTIONS = int(os.environ.get("HOSTMESH_SOAK", "40000"))
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
