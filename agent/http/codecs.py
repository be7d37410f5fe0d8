"""Which HTTP/1.1 codec runs: h11r, behind the interface of h1_message.

Rule: chosen once per process; whoever reads or writes HTTP/1.1 takes its codec from here and knows only the interface.
Not for: what a codec accepts beyond its parser (h1_message).
"""

from __future__ import annotations

from collections.abc import Callable

from agent.http.h1_fast import FastClientCodec, FastServerCodec
from agent.http.h1_message import ClientCodec, Limits, RequestSink, ResponseSink, ServerCodec

SERVER_CODEC: Callable[[RequestSink, Limits], ServerCodec] = FastServerCodec
CLIENT_CODEC: Callable[[ResponseSink, Limits], ClientCodec] = FastClientCodec
