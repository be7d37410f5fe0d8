"""Text from the network in a line of a log: it never ends the line, nor begins another, nor moves a terminal's cursor.

Rule: pure; what is printable stays as it is. Not for where lines go (istiod.log, agent.host.log).
"""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str) -> str:
    r"""The text with control characters, line separators, marks of direction and lone surrogates as `\xNN`, `\uNNNN`."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def indented(text: str) -> str:
    """Several lines (a traceback), each marked as the continuation of the line before."""
    return "".join(f"\n  | {one_line(line)}" for line in text.split("\n"))
