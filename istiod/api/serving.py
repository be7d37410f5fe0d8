"""Starlette on hypercorn's trio worker: one listening socket, one TLS context.

Job: serve an ASGI application over HTTP/1.1 on a socket that is already bound, with limits on sizes and
times.
Rule: HTTP/2 is not offered here, and a failure inside hypercorn ends its connections, not istiod: it is
logged and serving goes on.
Not for: gRPC (`wire.grpc`).
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("istiod.api")

MAX_BODY = 8 * 1024 * 1024
"""Bytes of one request's body."""
_SHUTDOWN_SECONDS = 2.0
_LONGEST_ANSWER = 360
"""Seconds: hypercorn counts the time of an answer (/api/v1/wait) as silence of the client."""


class _HttpConfig(Config):
    """Hypercorn's settings with a TLS context of ours instead of file names."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self.alpn_protocols = ["http/1.1"]
        self.include_server_header = False
        self.h11_max_incomplete_size = 32 * 1024
        self.keep_alive_timeout = 75
        self.read_timeout = _LONGEST_ANSWER
        self.ssl_handshake_timeout = 10
        self.graceful_timeout = _SHUTDOWN_SECONDS
        self.errorlog = logging.getLogger("hypercorn.error")
        self.accesslog = None

    @property
    def ssl_enabled(self) -> bool:
        return self._context is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._context


async def serve_http(
    app: ASGIApp,
    sock: socket.socket,
    context: ssl.SSLContext | None,
    stopping: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stopping()` returns. `sock` is bound and listening; it stays the caller's to close."""
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)
    started = False
    ended = False

    async def shutdown() -> None:
        nonlocal ended
        await stopping()
        ended = True

    wrapped: Any = wrap_app(cast(Any, limit_body(app)), MAX_BODY, "asgi")
    while not ended:
        config = _HttpConfig(context)
        copy = sock.dup()
        copy.setblocking(False)
        sockets = Sockets([copy], [], []) if context is not None else Sockets([], [copy], [])
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(worker_serve, wrapped, config, sockets=sockets, shutdown_trigger=shutdown)
                )
                if not started:
                    task_status.started()
                    started = True
        except Exception:
            if not started:
                raise
            log.exception("HTTP server failed and starts again")
            await trio.sleep(0.1)
        finally:
            copy.close()


def limit_body(app: ASGIApp) -> ASGIApp:
    """Refuse bodies above `MAX_BODY` with 413, whether announced or found while reading."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if len(announced) > 18 or not announced.isdigit() or int(announced) > MAX_BODY:
            await _too_large(send)
            return
        size = 0
        refused = False

        async def counted() -> Message:
            nonlocal size, refused
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def answer(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await app(scope, counted, answer)
        except Exception:
            if not refused:
                raise
        if refused:
            await _too_large(send)

    return limited


async def _too_large(send: Send) -> None:
    error = {
        "code": 413,
        "reason": "TooLarge",
        "message": f"a request is at most {MAX_BODY} bytes",
        "details": [],
    }
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
