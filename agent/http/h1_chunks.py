"""The body of a chunked response (RFC 9112 section 7.1), as liberal as Envoy's parser: padded sizes are real.

    SIZE      a line that begins with a size in hexadecimal; what follows a space, tab or semicolon is not read.
              0 leads to TRAILERS, anything else to DATA
    DATA      so many bytes, then AFTER
    AFTER     CRLF, then SIZE
    TRAILERS  field lines up to an empty one, then DONE

Rule: all data that has come is handed on at once, however many chunks it was cut into, but PIECES chunks at most in one
call: `more` says that others are held. A size that can be read in two ways is refused: no sign, no prefix, no bare LF.
Not for: requests, where leniency would help smuggling; what trailers mean.
"""

from __future__ import annotations

import re
from typing import Final

PIECES: Final = 128
"""Chunks that a codec reads in one call, before other connections get their turn."""
_SIZE: Final = re.compile(rb"0*([0-9A-Fa-f]{0,15})(?<=[0-9A-Fa-f])(?:[ \t;][^\r\n]*)?\Z")
_LONGEST_LINE: Final = 16 * 1024
_IN_SIZE: Final = 0
_IN_DATA: Final = 1
_AFTER: Final = 2
_IN_TRAILERS: Final = 3
_DONE: Final = 4


class ChunkedBody:
    """One body. `done` once it has ended; then `trailers` are its field lines and `rest` is what follows it. Once `error`
    says what is wrong with it, nothing more may be fed."""

    __slots__ = ("_held", "_left", "_most", "_state", "done", "error", "more", "rest", "trailers")

    def __init__(self, most_trailers: int) -> None:
        """`most_trailers`: bytes of trailers."""
        self._held = b""
        """The beginning of a line."""
        self._left = 0
        self._most = most_trailers
        self._state: int = _IN_SIZE
        self.done = False
        self.more = False
        """Complete chunks are held; nothing new may be fed before `receive(b"")` has read them."""
        self.error = ""
        self.trailers = b""
        self.rest = b""

    def receive(self, data: bytes) -> bytes:
        """The content in what has come, up to an error."""
        if self._held:
            data = self._held + data
            self._held = b""
        found: list[bytes] = []
        at = 0
        self.more = False
        while True:
            if self._state == _IN_DATA:
                part = data[at : at + self._left]
                found.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._state = _AFTER
            elif self._state == _AFTER:
                if len(data) - at < 2:
                    self._held = data[at:]
                    break
                if data[at : at + 2] != b"\r\n":
                    self.error = "a chunk is longer than its size"
                    break
                at += 2
                self._state = _IN_SIZE
            elif self._state == _IN_SIZE:
                if len(found) >= PIECES:
                    self._held = data[at:]
                    self.more = True
                    break
                end = data.find(b"\r\n", at)
                if end < 0:
                    self._hold(data[at:], _LONGEST_LINE)
                    break
                match = _SIZE.match(data[at:end])
                if match is None:
                    self.error = "not a chunk size"
                    break
                self._left = int(match[1] or b"0", 16)
                self._state = _IN_DATA if self._left else _IN_TRAILERS
                at = end + 2
            else:
                self._end(data, at)
                break
        return b"".join(found)

    def _end(self, data: bytes, at: int) -> None:
        """What follows the last chunk."""
        if data[at : at + 2] == b"\r\n":
            end = at
        else:
            end = data.find(b"\r\n\r\n", at)
            if end < 0:
                self._hold(data[at:], self._most)
                return
            self.trailers = data[at : end + 2]
            end += 2
        self.rest = data[end + 2 :]
        self._state = _DONE
        self.done = True

    def _hold(self, line: bytes, most: int) -> None:
        if len(line) > most:
            self.error = "a line without end"
        self._held = line
