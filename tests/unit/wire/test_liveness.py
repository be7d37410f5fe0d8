"""Long-lived connections notice that the other end vanished without a word."""

from __future__ import annotations

import socket

import trio
import trio.testing

from agent.host.own_socket import connect_tcp
from wire.grpc.server import listen, port_of, serve


def test_both_ends_of_a_stream_to_istiod_look_whether_the_other_is_there() -> None:
    async def test() -> None:
        (listener,) = await listen("127.0.0.1", 0)
        assert isinstance(listener, trio.SocketListener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [listener], {})
            await trio.testing.wait_all_tasks_blocked()
            async with await connect_tcp("127.0.0.1", port_of(listener)) as client:
                for sock in (listener.socket, client.socket):
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 15
                    assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000
            nursery.cancel_scope.cancel()

    trio.run(test)
