"""Clusters whose endpoints are names, through our proxy or the real Envoy; run inside namespaces of its own (test_dns.py).

A name server on 127.0.0.1 answers what a scenario says, and changes its mind; three backends say who they are. What clients
saw comes out as JSON. Waiting is for answers and for questions that the name server has counted, never for time alone.
"""

from __future__ import annotations

import http.server
import json
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.differential.proxies import Proxy

_PATIENCE = 15.0
A, B, SIX = "127.0.0.1", "127.0.0.2", "::1"
Zone = tuple[list[str], list[str]] | str
"""IPv4 and IPv6 addresses, or `nx` or `servfail`."""


class NameServer:
    """UDP and TCP on port 53."""

    def __init__(self, delay: float) -> None:
        self.zones: dict[str, Zone] = {}
        self.asked: Counter[str] = Counter()
        self.by_tcp: set[str] = set()
        self.ttl = 1
        self._delay = delay
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((A, 53))
        tcp = socket.create_server((A, 53))
        threading.Thread(target=self._datagrams, args=(udp,), daemon=True).start()
        threading.Thread(target=self._connections, args=(tcp,), daemon=True).start()

    def _datagrams(self, udp: socket.socket) -> None:
        while True:
            query, peer = udp.recvfrom(2048)
            threading.Timer(
                self._delay, lambda q=query, p=peer: udp.sendto(self._answer(q, False), p)
            ).start()

    def _connections(self, tcp: socket.socket) -> None:
        while True:
            connection, _ = tcp.accept()
            threading.Thread(target=self._stream, args=(connection,), daemon=True).start()

    def _stream(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(2)) == 2:
                answer = self._answer(stream.read(int.from_bytes(head)), True)
                connection.sendall(len(answer).to_bytes(2) + answer)

    def _answer(self, query: bytes, tcp: bool) -> bytes:
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode().lower())
            at += 1 + query[at]
        kind, end = int.from_bytes(query[at + 1 : at + 3]), at + 5
        name = ".".join(labels)
        self.asked[name] += 1
        if tcp:
            self.by_tcp.add(name)
        zone = self.zones.get(name, "nx")
        records: list[bytes] = []
        code = {"nx": 3, "servfail": 2}.get(zone, 0) if isinstance(zone, str) else 0
        if not isinstance(zone, str):
            records = [socket.inet_pton(socket.AF_INET, one) for one in zone[0]] if kind == 1 else []
            records += [socket.inet_pton(socket.AF_INET6, one) for one in zone[1]] if kind == 28 else []
        head = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
        body = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(one)) + one for one in records
        )
        return head + query[12:end] + body


def backend(host: str, port: int, family: socket.AddressFamily) -> int:
    """A server that answers with its address; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(host)))
            self.end_headers()
            self.wfile.write(host.encode())

        def log_message(self, *_: Any) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        address_family = family
        daemon_threads = True

    server = Server((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def cluster(name: str, kind: str, names: list[str], port: int, **more: Any) -> dict[str, Any]:
    where = [{"endpoint": {"address": {"socket_address": {"address": n, "port_value": port}}}} for n in names]
    return {
        "name": name, "type": kind, "connect_timeout": "1s", "dns_refresh_rate": "0.2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": where}]}, **more,
    }  # fmt: skip


def bootstrap(clusters: list[dict[str, Any]]) -> str:
    types = "type.googleapis.com/envoy.extensions.filters"
    routes = [{"match": {"prefix": f"/{one['name']}"}, "route": {"cluster": one["name"]}} for one in clusters]
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "x", "codec_type": "HTTP1",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "r", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}],
    }  # fmt: skip
    main = {
        "name": "main",
        "address": {"socket_address": {"address": A, "port_value": "@{main}"}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    admin = {"address": {"socket_address": {"address": A, "port_value": "@{admin}"}}}
    text = yaml.safe_dump({"admin": admin, "static_resources": {"listeners": [main], "clusters": clusters}})
    return text.replace("'@{main}'", "@{main}").replace("'@{admin}'", "@{admin}")


class Trial:
    """One proxy before the name server and the backends."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.names = NameServer(0.15)
        port = backend(A, 0, socket.AF_INET)
        backend(B, port, socket.AF_INET)
        backend(SIX, port, socket.AF_INET6)
        every: list[str] = []

        def one(
            name: str, kind: str = "STRICT_DNS", more_names: tuple[str, ...] = (), **more: Any
        ) -> dict[str, Any]:
            every.append(name)
            return cluster(name, kind, [f"{name}.test", *(f"{n}.test" for n in more_names)], port, **more)

        slow = {"dns_refresh_rate": "60s"}
        backoff = {"dns_failure_refresh_rate": {"base_interval": "0.1s", "max_interval": "0.2s"}}
        clusters = [
            one("good", more_names=("missing",)), one("gone"), one("kept"), one("order"), one("moves", "LOGICAL_DNS"),
            one("stays", "LOGICAL_DNS"), one("lives", respect_dns_ttl=True, **slow), one("stream", use_tcp_for_dns_lookups=True),
            one("again", **slow, **backoff), one("auto"), one("four", dns_lookup_family="V4_PREFERRED"),
            one("six", dns_lookup_family="V6_ONLY"), one("all", dns_lookup_family="ALL"),
        ]  # fmt: skip
        self.names.zones = {f"{name}.test": ([A], []) for name in every}
        both: Zone = ([A], [SIX])
        for name in ("auto", "four", "six", "all"):
            self.names.zones[f"{name}.test"] = both
        self.names.zones |= {"order.test": ([A, B], []), "moves.test": ([A, B], []), "again.test": "servfail"}
        self.proxy = Proxy(kind, bootstrap(clusters), ["main"], {}, folder)

    def ask(self, name: str) -> str:
        """Who answered, or the status."""
        url = f"http://{A}:{self.proxy.ports['main']}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.code)

    def several(self, name: str, times: int = 4) -> list[str]:
        return sorted({self.ask(name) for _ in range(times)})

    def stat(self, name: str) -> int:
        url = f"http://{A}:{self.proxy.ports['admin']}/stats?filter=^{name}$"
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.read().decode().rpartition(":")[2] or 0)

    def until(self, what: Callable[[], bool]) -> bool:
        """Whether it came true in time."""
        deadline = time.monotonic() + _PATIENCE
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def asked_again(self, times: int, *names: str) -> None:
        """Wait for so many more questions of each name."""
        goals = {f"{name}.test": self.names.asked[f"{name}.test"] + times for name in names}
        self.until(lambda: all(self.names.asked[name] >= goal for name, goal in goals.items()))

    def run(self) -> dict[str, Any]:
        first = ""

        def answered() -> bool:
            nonlocal first
            try:
                first = self.ask("order")
            except OSError:
                return False
            return True

        self.until(answered)
        seen: dict[str, Any] = {"the first answer": "200" if "." in first else first}
        self.until(lambda: self.ask("six") == SIX)
        seen["one name of two is missing"] = self.several("good")
        seen["families"] = {name: self.several(name, 6) for name in ("auto", "four", "six", "all")}
        seen["by TCP"] = ["stream.test" in self.names.by_tcp, "good.test" in self.names.by_tcp]
        self.asked_again(6, "again")
        seen["failing"] = self.ask("again")
        changes = self.stat("cluster.order.membership_change")
        self.names.zones |= {
            "gone.test": "nx", "kept.test": "servfail", "stays.test": "nx", "order.test": ([B, A], []),
            "moves.test": ([B, A], []),
            "lives.test": ([B], []), "again.test": ([A], []),
        }  # fmt: skip
        seen["NXDOMAIN removes hosts"] = self.until(lambda: self.ask("gone") == "503")
        seen["the answer's lifetime counts"] = self.until(lambda: self.ask("lives") == B)
        seen["LOGICAL_DNS follows the answer"] = self.until(lambda: self.ask("moves") == B)
        seen["the failing name came back"] = self.until(lambda: self.ask("again") == A)
        self.asked_again(4, "kept", "stays", "order")
        seen["SERVFAIL keeps hosts"] = self.several("kept")
        seen["NXDOMAIN keeps the host of LOGICAL_DNS"] = self.several("stays")
        seen["another order is no change"] = self.stat("cluster.order.membership_change") - changes
        self.names.zones["gone.test"] = ([B], [])
        seen["a name comes back"] = self.until(lambda: self.ask("gone") == B)
        return seen


def main() -> None:
    trial = Trial(sys.argv[1], Path(sys.argv[2]))
    try:
        sys.stdout.write(json.dumps(trial.run()))
    finally:
        trial.proxy.close()


if __name__ == "__main__":
    main()
