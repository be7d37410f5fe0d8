"""RE2 rewrite strings taken apart, when the table is built and again when it is compiled.

Rule: `\\0`..`\\9` name groups, `\\\\` is a backslash, nothing else is special.
"""

from __future__ import annotations


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
