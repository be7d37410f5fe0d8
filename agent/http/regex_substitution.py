"""Regex rewrites (Envoy RegexMatchAndSubstitute) with RE2's replacement rules.

Rule: every non-overlapping match is replaced; `\\0`..`\\9` name groups, `\\\\` is a backslash, nothing else is special.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import re2

from agent.table.route import Substitution
from agent.table.substitution import replacement_pieces

_QUIET: Final = re2.Options()
_QUIET.log_errors = False


def compile_substitution(substitution: Substitution) -> Callable[[bytes], bytes]:
    """A function from subject to result. Raises ValueError for a pattern or replacement that RE2 would not take."""
    try:
        pattern = re2.compile(substitution.pattern.encode(), _QUIET)
    except re2.error as error:
        raise ValueError(f"not a pattern of RE2: {error}") from error
    pieces = replacement_pieces(substitution.replacement, pattern.groups)
    finditer = pattern.finditer

    def replace(subject: bytes) -> bytes:
        result: list[bytes] = []
        position, last_end = 0, -1
        for match in finditer(subject):
            if match.start() == match.end() == last_end:
                continue  # RE2::GlobalReplace takes no empty match right after a match
            result.append(subject[position : match.start()])
            result.extend(
                piece if isinstance(piece, bytes) else (match.group(piece) or b"") for piece in pieces
            )
            position = last_end = match.end()
        result.append(subject[position:])
        return b"".join(result)

    return replace
