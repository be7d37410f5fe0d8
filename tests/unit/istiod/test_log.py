"""Log lines that people and machines can read, and that no peer can forge."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from istiod.log import JournalHandler, LineHandler, configure, fields, journal_entry
from istiod.notify import ServiceNotifier


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("istiod.xds", logging.WARNING, __file__, 1, message, None, None)
    made.created = 1_795_000_000.25
    made.__dict__.update(fields(**extra))
    return made


def line(form: str, message: str, **extra: object) -> str:
    stream = io.StringIO()
    LineHandler(stream, form).emit(record(message, **extra))
    return stream.getvalue()


def test_a_line_has_time_level_topic_message_and_fields() -> None:
    assert line("text", "proxy connected", proxy="default/a", count=3) == (
        "2026-11-18T11:06:40.250Z warning xds          proxy connected proxy=default/a count=3\n"
    )


def test_a_peers_text_cannot_begin_a_line_of_its_own() -> None:
    forged = "x\n2026-11-18T11:06:40.250Z error istiod all is lost\x1b[31m"
    written = line("text", "proxy refused", reason=forged)
    assert written.count("\n") == 1
    assert "\x1b" not in written
    assert json.loads(line("json", "proxy refused", reason=forged))["reason"] == forged
    assert line("json", "proxy refused", reason=forged).count("\n") == 1


def test_the_journal_gets_fields_of_its_own() -> None:
    entry = journal_entry(record("stored", file="a"), "hostmesh-istiod")
    assert entry == (
        b"MESSAGE=stored\nPRIORITY=4\nSYSLOG_IDENTIFIER=hostmesh-istiod\nLOGGER=istiod.xds\nHOSTMESH_FILE=a\n"
    )
    broken = journal_entry(record("one\ntwo\nPRIORITY=0", peer="a\nb\ud800"), "hostmesh-istiod")
    assert broken.startswith(b"MESSAGE=one\\ntwo\\nPRIORITY=0\nPRIORITY=4\n")
    assert broken.endswith(b"HOSTMESH_PEER=a\\nb\\ud800\n")


def test_a_peers_text_in_the_message_or_in_an_error_begins_no_line() -> None:
    forged = "node \r\n2026-11-18T11:06:40.250Z error istiod all is lost\u2028\u202e\x1b[2J"
    written = line("text", forged)
    assert written.count("\n") == 1 and written[:-1].isprintable()
    try:
        raise ValueError(forged)
    except ValueError:
        failed = record("call failed")
        failed.exc_info = sys.exc_info()
    stream = io.StringIO()
    LineHandler(stream, "text").emit(failed)
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("call failed") and len(rest) > 2
    assert all(one.startswith("  | ") and one.isprintable() for one in rest)


def test_the_journal_is_reached_by_a_datagram(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        handler = JournalHandler(str(path), "hostmesh-istiod")
        handler.emit(record("hello"))
        assert b"MESSAGE=hello\n" in journal.recv(4096)
        handler.close()


def test_without_the_journal_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        configure("info", "text", {"JOURNAL_STREAM": "0:0"})
        logging.getLogger("istiod.feed").info("here", extra=fields(number=1))
        assert "info    feed         here number=1" in capsys.readouterr().err
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_the_service_manager_hears_ready_reloading_and_the_watchdog(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        notifier = ServiceNotifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000000"})
        notifier.ready("serving")
        assert manager.recv(4096) == b"READY=1\nSTATUS=serving"
        notifier.reloading()
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")

        async def story() -> None:
            with trio.move_on_after(25):
                await notifier.watchdog()

        trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))
        manager.setblocking(False)
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3


def test_without_a_service_manager_nothing_is_said_and_nothing_fails() -> None:
    notifier = ServiceNotifier({})
    notifier.ready("serving")
    trio.run(notifier.watchdog)
