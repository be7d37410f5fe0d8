"""Which HTTP/1.1 codec runs: h11r, or the reference on h11 where HOSTMESH_H1_CODEC asks for it.

Rule: chosen once per process; both give the same verdicts (tests run every case on both).
"""

from __future__ import annotations

from collections.abc import Callable

from agent.http.h1_fast import FastClientCodec, FastServerCodec
from agent.http.h1_message import ClientCodec, Limits, RequestSink, ResponseSink, ServerCodec

SERVER_CODEC: Callable[[RequestSink, Limits], ServerCodec] = FastServerCodec
CLIENT_CODEC: Callable[[ResponseSink, Limits], ClientCodec] = FastClientCodec
