"""The host gives no more descriptors, or a connection breaks while it is accepted: a listener rests, and goes on by itself."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.attack.load import GET, Attack, answers, under_attack

_DIRECT: list[dict[str, Any]] = [
    {
        "name": "all",
        "domains": ["*"],
        "routes": [
            {
                "match": {"prefix": "/"},
                "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
            }
        ],
    }
]
_SHORTAGE = "cannot accept connections: Too many open files"
_SPARE = 20


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _served(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    sock.sendall(GET % b"")
    with suppress(TimeoutError):
        return sock.recv(65536).endswith(b"ok")
    return False


def _counted(attack: Attack, name: str) -> int:
    found = [line for line in attack.page("stats").splitlines() if name in line]
    return sum(int(line.rsplit(" ", 1)[1]) for line in found)


def test_a_listener_without_descriptors_rests_and_goes_on_when_there_are_some(tmp_path: Path) -> None:
    with under_attack({"virtual_hosts": _DIRECT}, tmp_path, {"a": answers}) as attack:
        pid = attack.proxy.pid
        held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + _SPARE, most))
        clients = [attack.connect() for _ in range(_SPARE + 10)]
        served = [sock for sock in clients[:_SPARE] if _served(sock, 5.0)]
        assert len(served) >= _SPARE - 2
        assert not _served(clients[-1], 0.5), "the limit is not reached: the test shows nothing"
        said = attack.proxy.log.read_text().count(_SHORTAGE)
        before, began = _processor_seconds(pid), time.monotonic()
        assert not _served(clients[-2], 1.0)
        used = (_processor_seconds(pid) - before) / (time.monotonic() - began)
        assert used < 0.3, f"{used:.0%} of a processor while nothing can be accepted"
        # An admin connection that ended meanwhile gave one descriptor back, and then there was another shortage.
        assert 1 <= said <= 2
        assert attack.proxy.log.read_text().count(_SHORTAGE) == said, "said once, not with every try"
        for sock in served:
            sock.close()
        assert clients[-1].recv(65536).endswith(b"ok"), "who waited in the queue is served"
        log = attack.proxy.log.read_text()
        # The queue may use up what became free, and that is another shortage.
        assert 1 <= log.count("accepting connections again") <= log.count(_SHORTAGE)
        assert _counted(attack, "downstream_cx_accept_paused") > 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


def test_what_goes_wrong_with_one_connection_costs_that_one_only() -> None:
    from agent.worker.acceptor import REST, Acceptor
    from agent.worker.reactor import Reactor

    class Failing:
        """A listening socket whose next results are given."""

        def __init__(self, *results: int) -> None:
            self.sock = socket.socket()
            self.results = list(results)

        def fileno(self) -> int:
            return self.sock.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            code = self.results.pop(0) if self.results else errno.EAGAIN
            raise BlockingIOError if code == errno.EAGAIN else OSError(code, os.strerror(code))

        def close(self) -> None:
            self.sock.close()

    class Runtime:
        """As much of a ListenerRuntime as counting and a log line need."""

        class Stats:
            def counter(self, name: str) -> int:
                return {"downstream_cx_accept_error": 0, "downstream_cx_accept_paused": 1}[name]

        class Listener:
            name = "main"

        stats, listener = Stats(), Listener()

        def __init__(self) -> None:
            self.slots = [0, 0]

    one = (errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETDOWN)
    shortage = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM)
    reactor = Reactor()
    for code in shortage:
        listening, runtime = Failing(*one, code, *one), Runtime()
        acceptor = Acceptor(listening, reactor, runtime)  # type: ignore[arg-type]
        acceptor.start()
        acceptor.on_event(1)
        assert runtime.slots == [len(one), 1]
        assert listening.results == list(one), "it went on during the shortage"
        assert reactor.holds()["descriptors"] == 0, "the condition would come up in every turn"
        reactor.timers.run(reactor.now + REST)
        assert reactor.holds()["descriptors"] == 1
        acceptor.on_event(1)
        assert runtime.slots == [2 * len(one), 1]
        acceptor.stop()
        assert reactor.holds()["descriptors"] == reactor.holds()["timers"] == 0
    reactor.close()
