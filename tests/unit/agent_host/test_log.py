"""The agent's log lines: what a peer or an application says begins no line of its own."""

from __future__ import annotations

import logging
import sys

from agent.host.log import LineHandler, fields, journal_entry

FORGED = "reason \r\n2026-11-18T11:06:40.250Z error hostmesh all is lost\u2028\x1b[2J"


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("hostmesh.xds", logging.WARNING, __file__, 1, message, None, None)
    made.__dict__.update(fields(**extra))
    return made


def test_a_message_and_its_fields_are_one_line() -> None:
    written = LineHandler().format(record(FORGED, reason=FORGED))
    assert written.isprintable()
    entry = journal_entry(record(FORGED, reason=FORGED))
    assert entry.count(b"\n") == 5, "MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, LOGGER, HOSTMESH_REASON"


def test_the_lines_of_a_traceback_are_marked() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        failed = record("the stream failed")
        failed.exc_info = sys.exc_info()
    first, *rest = LineHandler().format(failed).splitlines()
    assert first.endswith("the stream failed")
    assert rest and all(line.startswith("  | ") and line.isprintable() for line in rest)
