"""Path matching and rewriting of routes.

Rule: routes judge the path without query and fragment; a rewrite replaces the part that was matched (the whole
path for exact, regex and CONNECT routes) and leaves the query alone (Envoy PathUtil::removeQueryAndFragment).
Not for: cleaning paths up before routing, which is normalise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import re2

from agent.http.regex_substitution import compile_substitution
from agent.table.matchers import compile_pattern
from agent.table.route import RouteMatch, Substitution

PathPredicate: TypeAlias = Callable[[bytes], bool]
PathRewrite: TypeAlias = Callable[[bytes], bytes]


def bare_path(path: bytes) -> bytes:
    """The path without query and fragment."""
    if 0x3F in path:
        path = path[: path.index(b"?")]
    if 0x23 in path:
        path = path[: path.index(b"#")]
    return path


def compile_path(match: RouteMatch) -> PathPredicate | None:
    """Predicate over the bare path; None where every path matches (prefix `/` needs a path that starts with it)."""
    kind, wanted = match.kind, match.value.encode()
    if kind == "connect":
        return None
    if kind == "regex":
        return compile_pattern(match.value)
    if kind == "template":
        return compile_pattern(template_pattern(match.value))
    if not match.case_sensitive:
        folded = wanted.lower()
        if kind == "path":
            return lambda path: path.lower() == folded
        if kind == "prefix":
            return lambda path: path.lower().startswith(folded)
        return lambda path: _in_prefix(path.lower(), folded)
    if kind == "path":
        return wanted.__eq__
    if kind == "prefix":
        return lambda path: path.startswith(wanted)
    return lambda path: _in_prefix(path, wanted)


def _in_prefix(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == 0x2F)


def template_pattern(template: str) -> str:
    """The RE2 pattern of a URI template: `*` a segment, `**` the rest, `{name}` and `{name=pattern}` captures."""
    return "".join(
        f"(?P<{name}>{_glob(inner) if inner else _SEGMENT})" if name else _glob(literal)
        for literal, name, inner in template_parts(template)
    )


def template_parts(template: str) -> list[tuple[str, str, str]]:
    """Literal text (then no name), or a variable's name and its pattern. Raises ValueError for an open brace."""
    parts: list[tuple[str, str, str]] = []
    rest = template
    while rest:
        literal, brace, after = rest.partition("{")
        if literal:
            parts.append((literal, "", ""))
        if not brace:
            break
        variable, closed, rest = after.partition("}")
        name, _, inner = variable.partition("=")
        if not closed or not name.isidentifier():
            raise ValueError(f"malformed path template {template!r}")
        parts.append(("", name, inner))
    return parts


_SEGMENT: Final = "[a-zA-Z0-9-._~%!$&'()+,;:@=]+"
_REST: Final = "[a-zA-Z0-9-._~%!$&'()+,;:@=/]*"


def _glob(text: str) -> str:
    return "".join(
        _REST if part == "**" else _SEGMENT if part == "*" else "".join(map(_literal, part))
        for part in _split_stars(text)
    )


def _split_stars(text: str) -> list[str]:
    parts: list[str] = []
    position = 0
    while position < len(text):
        if text.startswith("**", position):
            parts.append("**")
            position += 2
        else:
            parts.append(text[position])
            position += 1
    return parts


def _literal(character: str) -> str:
    return character if character.isalnum() or character in "/_~%!&',;:@=-" else "\\" + character


def compile_rewrite(
    match: RouteMatch, prefix: str, regex: Substitution | None, template: str = ""
) -> PathRewrite | None:
    """What becomes of path and query of a request that matched; None where nothing changes."""
    if template:
        return _template_rewrite(match, template)
    if prefix:
        replacement = prefix.encode()
        if match.kind in {"prefix", "path", "separated_prefix"}:
            matched = len(match.value.encode())
            return lambda path: replacement + path[matched:]
        return lambda path: replacement + path[len(bare_path(path)) :]
    if regex is None:
        return None
    substitute = compile_substitution(regex)

    def rewrite(path: bytes) -> bytes:
        bare = bare_path(path)
        return substitute(bare) + path[len(bare) :]

    return rewrite


def _template_rewrite(match: RouteMatch, template: str) -> PathRewrite:
    fullmatch = re2.compile(template_pattern(match.value).encode()).fullmatch
    names = [name for _, name, _ in template_parts(match.value) if name]
    pieces: list[bytes | int] = []
    for literal, name, _ in template_parts(template):
        if name and name not in names:
            raise ValueError(f"the path template has no variable {name}")
        pieces.append(names.index(name) + 1 if name else literal.encode())

    def rewrite(path: bytes) -> bytes:
        bare = bare_path(path)
        found = fullmatch(bare)
        if found is None:
            return path
        new = b"".join(piece if isinstance(piece, bytes) else found.group(piece) for piece in pieces)
        return new + path[len(bare) :]

    return rewrite
