"""Our server with grpcio as client, our client with a grpcio server, and each with the other."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
import trio

from wire.grpc import (
    Channel,
    ChannelLimits,
    GrpcError,
    GrpcStatus,
    Handler,
    Limits,
    ServerCall,
    listen,
    open_channel,
    port_of,
    serve,
)


def identity(message: bytes) -> bytes:
    return message


async def echo(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


async def refuse(call: ServerCall) -> None:
    await call.receive()
    raise GrpcError(GrpcStatus.PERMISSION_DENIED, "not for 100% of näh\n")


async def refuse_in_a_nursery(call: ServerCall) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(refuse, call)


async def break_down(call: ServerCall) -> None:
    raise ZeroDivisionError(call.path)


async def wait_for_ever(call: ServerCall) -> None:
    await trio.sleep_forever()


async def tell_metadata(call: ServerCall) -> None:
    text, data = call.metadata.get("x-text"), call.metadata.binary("x-data-bin")
    await call.send(repr((text, data, call.metadata.get_all("x-many"))).encode())


@asynccontextmanager
async def serving(
    handlers: dict[str, Handler], limits: Limits | None = None, shutdown: trio.Event | None = None
) -> AsyncIterator[int]:
    """Our server on a free port of the loopback; gives the port."""
    listeners = await listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(listeners, handlers, limits=limits, shutdown=shutdown, grace=1))
        yield port_of(listeners[0])
        nursery.cancel_scope.cancel()


def calling(handlers: dict[str, Handler], client: Callable[[grpc.Channel], None]) -> None:
    """Run a grpcio client in a thread against our server."""

    def run(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client(channel)

    async def main() -> None:
        with trio.fail_after(30):
            async with serving(handlers) as port:
                await trio.to_thread.run_sync(run, port)

    trio.run(main)


def error_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()  # type: ignore[attr-defined]


def test_grpcio_calls_our_server_and_hears_every_kind_of_end(caplog: pytest.LogCaptureFixture) -> None:
    def client(channel: grpc.Channel) -> None:
        def unary(path: str, message: bytes = b"x", timeout: float = 10) -> bytes:
            result = channel.unary_unary(path, identity, identity)(message, timeout=timeout)
            assert isinstance(result, bytes)
            return result

        assert unary("/t/echo", b"hello") == b"hello"
        assert unary("/t/echo", b"") == b""
        assert unary("/t/echo", b"x" * 3_000_000) == b"x" * 3_000_000
        denied = (grpc.StatusCode.PERMISSION_DENIED, "not for 100% of näh\n")
        assert error_of(lambda: unary("/t/refuse")) == denied
        assert error_of(lambda: unary("/t/nursery")) == denied
        assert error_of(lambda: unary("/t/none")) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "no such method: /t/none",
        )
        assert error_of(lambda: unary("/t/break")) == (grpc.StatusCode.INTERNAL, "internal error")
        code, detail = error_of(lambda: unary("/t/echo", b"x" * 5_000_000))
        assert (code, "5000000 bytes" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert error_of(lambda: unary("/t/wait", timeout=0.3))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        gzip = channel.unary_unary("/t/echo", identity, identity)
        assert error_of(lambda: gzip(b"x" * 5000, compression=grpc.Compression.Gzip, timeout=10))[0] is (
            grpc.StatusCode.UNIMPLEMENTED
        )
        assert unary("/t/echo", b"still here") == b"still here"

    calling(
        {
            "/t/echo": echo,
            "/t/refuse": refuse,
            "/t/nursery": refuse_in_a_nursery,
            "/t/break": break_down,
            "/t/wait": wait_for_ever,
        },
        client,
    )
    assert "ZeroDivisionError" in caplog.text


def test_grpcio_streams_both_ways_in_step_and_in_bulk() -> None:
    def client(channel: grpc.Channel) -> None:
        method = channel.stream_stream("/t/echo", identity, identity)
        turn = threading.Semaphore(1)

        def in_step() -> Iterator[bytes]:
            for number in range(50):
                assert turn.acquire(timeout=10)
                yield b"%d" % number

        received = []
        for message in method(in_step(), timeout=20):
            received.append(message)
            turn.release()
        assert received == [b"%d" % number for number in range(50)]
        assert sum(map(len, method(iter([b"x" * 100_000] * 100), timeout=20))) == 10_000_000

    calling({"/t/echo": echo}, client)


def test_metadata_and_deadline_arrive() -> None:
    remaining = []

    async def tell_deadline(call: ServerCall) -> None:
        remaining.append(trio.current_effective_deadline() - trio.current_time())
        await call.send(b"")

    def client(channel: grpc.Channel) -> None:
        metadata = (("x-text", "t"), ("x-data-bin", b"\x00\xff"), ("x-many", "1"), ("x-many", "2"))
        told = channel.unary_unary("/t/tell", identity, identity)(b"", metadata=metadata, timeout=10)
        assert told == repr(("t", b"\x00\xff", ["1", "2"])).encode()
        channel.unary_unary("/t/deadline", identity, identity)(b"", timeout=7)

    calling({"/t/tell": tell_metadata, "/t/deadline": tell_deadline}, client)
    assert 5 < remaining[0] < 7.5


@asynccontextmanager
async def open_to(port: int, limits: ChannelLimits | None = None) -> AsyncIterator[Channel]:
    async with open_channel(lambda: trio.open_tcp_stream("127.0.0.1", port), "test", limits) as channel:
        yield channel


class _Generic(grpc.GenericRpcHandler):
    """A grpcio server with raw bytes."""

    def service(self, details: Any) -> Any:
        def echo_stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.set_trailing_metadata((("x-end", "done"),))
            yield from requests

        def refuse_call(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            context.abort(grpc.StatusCode.NOT_FOUND, "nö")
            yield b""

        def never_read(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            stop_now.wait(10)
            context.abort(grpc.StatusCode.ABORTED, "enough")
            yield b""

        handlers = {"/t/echo": echo_stream, "/t/refuse": refuse_call, "/t/never-read": never_read}
        if details.method not in handlers:
            return None
        return grpc.stream_stream_rpc_method_handler(handlers[details.method], identity, identity)


stop_now = threading.Event()


@contextmanager
def grpcio_server() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(_Generic(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_our_client_calls_a_grpcio_server() -> None:
    async def main(port: int) -> None:
        with trio.fail_after(30):
            async with open_to(port) as channel:
                assert await channel.unary("/t/echo", b"hello", deadline=5) == b"hello"
                for path, status in (
                    ("/t/refuse", GrpcStatus.NOT_FOUND),
                    ("/t/none", GrpcStatus.UNIMPLEMENTED),
                ):
                    with pytest.raises(GrpcError) as caught:
                        await channel.unary(path, b"")
                    assert caught.value.status is status
                async with channel.stream("/t/echo") as call:
                    for number in range(20):
                        await call.send(b"%d" % number)
                        assert await call.receive() == b"%d" % number
                    await call.end()
                    assert await call.receive() is None
                    assert call.trailing_metadata.get("x-end") == "done"
                async with channel.stream("/t/echo") as call, trio.open_nursery() as nursery:

                    async def send() -> None:
                        for _ in range(100):
                            await call.send(b"x" * 100_000)
                        await call.end()

                    nursery.start_soon(send)
                    total = 0
                    while (message := await call.receive()) is not None:
                        total += len(message)
                    assert total == 10_000_000

    with grpcio_server() as port:
        trio.run(main, port)


def test_send_wakes_and_fails_when_the_server_ends_the_call() -> None:
    async def main(port: int) -> None:
        with trio.fail_after(20):
            async with open_to(port) as channel, channel.stream("/t/never-read") as call:
                with trio.move_on_after(1) as stuck:
                    while True:
                        await call.send(b"x" * 100_000)
                assert stuck.cancelled_caught, "the server's window must fill"
                stop_now.set()
                with pytest.raises(GrpcError) as caught:
                    while True:
                        await call.send(b"x" * 100_000)
                assert (caught.value.status, caught.value.message) == (GrpcStatus.ABORTED, "enough")

    with grpcio_server() as port:
        trio.run(main, port)
