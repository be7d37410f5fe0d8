"""The DNS listeners and the forwarder over real loopback sockets, with an upstream of our own making."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import trio
import trio.testing

from agent.host.dns.forward import Forwarder, Limits, receive_framed
from agent.host.dns.names import Addresses, Names
from agent.host.dns.resolv_conf import Resolvers, nameservers
from agent.host.dns.server import DnsServer
from tests.ports import free_port

NAMES = Names(
    {"reviews.default.svc.cluster.local": Addresses.of(["240.240.0.1"])}, {}, "default", "cluster.local"
)
FAST = Limits(stagger=0.05, total=1.0)
Reply = Callable[[bytes], list[bytes]]


def echo(query: bytes) -> list[bytes]:
    """The query with QR set, and bytes behind it that no DNS library would make."""
    return [query[:2] + bytes([query[2] | 0x80]) + query[3:] + b"\x00untouched\xff"]


class Upstream:
    """A resolver on 127.0.0.1 that answers with whatever `reply` makes of a query; it keeps what it saw."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.seen: list[tuple[bytes, int]] = []
        self.port = 0

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.bind(("127.0.0.1", self.port))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self.connection, listeners)
                task_status.started()
                while True:
                    query, source = await sock.recvfrom(4096)
                    self.seen.append((query, source[1]))
                    for answer in self.reply(query):
                        await sock.sendto(answer, source)

    async def connection(self, stream: trio.SocketStream) -> None:
        query = await receive_framed(stream)
        assert query is not None
        answer = self.reply(query)[-1]
        await stream.send_all(len(answer).to_bytes(2) + answer)
        await stream.aclose()


def with_server(
    test: Callable[[DnsServer, Upstream], Awaitable[None]],
    reply: Reply = echo,
    servers: tuple[str, ...] = ("127.0.0.1",),
    limits: Limits = FAST,
) -> None:
    async def main() -> None:
        upstream = Upstream(reply)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(upstream.serve)
                server = DnsServer(NAMES, Forwarder(lambda: servers, limits, port=upstream.port))
                await nursery.start(server.serve, free_port())
                await test(server, upstream)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def udp(port: int, query: bytes, address: str = "127.0.0.1") -> bytes:
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect((address, port))
        await sock.send(query)
        return await sock.recv(65535)


def test_mesh_names_are_answered_on_all_four_sockets() -> None:
    async def test(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query("reviews", "A")
        for address in ("127.0.0.1", "::1"):
            by_udp = dns.message.from_wire(await udp(server.port, query.to_wire(), address))
            assert by_udp.answer[0][0].to_text() == "240.240.0.1"
            stream = await trio.open_tcp_stream(address, server.port)
            for _ in range(2):
                wire = query.to_wire()
                await stream.send_all(len(wire).to_bytes(2) + wire)
                assert await receive_framed(stream) == by_udp.to_wire()
            await stream.aclose()
        assert not upstream.seen

    with_server(test)


def test_other_names_go_to_the_hosts_resolver_and_come_back_byte_for_byte() -> None:
    async def test(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query(
            "example.com", "A", use_edns=0, payload=4096, want_dnssec=True
        ).to_wire()
        assert await udp(server.port, query) == echo(query)[0]
        assert await udp(server.port, query) == echo(query)[0]
        assert all(seen[2:] == query[2:] for seen, _ in upstream.seen)
        assert (
            upstream.seen[0][0][:2] != upstream.seen[1][0][:2] or upstream.seen[0][1] != upstream.seen[1][1]
        )

    with_server(test)


def test_a_truncated_answer_is_passed_on_and_tcp_goes_upstream_by_tcp() -> None:
    def truncated(query: bytes) -> list[bytes]:
        return [query[:2] + b"\x82\x00" + query[4:]]

    async def test(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query("example.com", "TXT").to_wire()
        assert dns.message.from_wire(await udp(server.port, query)).flags & dns.flags.TC
        upstream.reply = echo
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(len(query).to_bytes(2) + query)
        assert await receive_framed(stream) == echo(query)[0]
        assert len(upstream.seen) == 1, "the second question came by TCP"
        await stream.aclose()

    with_server(test, truncated)


def test_forged_answers_are_ignored() -> None:
    def forged_first(query: bytes) -> list[bytes]:
        wrong_id = bytes([query[0] ^ 1]) + echo(query)[0][1:]
        other = dns.message.make_query("evil.example", "A").to_wire()
        wrong_question = query[:2] + b"\x81\x80" + other[4:]
        return [wrong_id, wrong_question, query, *echo(query)]

    async def test(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query("example.com", "A").to_wire()
        assert await udp(server.port, query) == echo(query)[0]

    with_server(test, forged_first)


def test_the_next_server_is_asked_when_one_refuses_or_is_silent() -> None:
    async def test(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query("example.com", "A").to_wire()
        assert await udp(server.port, query) == echo(query)[0]

    # Nobody listens on 127.0.0.2; 127.0.0.1 answers.
    with_server(test, echo, ("127.0.0.2", "127.0.0.1"))


def test_no_answer_is_a_server_failure_and_a_servers_failure_is_passed_on() -> None:
    async def silent(server: DnsServer, upstream: Upstream) -> None:
        query = dns.message.make_query("example.com", "A")
        assert dns.message.from_wire(await udp(server.port, query.to_wire())).rcode() == dns.rcode.SERVFAIL

    with_server(silent, lambda query: [])
    with_server(silent, lambda query: [query[:2] + b"\x81\x82" + query[4:]])
    with_server(silent, echo, ())


def test_questions_in_flight_are_bounded() -> None:
    async def test(server: DnsServer, upstream: Upstream) -> None:
        answers: list[int] = []

        async def one(number: int) -> None:
            wire = await udp(server.port, dns.message.make_query(f"n{number}.example.com", "A").to_wire())
            answers.append(wire[3] & 0x0F)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert answers == [dns.rcode.SERVFAIL] * 8
        assert len({seen for seen, _ in upstream.seen if seen}) <= 3 * FAST.rounds

    with_server(test, lambda query: [], limits=Limits(in_flight=3, stagger=0.05, total=0.3))


def test_a_loop_through_a_local_resolver_ends() -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                forwarder = Forwarder(lambda: ("127.0.0.1",), Limits(), port=0)
                server = DnsServer(NAMES, forwarder)
                await nursery.start(server.serve, free_port())
                forwarder._port = server.port  # the host's resolver leads back to us
                query = dns.message.make_query("example.com", "A")
                answer = dns.message.from_wire(await udp(server.port, query.to_wire()))
                assert answer.rcode() == dns.rcode.SERVFAIL
                assert server.counters.queries < 200
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_garbage_does_not_end_the_listeners() -> None:
    async def test(server: DnsServer, upstream: Upstream) -> None:
        with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
            await sock.connect(("127.0.0.1", server.port))
            for garbage in (b"", b"x", bytes(11), bytes(12), os.urandom(300)):
                await sock.send(garbage)
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"\xff\xff half a message")
        await stream.aclose()
        query = dns.message.make_query("reviews", "A")
        assert dns.message.from_wire(await udp(server.port, query.to_wire())).answer

    with_server(test)


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    system, systemd = tmp_path / "resolv.conf", tmp_path / "systemd.conf"
    resolvers = Resolvers(system, systemd)
    assert resolvers.current() == ()
    system.write_text("# x\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver junk\noptions ndots:5\n")
    assert resolvers.current() == ("10.0.0.1", "fe80::1%eth0")
    system.write_text("nameserver 127.0.0.53\n")
    assert resolvers.current() == ("127.0.0.53",)
    systemd.write_text("nameserver 10.0.0.2\n")
    assert resolvers.current() == ("10.0.0.2",), "the stub's own servers, not the stub"
    assert nameservers("nameserver 1.1.1.1 # c\n;nameserver 2.2.2.2\nnameserver 1.1.1.1") == ("1.1.1.1",)
