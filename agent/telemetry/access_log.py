"""Access logs: lines made from outcomes, written to files and standard streams.

Rule: writing never waits for anything but the page cache: lines are gathered and written by `flush` (a timer of
the worker, or a full buffer); a stream that cannot take more (a full pipe) keeps what fits the limit and counts
what it drops. Files are opened for appending and shared by name; `reopen` follows log rotation.
Not for: formats (format.py), when to log (log_filter.py).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from agent.table.access_log import AccessLog
from agent.telemetry.format import DEFAULT_FORMAT, compile_format, compile_json
from agent.telemetry.log_filter import compile_filter
from agent.telemetry.outcome import Outcome

Log: TypeAlias = Callable[[Outcome], None]

FLUSH_BYTES: Final = 64 << 10
"""A buffer of this size is written at once."""
LIMIT_BYTES: Final = 1 << 20
"""A sink that cannot be written to keeps this much; further lines are dropped and counted."""
FLUSH_SECONDS: Final = 1.0
"""How often the worker is to call `Sinks.flush`."""

_NO_WAIT: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_STREAMS: Final = {"stdout": 1, "stderr": 2, "/dev/stdout": 1, "/dev/stderr": 2}


class Sink:
    """One file or stream. `dropped` counts lines that found no room."""

    def __init__(self, path: str, send: Callable[[bytes], int], close: Callable[[], None]) -> None:
        self.path = path
        """Empty for a standard stream."""
        self.dropped = 0
        self._send = send
        self._close = close
        self._lines: list[str] = []
        self._size = 0
        self._rest = b""

    def write(self, line: str) -> None:
        """Add one line, with its line feed."""
        self._size += len(line)
        if self._size > LIMIT_BYTES:
            self._size -= len(line)
            self.dropped += 1
            return
        self._lines.append(line)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered, as far as the file takes it now. Errors of the device count as dropped."""
        if self._lines:
            self._rest += "".join(self._lines).encode("utf-8", "surrogateescape")
            self._lines.clear()
        while self._rest:
            try:
                sent = self._send(self._rest)
            except BlockingIOError:
                break
            except OSError:
                self.dropped += self._rest.count(b"\n")
                self._rest = b""
                break
            self._rest = self._rest[sent:]
        self._size = len(self._rest)

    def reopen(self) -> None:
        """Open the file by its name again (after a rotation). Raises OSError and keeps the old one."""
        if self.path:
            send, close = _open_file(self.path)
            self.flush()
            self._close()
            self._send, self._close = send, close

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        self._close()


def _writer(fd: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    return lambda data: os.write(fd, data), lambda: os.close(fd)


def _open_file(path: str) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    return _writer(os.open(path, flags, 0o640))


def _open_stream(number: int) -> Sink:
    """A standard stream without making it non-blocking for the other processes that share it."""
    if stat.S_ISSOCK(os.fstat(number).st_mode):
        journal = socket.socket(fileno=os.dup(number))
        return Sink("", lambda data: journal.send(data, _NO_WAIT), journal.close)
    try:
        fd = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        # A stream that may not be opened again (another user's terminal): write to it as it is.
        fd = os.dup(number)
    return Sink("", *_writer(fd))


def _name(log: AccessLog) -> str:
    return log.path if log.sink == "file" else log.sink


class Sinks:
    """Every open sink of a worker, by name; logs of one file share it."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}

    def open(self, log: AccessLog) -> Sink:
        """The sink of a log. Raises OSError where its file cannot be opened."""
        name = _name(log)
        sink = self._sinks.get(name)
        if sink is None:
            if name in _STREAMS:
                sink = _open_stream(_STREAMS[name])
            else:
                sink = Sink(name, *_open_file(name))
            self._sinks[name] = sink
        return sink

    def compile(self, logs: Iterable[AccessLog]) -> tuple[Log, ...]:
        """One function for each log, to be called with every outcome. Raises FormatError or OSError."""
        return tuple([self._compile_one(log) for log in logs])

    def _compile_one(self, log: AccessLog) -> Log:
        if log.format_json is not None:
            render = compile_json(log.format_json, omit_empty=log.omit_empty_values)
        else:
            render = compile_format(log.format_text or DEFAULT_FORMAT, omit_empty=log.omit_empty_values)
        write = self.open(log).write
        if log.filter is None:
            return lambda outcome: write(render(outcome))
        wanted = compile_filter(log.filter)

        def write_wanted(outcome: Outcome) -> None:
            if wanted(outcome):
                write(render(outcome))

        return write_wanted

    def keep_only(self, logs: Iterable[AccessLog]) -> None:
        """Close the files of logs that are in use no more."""
        used = {_name(log) for log in logs}
        for name in [name for name in self._sinks if name not in used]:
            self._sinks.pop(name).close()

    def flush(self) -> None:
        """Write everything that is gathered; to be called every FLUSH_SECONDS."""
        for sink in self._sinks.values():
            sink.flush()

    def reopen(self) -> list[OSError]:
        """Follow a rotation of all files; what could not be opened again (the old file stays in use)."""
        failures: list[OSError] = []
        for sink in self._sinks.values():
            try:
                sink.reopen()
            except OSError as error:
                failures.append(error)
        return failures

    @property
    def dropped(self) -> int:
        """Lines dropped by all sinks."""
        return sum(sink.dropped for sink in self._sinks.values())

    def close(self) -> None:
        """Write the rest and close everything."""
        for sink in self._sinks.values():
            sink.close()
        self._sinks.clear()
