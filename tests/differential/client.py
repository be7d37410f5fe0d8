"""A client that writes bytes and reports what came back, without an HTTP library that would mend anything."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One response as read from the wire."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    complete: bool = True

    def header(self, name: str) -> str | None:
        """First value of a header."""
        return next((value for other, value in self.headers if other.lower() == name), None)


@dataclass
class Conversation:
    """Everything that one connection answered, and how it ended: `open`, `closed` or `reset`."""

    answers: list[Answer]
    ending: str
    rest: bytes = b""


def build(request: dict[str, object]) -> bytes:
    """Bytes of a request written as method, path, headers and body."""
    method, path = str(request.get("method", "GET")), str(request.get("path", "/"))
    headers: list[tuple[str, str]] = []
    for item in request.get("headers", []) or []:  # type: ignore[attr-defined]
        name, _, value = str(item).partition(":")
        headers.append((name.strip(), value.strip()))
    if not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("host", str(request.get("host", "test.example"))))
    body = str(request.get("body", "")).encode("latin-1")
    if body and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        headers.append(("content-length", str(len(body))))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
    return head.encode("latin-1") + body


def converse(
    port: int, payloads: list[bytes], *, expected: int, timeout: float = 8.0, heads: tuple[bool, ...] = (),
    shut: bool = False, linger: float = 0.2,
) -> Conversation:  # fmt: skip
    """Send the payloads (the next one after an answer began), read up to `expected` answers, see how it ends."""
    answers: list[Answer] = []
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = _Reader(connection, time.monotonic() + timeout)
        try:
            for position, payload in enumerate(payloads):
                connection.sendall(payload)
                if position == len(payloads) - 1 and shut:
                    connection.shutdown(socket.SHUT_WR)
                if len(payloads) > 1:
                    answer = reader.answer(heads[position] if position < len(heads) else False)
                    if answer is None:
                        break
                    answers.append(answer)
            while len(answers) < expected:
                answer = reader.answer(heads[len(answers)] if len(answers) < len(heads) else False)
                if answer is None:
                    break
                answers.append(answer)
        except (ConnectionResetError, BrokenPipeError):
            return Conversation(answers, "reset", bytes(reader.buffer))
        if answers and answers[-1].status == 101:
            return Conversation(answers, "tunnel", bytes(reader.buffer))
        return Conversation(answers, reader.ending(linger), bytes(reader.buffer))


class _Reader:
    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline, self.buffer, self.eof = connection, deadline, bytearray(), False

    def more(self, wait: float | None = None) -> bool:
        if self.eof:
            return False
        left = self.deadline - time.monotonic() if wait is None else wait
        if left <= 0:
            return False
        self.connection.settimeout(left)
        try:
            data = self.connection.recv(65536)
        except TimeoutError:
            return False
        if not data:
            self.eof = True
            return False
        self.buffer += data
        return True

    def line(self) -> bytes | None:
        while b"\n" not in self.buffer:
            if not self.more():
                return None
        at = self.buffer.index(b"\n") + 1
        taken = bytes(self.buffer[:at])
        del self.buffer[:at]
        return taken

    def take(self, size: int) -> tuple[bytes, bool]:
        while len(self.buffer) < size:
            if not self.more():
                break
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken, len(taken) == size

    def fields(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        while (line := self.line()) and line not in (b"\r\n", b"\n"):
            name, _, value = line.decode("latin-1").partition(":")
            found.append((name, value.strip()))
        return found

    def answer(self, head: bool) -> Answer | None:
        interim: list[int] = []
        while True:
            line = self.line()
            if line is None:
                return None
            parts = line.decode("latin-1").rstrip().split(" ", 2)
            status = int(parts[1])
            headers = self.fields()
            if status >= 200 or status == 101:
                break
            interim.append(status)
        answer = Answer(status, parts[2] if len(parts) > 2 else "", headers, b"", interim=interim)
        if head or status in (101, 204, 304):
            return answer
        if "chunked" in (answer.header("transfer-encoding") or ""):
            while True:
                size_line = self.line()
                if size_line is None:
                    answer.complete = False
                    return answer
                size = int(size_line.split(b";")[0], 16)
                if size == 0:
                    answer.trailers = self.fields()
                    return answer
                data, whole = self.take(size)
                answer.body += data
                self.line()
                if not whole:
                    answer.complete = False
                    return answer
        length = answer.header("content-length")
        if length is not None:
            answer.body, answer.complete = self.take(int(length))
            return answer
        while self.more():
            continue
        answer.body = bytes(self.buffer)
        self.buffer.clear()
        return answer

    def ending(self, linger: float) -> str:
        if self.eof:
            return "closed"
        try:
            self.more(linger)
        except ConnectionResetError:
            return "reset"
        return "closed" if self.eof else "open"
