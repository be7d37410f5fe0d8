"""Runs `meshctl apply` again and again in one process: the command without the interpreter's start.

Usage: python -P bench/apply_loop.py CONTEXT — reads file names from standard input; prints, for each, monotonic
nanoseconds before and after. Not for: people.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time

from istiod.ctl.cli import app


def main() -> None:
    """Until standard input ends."""
    context = sys.argv[1]
    for line in sys.stdin:
        before = time.monotonic_ns()
        with contextlib.redirect_stdout(io.StringIO()):
            app(["--context", context, "apply", "-f", line.strip()], standalone_mode=False)
        print(before, time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    main()
