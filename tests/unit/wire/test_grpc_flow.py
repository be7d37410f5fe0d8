"""Flow control, keepalive, cancellation and shutdown between our client and our server, on a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from wire.grpc import (
    Channel,
    ChannelLimits,
    GrpcError,
    GrpcStatus,
    Handler,
    Limits,
    ServerCall,
    open_channel,
    serve,
)
from wire.http2 import Http2Limits


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts what `connect` makes: streams in memory, each with the transport's usual little buffer."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](10)

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def connect(self) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        await self._send.send(theirs)
        return ours

    async def aclose(self) -> None:
        self._send.close()
        await trio.lowlevel.checkpoint()


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run on a clock that jumps as soon as everybody waits; a story that hangs ends after ten minutes of it."""

    async def main() -> None:
        with trio.fail_after(600):
            await story()

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


@asynccontextmanager
async def connected(
    handlers: dict[str, Handler],
    *,
    client: Http2Limits | None = None,
    server: Limits | None = None,
    shutdown: trio.Event | None = None,
    grace: float = 5,
) -> AsyncIterator[Channel]:
    """A channel to a server of its own."""
    listener = MemoryListener()
    limits = ChannelLimits() if client is None else ChannelLimits(http2=client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve([listener], handlers, limits=server, shutdown=shutdown, grace=grace))
        async with open_channel(listener.connect, "test", limits) as channel:
            yield channel
        nursery.cancel_scope.cancel()


async def echo(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


async def wait_for_ever(call: ServerCall) -> None:
    await trio.sleep_forever()


def test_a_slow_reader_stops_the_sender_and_costs_little_memory() -> None:
    sent = [0]

    async def pour(call: ServerCall) -> None:
        for _ in range(400):
            await call.send(b"x" * 100_000)
            sent[0] += 100_000

    async def story() -> None:
        small = Http2Limits(stream_window=65_535)
        async with connected({"/t/pour": pour}, client=small) as channel, channel.stream("/t/pour") as call:
            await wait_all_tasks_blocked(0.05)
            # One window at the client, and a queue of at most 64 kB and one message at the server.
            assert 0 < sent[0] <= 300_000
            total = 0
            while (message := await call.receive()) is not None:
                total += len(message)
            assert total == 40_000_000

    run(story)


def test_a_handler_that_does_not_read_stops_its_client_but_not_the_others() -> None:
    taken = [0]

    async def story() -> None:
        handlers = {"/t/wait": wait_for_ever, "/t/echo": echo}
        async with (
            connected(handlers) as channel,
            channel.stream("/t/wait") as stuck,
            trio.open_nursery() as nursery,
        ):

            async def push() -> None:
                while True:
                    await stuck.send(b"x" * 10_000)
                    taken[0] += 10_000

            nursery.start_soon(push)
            await wait_all_tasks_blocked(0.05)
            assert taken[0] < 200_000
            for _ in range(3):
                assert await channel.unary("/t/echo", b"y" * 200_000) == b"y" * 200_000
            nursery.cancel_scope.cancel()

    run(story)


def test_unread_requests_of_finished_calls_do_not_use_up_the_connection() -> None:
    async def refuse(call: ServerCall) -> None:
        await call.receive()
        raise GrpcError(GrpcStatus.PERMISSION_DENIED)

    async def story() -> None:
        narrow = Limits(http2=Http2Limits(max_streams=1))
        async with connected({"/t/refuse": refuse, "/t/echo": echo}, server=narrow) as channel:
            for _ in range(50):
                async with channel.stream("/t/refuse") as call:
                    with pytest.raises(GrpcError):
                        while True:
                            await call.send(b"x" * 10_000)
            assert await channel.unary("/t/echo", b"y" * 100_000) == b"y" * 100_000

    run(story)


def test_half_read_messages_are_limited_over_all_calls() -> None:
    async def story() -> None:
        limits = Limits(max_half_read=300_000)
        async with connected({"/t/echo": echo}, server=limits) as channel, trio.open_nursery() as nursery:
            statuses = []

            async def upload() -> None:
                try:
                    await channel.unary("/t/echo", b"x" * 200_000)
                    statuses.append(GrpcStatus.OK)
                except GrpcError as error:
                    statuses.append(error.status)

            nursery.start_soon(upload)
            nursery.start_soon(upload)
            nursery.start_soon(upload)
        assert GrpcStatus.RESOURCE_EXHAUSTED in statuses

    run(story)


def test_calls_above_the_limit_wait_for_their_turn() -> None:
    async def nap(call: ServerCall) -> None:
        await trio.sleep(1)
        await call.send(b"done")

    async def story() -> None:
        async with connected({"/t/nap": nap}, server=Limits(http2=Http2Limits(max_streams=3))) as channel:
            # The client learns the limit from the server's SETTINGS.
            await channel.unary("/t/nap", b"")
            answers = []

            async def call() -> None:
                answers.append(await channel.unary("/t/nap", b""))

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(call)
            assert answers == [b"done"] * 10

    run(story)


def test_a_client_that_goes_away_cancels_its_handler() -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def handler(call: ServerCall) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def story() -> None:
        async with connected({"/t/wait": handler}) as channel:
            async with channel.stream("/t/wait"):
                await begun.wait()
            await cancelled.wait()

    run(story)


def test_a_deadline_ends_a_call_on_both_sides() -> None:
    ended = []

    async def handler(call: ServerCall) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async def story() -> None:
        async with connected({"/t/wait": handler}) as channel:
            begun = trio.current_time()
            with pytest.raises(GrpcError) as caught:
                await channel.unary("/t/wait", b"", deadline=3)
            assert caught.value.status is GrpcStatus.DEADLINE_EXCEEDED
            await wait_all_tasks_blocked(0.01)
            assert ended[0] - begun == pytest.approx(3, abs=0.1)

    run(story)


def test_a_server_keeps_a_deadline_that_its_client_does_not() -> None:
    async def story() -> None:
        async with (
            connected({"/t/wait": wait_for_ever}) as channel,
            channel.stream("/t/wait", deadline=2) as call,
        ):
            with pytest.raises(GrpcError) as caught:
                await call.receive()
            assert caught.value.status is GrpcStatus.DEADLINE_EXCEEDED
            assert caught.value.message == "the deadline has passed"

    run(story)


def test_a_lost_connection_fails_every_call_and_the_channel_says_so() -> None:
    async def story() -> None:
        ours, theirs = memory_stream_pair()

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return ours

        async with open_channel(connect, "test") as channel, channel.stream("/t/x") as call:
            await theirs.aclose()
            with pytest.raises(GrpcError) as caught:
                await call.receive()
            assert caught.value.status is GrpcStatus.UNAVAILABLE
            await channel.closed.wait()
            assert not channel.usable
            with pytest.raises(GrpcError):
                await channel.unary("/t/x", b"")

    run(story)


def test_the_callers_own_error_passes_the_channel_without_a_group_around_it() -> None:
    async def story() -> None:
        ours, theirs = memory_stream_pair()

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return ours

        with pytest.raises(LookupError):
            async with open_channel(connect, "test") as channel, channel.stream("/t/x"):
                raise LookupError
        await theirs.aclose()

    run(story)


def test_shutdown_lets_calls_finish_then_ends_them_with_unavailable() -> None:
    shutdown, begun = trio.Event(), trio.Event()

    async def short(call: ServerCall) -> None:
        begun.set()
        await shutdown.wait()
        await trio.sleep(3)
        await call.send(b"finished")

    async def story() -> None:
        handlers = {"/t/short": short, "/t/wait": wait_for_ever}
        async with connected(handlers, shutdown=shutdown) as channel:
            async with channel.stream("/t/short") as finishing, channel.stream("/t/wait") as endless:
                await begun.wait()
                shutdown.set()
                assert await finishing.receive() == b"finished"
                await finishing.end()
                assert await finishing.receive() is None
                with pytest.raises(GrpcError) as caught:
                    await channel.unary("/t/short", b"")
                assert caught.value.status is GrpcStatus.UNAVAILABLE
                with pytest.raises(GrpcError) as caught:
                    await endless.receive()
                assert caught.value.status is GrpcStatus.UNAVAILABLE
                assert caught.value.message == "the server is shutting down"
            await channel.closed.wait()

    run(story)


def test_an_idle_server_shuts_down_at_once() -> None:
    shutdown = trio.Event()

    async def story() -> None:
        async with connected({"/t/echo": echo}, shutdown=shutdown, grace=100) as channel:
            assert await channel.unary("/t/echo", b"x") == b"x"
            begun = trio.current_time()
            shutdown.set()
            await channel.closed.wait()
            assert trio.current_time() - begun < 2

    run(story)


def test_a_dead_peer_is_found_by_ping() -> None:
    async def story() -> None:
        ours, theirs = memory_stream_pair()

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return ours

        async with open_channel(connect, "test") as channel:
            begun = trio.current_time()
            await channel.closed.wait()
            assert channel.failure == "the peer does not answer PING"
            assert trio.current_time() - begun == pytest.approx(40, abs=1)
        await theirs.aclose()

    run(story)


def test_a_quiet_call_lives_by_its_pings_and_an_idle_connection_ends() -> None:
    async def story() -> None:
        async with connected({"/t/wait": wait_for_ever}) as channel:
            begun = trio.current_time()
            async with channel.stream("/t/wait"):
                with trio.move_on_after(400):
                    await channel.closed.wait()
                assert channel.usable
            await channel.closed.wait()
            assert 700 <= trio.current_time() - begun < 1000

    async def main() -> None:
        await story()

    trio.run(main, clock=MockClock(autojump_threshold=0.05))
