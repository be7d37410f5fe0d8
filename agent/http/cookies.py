"""Cookies that a client sends (RFC 6265 section 5.4), read as Envoy reads them.

Rule: the first cookie of a name counts, over all fields; quotes around a value are not part of it.
Not for: setting cookies, which is their makers' part.
"""

from __future__ import annotations

from agent.http.headers import Headers


def cookie(headers: Headers, name: bytes) -> bytes | None:
    """The value of a cookie; None where it is missing or empty (Envoy Utility::parseCookieValue)."""
    for field in headers.get_all(b"cookie"):
        for item in field.split(b";"):
            key, _, value = item.strip().partition(b"=")
            if key == name:
                if len(value) > 1 and value[:1] == value[-1:] == b'"':
                    value = value[1:-1]
                return value or None
    return None
