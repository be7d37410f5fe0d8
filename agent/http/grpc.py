"""gRPC's percent-encoding of messages (gRPC over HTTP2 specification; Envoy PercentEncoding)."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

_PLAIN: Final = " !\"#$&'()*+,-./0123456789:;<=>?@[\\]^_`{|}~"


def percent_encoded(message: bytes) -> bytes:
    """A message as it may stand in `grpc-message`: no line end, no percent sign, nothing beyond ASCII."""
    return quote(message, safe=_PLAIN).encode()
