"""Regex rewrites (Envoy RegexMatchAndSubstitute) with RE2's replacement rules.

Rule: every non-overlapping match is replaced; `\\0`..`\\9` name groups, `\\\\` is a backslash, nothing else is special.
"""

from __future__ import annotations

from collections.abc import Callable

import re2

from agent.table.route import Substitution

_QUIET = re2.Options()
_QUIET.log_errors = False


def compile_substitution(substitution: Substitution) -> Callable[[bytes], bytes]:
    """A function from subject to result. Raises ValueError where the replacement names a group that is not there."""
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


def replacement_pieces(replacement: str, groups: int) -> tuple[bytes | int, ...]:
    """Literal bytes and group numbers of an RE2 rewrite string. Raises ValueError for a bad one."""
    pieces: list[bytes | int] = []
    literal = bytearray()
    characters = iter(replacement)
    for character in characters:
        if character != "\\":
            literal += character.encode()
            continue
        following = next(characters, "")
        if following == "\\":
            literal += b"\\"
        elif following.isascii() and following.isdigit():
            if int(following) > groups:
                raise ValueError(f"the replacement names group {following}, the pattern has {groups}")
            if literal:
                pieces.append(bytes(literal))
                literal.clear()
            pieces.append(int(following))
        else:
            raise ValueError("a backslash in the replacement must be followed by a digit or a backslash")
    if literal:
        pieces.append(bytes(literal))
    return tuple(pieces)
