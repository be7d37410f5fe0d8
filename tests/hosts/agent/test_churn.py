"""The host process after very many questions, clients and probes is what it was before them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dns.message
import dns.query
import trio

from agent.host.admin import local_socket
from tests.hosts.agent.conftest import Agent, Mesh, eventually
from tests.hosts.agent.held import resident

FLAT = 2 << 20
"""Bytes by which the process may have grown after the warm-up."""
RUNS = 30
"""Of each probe, while the rest goes on."""
NAMES = ("reviews", "reviews.default.svc.cluster.local", "nowhere.default.svc.cluster.local")
PAGES = ("stats", "clusters", "config_dump", "listeners", "certs", "nowhere")
HALF = b"GET /ready HTTP/1.1\r\nhost: 127.0.0.1\r\n"
REVIEWS: dict[str, Any] = {"service": "reviews", "ports": [{"name": "http", "port": 9080}]}


class _Application(BaseHTTPRequestHandler):
    """Every third probe fails."""

    runs: int

    def do_GET(self) -> None:
        type(self).runs += 1
        self.send_response(503 if self.runs % 3 == 0 else 200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def application() -> Iterator[tuple[int, type[_Application]]]:
    """Its port, and what counts its probes."""
    kind = type("Application", (_Application,), {"runs": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1], kind
        finally:
            server.shutdown()
            thread.join()


def ask_names(agent: Agent, times: int) -> None:
    """Over UDP and TCP, with some that are cut off and some that are no questions."""
    port = agent.ports["dns"]
    for number in range(times):
        query = dns.message.make_query(NAMES[number % len(NAMES)], "A" if number % 2 else "AAAA")
        dns.query.udp(query, "127.0.0.1", port=port, timeout=5)
        dns.query.tcp(query, "127.0.0.1", port=port, timeout=5)
        with socket.create_connection(("127.0.0.1", port)) as cut_off:
            cut_off.sendall(b"\x00\x40half a question")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"no question", ("127.0.0.1", port))


def call_pages(agent: Agent, times: int) -> None:
    """Half-open requests beside whole ones: more than there are seats, some of them finished, some reset."""
    for name in ("admin", "readiness", "metrics"):
        where = ("127.0.0.1", agent.ports[name])
        with ExitStack() as stack:
            half = [stack.enter_context(socket.create_connection(where)) for _ in range(times)]
            for number, sock in enumerate(half):
                with suppress(ConnectionError):  # displaced by a newer one
                    sock.sendall(HALF[: number % len(HALF)])
            for sock in half[::3]:
                with suppress(ConnectionError):
                    sock.sendall(b"\r\n\r\n")
                    sock.recv(65536)
            for path in PAGES:
                whole = stack.enter_context(socket.create_connection(where))
                whole.sendall(
                    f"GET /{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
                )
                while whole.recv(1 << 20):
                    pass


def call_commands(agent: Agent, times: int) -> None:
    """Over the local socket: whole ones, unknown ones, and clients that leave at once."""
    path = agent.directory / "run" / "agent.sock"
    for _ in range(times):
        assert agent.status()
        with suppress(local_socket.CommandError):
            trio.run(local_socket.ask, path, "nothing")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b'{"do"')


def churn(agent: Agent, times: int) -> None:
    ask_names(agent, times)
    call_pages(agent, times)
    call_commands(agent, times // 5)


def test_a_host_process_after_very_many_questions_clients_and_probes_is_what_it_was(mesh: Mesh) -> None:
    with application() as (port, by_http), application() as (other_port, by_command):
        timing = {"periodSeconds": 0.1, "timeoutSeconds": 5}
        command = ["curl", "-sf", f"http://127.0.0.1:{other_port}/"]
        probes = {
            "reviews": {"httpGet": {"host": "127.0.0.1", "port": port, "path": "/"}, **timing},
            "ratings": {"exec": {"command": command}, **timing},
        }
        agents = [
            mesh.agent(
                name,
                {**REVIEWS, "service": name, "serviceAccount": name, "probe": probe},
                addresses=[f"127.0.0.{number}"],
            ).start()
            for number, (name, probe) in enumerate(probes.items(), 2)
        ]
        for agent in agents:
            agent.ready()
            churn(agent, 40)
        pids = [agent.process.process.pid for agent in agents]
        before = [resident(pid) for pid in pids]
        for agent in agents:
            churn(agent, 80)
        for kind in (by_http, by_command):
            eventually("probes run", lambda kind=kind: kind.runs >= RUNS)
        grown = [resident(pid) - size for pid, size in zip(pids, before, strict=True)]
        assert max(grown) <= FLAT, f"grown by {grown} bytes"
        mesh.check_leftovers()
