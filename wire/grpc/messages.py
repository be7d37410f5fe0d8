"""Length-prefixed messages on a stream: five bytes of prefix, then the message (gRPC over HTTP/2).

Rule: bytes are taken from the stream only when a message is asked for, so a reader who does not read stops
the sender. A message that is too long is refused when its prefix is read. Compression is neither offered
nor taken.
"""

from __future__ import annotations

import struct

from wire.grpc.status import GrpcError, GrpcStatus
from wire.http2_stream import Stream

_PREFIX = struct.Struct("!BI")


class AssemblyBudget:
    """Bytes of half-read messages that one connection may hold, over all its streams."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class MessageReader:
    """Reads messages of a stream, one after the other."""

    def __init__(self, stream: Stream, max_bytes: int, budget: AssemblyBudget) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._budget = budget
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next message, None after the last.

        Raises GrpcError (RESOURCE_EXHAUSTED too long, UNIMPLEMENTED compressed, INTERNAL cut short) or what
        `Stream.receive` raises.
        """
        while True:
            if (message := self._take()) is not None:
                return message
            chunk = await self._stream.receive()
            if chunk is None:
                if self._buffer:
                    raise GrpcError(GrpcStatus.INTERNAL, "the stream ended inside a message")
                return None
            self._buffer += chunk
            self._budget.held += len(chunk)
            if self._budget.held > self._budget.limit:
                raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "too much unread data on this connection")

    def close(self) -> None:
        """Give back what is held."""
        self._budget.held -= len(self._buffer)
        self._buffer.clear()

    def _take(self) -> bytes | None:
        if len(self._buffer) < _PREFIX.size:
            return None
        compressed, length = _PREFIX.unpack_from(self._buffer)
        if compressed:
            raise GrpcError(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        if length > self._max_bytes:
            raise GrpcError(
                GrpcStatus.RESOURCE_EXHAUSTED, f"a message of {length} bytes exceeds {self._max_bytes}"
            )
        end = _PREFIX.size + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            message = bytes(view[_PREFIX.size : end])
        del self._buffer[:end]
        self._budget.held -= end
        return message


def prefix(message: bytes) -> bytes:
    """The five bytes before an uncompressed message."""
    return _PREFIX.pack(0, len(message))
