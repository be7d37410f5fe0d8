"""How the agent logs: records with fields to the journal, or one readable line each on standard error.

Rule: the journal's own protocol only when standard error is the journal's stream (JOURNAL_STREAM); never a
secret. Not for: access logs (`agent/telemetry`). Source: systemd.journal-fields(7), native journal protocol.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from wire.log_text import indented, one_line

_JOURNAL = "/run/systemd/journal/socket"
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_ATTRIBUTE = "hostmesh_fields"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Structured fields of one call: `log.info("applied", extra=fields(workload=key))`."""
    return {_ATTRIBUTE: values}


def configure(level: str, environ: Mapping[str, str] = os.environ) -> None:
    """Set up the root logger once, at start."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [JournalHandler(_JOURNAL) if _is_journal(environ) else LineHandler()]
    logging.captureWarnings(True)


def _is_journal(environ: Mapping[str, str]) -> bool:
    status = os.fstat(2)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" and Path(_JOURNAL).exists()


def _text(record: logging.LogRecord) -> str:
    """The message as one line, and a traceback's lines marked as its continuation."""
    text = one_line(record.getMessage())
    if record.exc_info:
        text += indented(logging.Formatter().formatException(record.exc_info))
    return text


class LineHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """`2026-11-22T23:10:01.123Z warning xds: connection lost istiod=…` on standard error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; values from outside cannot start a line of their own."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        extra = "".join(f" {name}={_quoted(value)}" for name, value in _fields(record).items())
        topic = record.name.removeprefix("hostmesh.")
        return f"{when} {record.levelname.lower():7} {topic}: {_text(record)}{extra}"


class JournalHandler(logging.Handler):
    """Datagrams of KEY=value to journald; a datagram that it cannot take goes to standard error instead."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record with its fields."""
        try:
            self._socket.sendto(journal_entry(record), self._path)
        except OSError:
            sys.stderr.write(_text(record) + "\n")


def journal_entry(record: logging.LogRecord) -> bytes:
    """A record in the journal's native format: a value with a line break is preceded by its length."""
    values: dict[str, object] = {
        "MESSAGE": _text(record),
        "PRIORITY": _PRIORITY.get(record.levelname, 6),
        "SYSLOG_IDENTIFIER": "hostmesh-agent",
        "LOGGER": record.name,
    }
    values |= {f"HOSTMESH_{name.upper()}": one_line(str(value)) for name, value in _fields(record).items()}
    entry = bytearray()
    for name, value in values.items():
        data = str(value).encode(errors="backslashreplace")
        if b"\n" in data:
            entry += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return bytes(entry)


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and all(letter.isprintable() and letter not in ' ="\\' for letter in text)
    return text if plain else json.dumps(text)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, _ATTRIBUTE, None)
    return found if isinstance(found, dict) else {}
