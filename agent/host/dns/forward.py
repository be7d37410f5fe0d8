"""Questions that are not about the mesh go to the server that they were sent to and come back byte for byte.

Rule: only the message id is changed on the way out (a random one of ours, from a random port) and changed
back; an answer counts only with that id, from that server, to that question. What is in flight is bounded.
Where the original server cannot be determined, the host's own resolvers are asked.
Not for: mesh names. Sources: RFC 5452 §9 (forged answers), RFC 7766 (TCP).
"""

from __future__ import annotations

import math
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

import trio

from agent.host.dns.names import question_end
from agent.host.own_socket import mark

_SERVER_FAILED = frozenset({2, 5})  # SERVFAIL, REFUSED: worth asking the next server


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds."""

    in_flight: int = 1024
    stagger: float = 1.0
    """After this long without an answer the next server is asked as well."""
    total: float = 5.0
    rounds: int = 2
    same_question: int = 32
    """With a server on this host: more equal questions at once than this are a loop, and fail. No loop is possible where
    the server that a question was sent to is known."""


class Forwarder:
    """Asks the host's resolvers. Invariant: at most `limits.in_flight` questions are out."""

    def __init__(
        self,
        servers: Callable[[], tuple[str, ...]],
        limits: Limits = Limits(),
        port: int = 53,
    ) -> None:
        self._servers, self._limits, self._port = servers, limits, port
        self._in_flight = 0
        self._asked: Counter[bytes] = Counter()
        self.forwarded = 0
        self.failed = 0

    async def ask(self, query: bytes, *, stream: bool, server: str | None = None) -> bytes | None:
        """The answer of the server that was asked (None: of the first of the host's resolvers that gives a good one);
        None when none answers or too much is out."""
        servers = self._servers() if server is None else (server,)
        question = query[12:].lower()
        looping = self._asked[question] >= self._limits.same_question and any(map(_is_loopback, servers))
        looping = looping and server is None
        if not servers or len(query) < 12 or self._in_flight >= self._limits.in_flight or looping:
            self.failed += 1
            return None
        self._in_flight += 1
        self._asked[question] += 1
        try:
            answer = await self._race(query, servers, stream=stream)
        finally:
            self._in_flight -= 1
            self._asked[question] -= 1
            if not self._asked[question]:
                del self._asked[question]
        if answer is None:
            self.failed += 1
            return None
        self.forwarded += 1
        return answer

    async def _race(self, query: bytes, servers: tuple[str, ...], *, stream: bool) -> bytes | None:
        best: bytes | None = None
        rounds = 1 if stream else self._limits.rounds
        attempts = [server for _ in range(rounds) for server in servers]
        answered: set[str] = set()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + self._limits.total

            async def attempt(server: str, done: trio.Event) -> None:
                nonlocal best
                try:
                    answer = await (self._by_tcp if stream else self._by_udp)(server, query)
                except (OSError, EOFError):
                    answer = None
                if answer is not None and (answer[3] & 0x0F) not in _SERVER_FAILED:
                    best = answer
                    nursery.cancel_scope.cancel()
                elif answer is not None:
                    answered.add(server)
                    best = best or answer
                done.set()

            for index, server in enumerate(attempts):
                if server in answered:
                    continue  # it failed and said so; only silence is worth a second try
                done = trio.Event()
                nursery.start_soon(attempt, server, done)
                last = index == len(attempts) - 1
                with trio.move_on_after(math.inf if last else self._limits.stagger):
                    await done.wait()
        return best

    async def _by_udp(self, server: str, query: bytes) -> bytes | None:
        identity = secrets.token_bytes(2)
        family, address = await _sockaddr(server, self._port)
        with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
            mark(sock)
            await sock.connect(address)
            await sock.send(identity + query[2:])
            while True:
                answer = await sock.recv(65535)
                if _belongs(answer, identity, query):
                    return query[:2] + answer[2:]

    async def _by_tcp(self, server: str, query: bytes) -> bytes | None:
        identity = secrets.token_bytes(2)
        family, address = await _sockaddr(server, self._port)
        with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
            mark(sock)
            await sock.connect(address)
            stream = trio.SocketStream(sock)
            await stream.send_all(len(query).to_bytes(2) + identity + query[2:])
            answer = await receive_framed(stream)
        return query[:2] + answer[2:] if answer and _belongs(answer, identity, query) else None


async def receive_framed(stream: trio.abc.ReceiveStream) -> bytes | None:
    """One length-prefixed message (RFC 1035 §4.2.2); None at a clean end, EOFError inside a message."""
    buffer = bytearray()
    while len(buffer) < 2 or len(buffer) < 2 + int.from_bytes(buffer[:2]):
        wanted = 2 if len(buffer) < 2 else 2 + int.from_bytes(buffer[:2])
        data = await stream.receive_some(wanted - len(buffer))
        if not data:
            if buffer:
                raise EOFError("the peer ended inside a message")
            return None
        buffer += data
    return bytes(buffer[2:])


def _belongs(answer: bytes, identity: bytes, query: bytes) -> bool:
    if len(answer) < 12 or answer[:2] != identity or not answer[2] & 0x80:
        return False
    end = question_end(query)
    if end is None or answer[4:6] == b"\x00\x00":
        return True  # nothing to compare (an error response may leave the question out)
    return answer[12:end].lower() == query[12:end].lower()


def _is_loopback(server: str) -> bool:
    return ip_address(server.partition("%")[0]).is_loopback


async def _sockaddr(server: str, port: int) -> tuple[int, tuple[str, int] | tuple[str, int, int, int]]:
    plain, _, zone = server.partition("%")
    if ip_address(plain).version == 4:
        return socket.AF_INET, (plain, port)
    scope = 0
    if zone:
        scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (plain, port, 0, scope)
