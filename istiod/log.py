"""How istiod logs: structured records for journald, or one readable line each on standard error.

Job: configure `logging` once; carry fields (`extra=fields(proxy=…, reason=…)`) to journald's own fields when
systemd gave us the journal (JOURNAL_STREAM), else as key=value or JSON lines.
Rule: never a secret: callers pass identifiers, not tokens, keys or request bodies.
Not for: metrics (`istiod.monitoring`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from wire.log_text import indented, one_line

_ATTRIBUTE = "hostmesh_fields"
_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def fields(**values: Any) -> dict[str, Any]:
    """Structured fields for a log call: `log.info("…", extra=fields(proxy="default/reviews"))`."""
    return {_ATTRIBUTE: values}


def configure(level: str = "info", form: str = "text", environ: Mapping[str, str] = os.environ) -> None:
    """Set up the root logger. `form` is `text` or `json`; with the journal present it is not used."""
    handler: logging.Handler
    if _stderr_is_journal(environ):
        handler = JournalHandler(_JOURNAL, "hostmesh-istiod")
    else:
        handler = LineHandler(sys.stderr, form)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "hypercorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _stderr_is_journal(environ: Mapping[str, str]) -> bool:
    """Whether standard error is the journal's stream (systemd.exec(5), JOURNAL_STREAM=device:inode)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not device or not inode:
        return False
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return device == str(stat.st_dev) and inode == str(stat.st_ino) and os.path.exists(_JOURNAL)  # noqa: PTH110


class LineHandler(logging.Handler):
    """One line a record: `2026-11-22T23:10:01.123Z info   xds  proxy connected proxy=default/reviews-a`."""

    def __init__(self, stream: TextIO, form: str) -> None:
        super().__init__()
        self._stream = stream
        self._json = form == "json"

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a closed standard error is no reason to fail."""
        try:
            self._stream.write((_as_json(record) if self._json else _as_text(record)) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.handleError(record)


class JournalHandler(logging.Handler):
    """Sends records with their fields to journald (systemd's native protocol: datagrams of KEY=value)."""

    def __init__(self, path: str, identifier: str) -> None:
        super().__init__()
        self._identifier = identifier
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; when the journal cannot take it, standard error (also the journal's) does."""
        try:
            self._socket.sendto(journal_entry(record, self._identifier), self._path)
        except OSError:
            sys.stderr.write(_as_text(record) + "\n")

    def close(self) -> None:
        """Close the socket too."""
        self._socket.close()
        super().close()


def journal_entry(record: logging.LogRecord, identifier: str) -> bytes:
    """A record in journald's native format; values with line breaks use the length-prefixed form."""
    values = {
        "MESSAGE": _message(record),
        "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_IDENTIFIER": identifier,
        "LOGGER": record.name,
    }
    values |= {f"HOSTMESH_{key.upper()}": one_line(str(value)) for key, value in _fields(record).items()}
    entry = bytearray()
    for key, value in values.items():
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            entry += key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += key.encode() + b"=" + data + b"\n"
    return bytes(entry)


def _as_text(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
    extra = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
    topic = record.name.removeprefix("istiod.")
    return f"{when} {record.levelname.lower():7} {topic:12} {_message(record)}{extra}"


def _as_json(record: logging.LogRecord) -> str:
    return json.dumps(
        {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "scope": record.name,
            "msg": _message(record),
            **{
                key: value if isinstance(value, int | float) else str(value)
                for key, value in _fields(record).items()
            },
        }
    )


def _quoted(value: Any) -> str:
    # Peers choose some of these texts: control characters must not start a line of their own.
    text = str(value)
    return (
        json.dumps(text)
        if not text or any(c.isspace() or c in '="\\' or not c.isprintable() for c in text)
        else text
    )


def _message(record: logging.LogRecord) -> str:
    """The message as one line, and a traceback's lines marked as its continuation."""
    text = one_line(record.getMessage())
    if record.exc_info:
        text += indented(logging.Formatter().formatException(record.exc_info))
    return text


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found = getattr(record, _ATTRIBUTE, None)
    return found if isinstance(found, dict) else {}
