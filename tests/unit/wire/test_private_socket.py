"""Unix sockets for their owner alone: what they replace, what they refuse, what they leave behind."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
import trio

from wire.grpc import GrpcStatus, Limits, ServerCall, open_channel, serve
from wire.grpc.admission import ConnectionLimits
from wire.grpc.status import GrpcError
from wire.private_socket import peer_user, private_socket, refuse_served


def test_the_socket_is_its_owners_whatever_the_umask_and_is_removed_after_use(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    before = os.umask(0)
    try:
        with private_socket(path):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        assert os.umask(before) == 0
    assert not path.exists()


def test_the_socket_of_an_ended_process_is_replaced_and_a_served_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    refuse_served(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    refuse_served(path)
    with private_socket(path):
        with pytest.raises(OSError, match="another process listens there") as refused:
            refuse_served(path)
        assert (refused.value.errno, refused.value.filename) == (errno.EADDRINUSE, str(path))
    refuse_served(path)


def test_a_socket_with_a_full_backlog_is_served(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        with pytest.raises(OSError, match="another process listens there"):
            refuse_served(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_a_socket_stays_where_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a file that is not a socket is there"), private_socket(path):
        pass
    assert os.path.lexists(path)


def test_a_socket_that_took_the_path_over_is_left_to_its_process(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with private_socket(path) as first:
        first.close()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as second:
            second.bind(str(path))
            taken = path.stat().st_ino
    assert path.stat().st_ino == taken


def test_a_peer_on_a_unix_socket_is_its_user_and_counts_as_one_source(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    seen: list[str] = []

    async def handler(call: ServerCall) -> None:
        seen.append(str(call.peer))
        await call.send(b"")

    async def connect() -> trio.abc.Stream:
        return await trio.open_unix_socket(path)

    async def main() -> None:
        limits = Limits(connections=ConnectionLimits(identified_per_source=1))
        with private_socket(path) as sock:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: serve([listener], {"/a/b": handler}, limits=limits))
                async with open_channel(connect, "local") as channel:
                    await channel.unary("/a/b", b"", deadline=5)
                    async with open_channel(connect, "local") as other:
                        with pytest.raises(GrpcError) as refused:
                            await other.unary("/a/b", b"", deadline=5)
                        assert refused.value.status is GrpcStatus.UNAVAILABLE
                nursery.cancel_scope.cancel()
        assert seen == [f"anonymous at unix uid {os.getuid()}"]

    trio.run(main)


def test_the_user_of_a_peer_is_what_the_kernel_says() -> None:
    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            assert peer_user(ours) == os.getuid()

    trio.run(main)
