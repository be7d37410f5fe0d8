"""A plain client that calls one URL again and again over one connection and prints a line per answer.

Usage: sampler.py HOST PORT PATH [PAUSE] (seconds between calls); lines are: nanoseconds (monotonic), status,
x-version, x-split
"""

from __future__ import annotations

import http.client
import sys
import time

host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
connection = http.client.HTTPConnection(host, port, timeout=5)
while True:
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        reply.read()
        status, version, split = (
            reply.status,
            reply.getheader("x-version", "-"),
            reply.getheader("x-split", "-"),
        )
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        status, version, split = 0, type(error).__name__, "-"
    print(time.monotonic_ns(), status, version, split, flush=True)
    if pause:
        time.sleep(pause)
