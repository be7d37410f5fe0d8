"""Access logs: which outcomes are logged, and what reaches the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, RequestContext
from agent.table import access_log_filter as values
from agent.table.access_log import AccessLog
from agent.table.matchers import Fraction, HeaderMatch, MetadataMatch, StringMatch, ValueMatch
from agent.telemetry.access_log import FLUSH_BYTES, LIMIT_BYTES, Sink, Sinks
from agent.telemetry.format import FormatError
from agent.telemetry.log_filter import compile_filter
from agent.telemetry.outcome import Outcome


def outcome(status: int = 200, *, flags: tuple[str, ...] = (), milliseconds: float = 5) -> Outcome:
    made = Outcome()
    made.connection = ConnectionInfo(id=1, remote=("127.0.0.1", 1), local=("127.0.0.1", 2))
    made.request = RequestContext(
        b"GET",
        b"/x",
        b"a",
        Headers([(b"x-debug", b"1"), (b"content-type", b"application/grpc")]),
        made.connection,
    )
    made.request.dynamic_metadata = {"ns": {"k": "v"}}
    made.response_code = status
    made.response_trailers = Headers([(b"grpc-status", b"14")])
    made.flags = list(flags)
    made.started_at, made.finished_at = 10.0, 10.0 + milliseconds / 1e3
    return made


@pytest.fixture
def sinks() -> Iterator[Sinks]:
    made = Sinks()
    yield made
    made.close()


METADATA = MetadataMatch("ns", ("k",), ValueMatch("string", StringMatch("exact", "v")))


@pytest.mark.parametrize(
    ("tree", "logged"),
    [
        (values.Comparison("status_code", "ge", 500), False),
        (values.Comparison("status_code", "eq", 200), True),
        (values.Comparison("duration", "ge", 5), True),
        (values.Comparison("duration", "le", 4), False),
        (values.NotHealthCheck(), True),
        (values.Flags(frozenset()), True),
        (values.Flags(frozenset({"UO", "NR"})), False),
        (values.Flags(frozenset({"UF", "NR"})), True),
        (values.Sampled(Fraction(100)), True),
        (values.Sampled(Fraction(0)), False),
        (values.RequestHeader(HeaderMatch(b"x-debug")), True),
        (values.RequestHeader(HeaderMatch(b":path", StringMatch("prefix", "/y"))), False),
        (values.GrpcStatus(frozenset({"UNAVAILABLE"})), True),
        (values.GrpcStatus(frozenset({"UNAVAILABLE"}), exclude=True), False),
        (values.DynamicMetadata(METADATA), True),
        (values.DynamicMetadata(MetadataMatch("ns", ("none",), ValueMatch("present", True)), False), False),
        (values.DynamicMetadata(MetadataMatch("other", ("none",), ValueMatch("present", True))), True),
        (values.Every((values.NotHealthCheck(), values.Comparison("status_code", "ne", 200))), False),
        (values.AnyOf((values.NotHealthCheck(), values.Comparison("status_code", "ne", 200))), True),
    ],
)
def test_a_filter_chooses_the_outcomes(tree: values.AccessLogFilter, logged: bool) -> None:
    assert compile_filter(tree)(outcome(flags=("UF",))) is logged


def test_a_health_check_answer_can_be_left_out() -> None:
    answered = outcome()
    answered.details = "health_check_ok"
    assert not compile_filter(values.NotHealthCheck())(answered)


def test_lines_reach_the_file_on_the_timer_and_follow_a_rotation(tmp_path: Path, sinks: Sinks) -> None:
    path = tmp_path / "access.log"
    (log,) = sinks.compile([AccessLog("file", str(path), format_text="%RESPONSE_CODE%\n")])
    log(outcome(201))
    assert path.read_text() == ""
    sinks.flush()
    assert path.read_text() == "201\n"
    log(outcome(202))
    path.rename(tmp_path / "access.log.1")
    assert sinks.reopen() == []
    log(outcome(203))
    sinks.flush()
    assert (tmp_path / "access.log.1").read_text() == "201\n202\n"
    assert path.read_text() == "203\n"


def test_two_logs_of_one_file_share_it_in_order(tmp_path: Path, sinks: Sinks) -> None:
    path = str(tmp_path / "a")
    first, second = sinks.compile(
        [
            AccessLog("file", path, format_text="one\n"),
            AccessLog("file", path, format_json={"code": "%RESPONSE_CODE%"}),
        ]
    )
    first(outcome())
    second(outcome())
    first(outcome())
    sinks.flush()
    assert Path(path).read_text() == 'one\n{"code":200}\none\n'


def test_a_full_buffer_is_written_at_once(tmp_path: Path, sinks: Sinks) -> None:
    path = tmp_path / "a"
    (log,) = sinks.compile([AccessLog("file", str(path), format_text="x" * FLUSH_BYTES)])
    log(outcome())
    assert path.stat().st_size == FLUSH_BYTES


def test_a_rotation_that_fails_keeps_the_open_file(tmp_path: Path, sinks: Sinks) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (log,) = sinks.compile([AccessLog("file", str(folder / "a"), format_text="x\n")])
    folder.rename(tmp_path / "moved")
    assert [type(error) for error in sinks.reopen()] == [FileNotFoundError]
    log(outcome())
    sinks.flush()
    assert (tmp_path / "moved" / "a").read_text() == "x\n"


def test_a_stream_that_nobody_reads_drops_lines_instead_of_waiting() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    sink = Sink("", lambda data: os.write(writer, data), lambda: os.close(writer))
    line = "y" * 1023 + "\n"
    written = 4 * LIMIT_BYTES // len(line)
    for _ in range(written):
        sink.write(line)
    sink.flush()
    assert sink.dropped > 0
    received = len(os.read(reader, 1 << 20))
    while sink.flush() or (more := _read(reader)):  # the rest is not lost
        received += more
    assert received == (written - sink.dropped) * len(line)
    sink.close()
    os.close(reader)


def _read(fd: int) -> int:
    try:
        return len(os.read(fd, 1 << 20))
    except BlockingIOError:
        return 0


def test_what_cannot_be_logged_refuses_the_configuration(tmp_path: Path, sinks: Sinks) -> None:
    with pytest.raises(FileNotFoundError):
        sinks.compile([AccessLog("file", str(tmp_path / "none" / "a"))])
    with pytest.raises(FormatError):
        sinks.compile([AccessLog("stdout", format_text="%NOPE%")])


def test_the_file_of_a_log_that_is_gone_is_written_to_its_end_and_closed(tmp_path: Path) -> None:
    gone, kept = AccessLog("file", str(tmp_path / "gone")), AccessLog("file", str(tmp_path / "kept"))
    sinks = Sinks()
    for log in (gone, kept):
        sinks.open(log).write("line\n")
    sinks.keep_only([kept])
    assert (tmp_path / "gone").read_text() == "line\n"
    held = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert str(tmp_path / "gone") not in held
    assert str(tmp_path / "kept") in held
    sinks.close()
