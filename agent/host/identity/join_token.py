"""Join tokens: `hm1.<token id>.<secret>.<SHA-256 of the CA's root, in hex>`.

Rule: the token is a secret; nothing but its id is ever logged or put into an error.
Not for: making tokens (istiod does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agent.host.config import JoinToken

_TOKEN = re.compile(r"hm1\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([0-9a-f]{64})")


class TokenError(Exception):
    """There is no token to join with; says where one was looked for."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `text` is what istiod wants to see; `root` the fingerprint that istiod must show."""

    id: str
    root: str
    text: str = field(repr=False)


def parse(text: str) -> Token:
    """Read a token; TokenError without a word of its content."""
    found = _TOKEN.fullmatch(text.strip())
    if found is None:
        raise TokenError("the join token is not of the form hm1.ID.SECRET.FINGERPRINT")
    return Token(id=found[1], root=found[3], text=text.strip())


def load(source: JoinToken | None) -> Token:
    """The configured token, read anew each time so that an operator can put a fresh one there."""
    if source is None:
        raise TokenError("no joinToken is configured")
    path = source.path()
    if path is None:
        raise TokenError(f"joinToken.credential {source.credential}: systemd passed no credentials")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"the join token cannot be read: {error}") from error
