"""A worker of `hostmesh-agent run` on its own, with this process in the host process's place."""

from __future__ import annotations

import mmap
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from agent.worker import control
from tests.leftovers import Held, flat


class RemoteWorker:
    """One real worker process. Configurations are whole, as always: type URL, name, message."""

    def __init__(self, log: Path, **settings: Any) -> None:
        """`settings`: of the configuration frames."""
        self._settings = settings
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(60)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        theirs.close()
        self._reader = control.FrameReader()
        self._frames: list[tuple[bytes, bytes]] = []
        self._generation = 0
        self.logged: list[str] = []

    def apply(self, resources: Mapping[str, Mapping[str, Message]]) -> None:
        """Bring this configuration into force."""
        self._generation += 1
        bodies = {
            url: {name: _packed(url, message) for name, message in held.items()}
            for url, held in resources.items()
        }
        config = control.Config(self._generation, (control.WorkloadConfig("w", bodies),), self._settings)
        self._sock.sendall(control.encode(control.CONFIG, config.encode()))
        kind, payload = self._next(control.APPLIED, control.REFUSED)
        assert kind == control.APPLIED, control.decode_json(payload)

    def holdings(self) -> list[Held]:
        """See tests.leftovers."""
        self._sock.sendall(control.encode_json(control.QUERY, id=1, what="holdings"))
        _, payload = self._next(control.ANSWER)
        return [flat(held) for held in control.decode_json(payload)["answer"]]

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE

    def abandon(self) -> None:
        """As when the host process is killed."""
        self._sock.close()

    def close(self) -> None:
        """End the process."""
        self._sock.close()
        self.process.kill()
        self.process.wait()

    def _next(self, *kinds: bytes) -> tuple[bytes, bytes]:
        while True:
            while self._frames:
                kind, payload = self._frames.pop(0)
                if kind == control.LOG:
                    self.logged.append(str(control.decode_json(payload)["message"]))
                elif kind in kinds:
                    return kind, payload
            data = self._sock.recv(1 << 16)
            assert data, f"the worker has ended: {self.logged[-5:]}"
            self._frames += self._reader.feed(data)


def _packed(url: str, message: Message) -> bytes:
    from google.protobuf.any_pb2 import Any as AnyMessage

    packed: Any = AnyMessage()
    packed.Pack(message)
    assert packed.type_url == url
    return bytes(packed.SerializeToString(deterministic=True))
