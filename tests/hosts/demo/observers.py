"""Outside observers: tcpdump on the bridge, openssl as a peer, dig as a resolver, a sampler that sees a change."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.lab.mesh import APP_UID, APPS, Mesh, wait_for
from tests.hosts.lab.namespaces import BRIDGE, Host, python

TLS13_SELECTED = bytes.fromhex("002b00020304")
"""supported_versions in a ServerHello: TLS 1.3 (RFC 8446 §4.2.1)."""


class Tap:
    """tcpdump on the bridge (or on one host's interface) while the block runs; `bytes` is everything that passed."""

    def __init__(self, path: Path, host: Host | None = None, interface: str = BRIDGE) -> None:
        self._path = path
        command = ["tcpdump", "-i", interface, "-U", "--immediate-mode", "-s", "0", "-w", str(path), "tcp"]
        self._command = host.command(command) if host else command
        self.bytes = b""

    def __enter__(self) -> Tap:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stderr is not None
        while line := self._process.stderr.readline():
            if b"listening on" in line:
                return self
        raise RuntimeError("tcpdump did not start")

    def __exit__(self, *_: object) -> None:
        size = -1
        while size != (size := self._path.stat().st_size):
            time.sleep(0.3)
        self._process.terminate()
        self._process.wait()
        self.bytes = self._path.read_bytes()


@dataclass
class Presented:
    """What a server showed to openssl."""

    version: str
    uris: list[str]
    verified: str


def s_client(host: Host, target: str, identity: Path, roots: Path) -> Presented:
    """A TLS handshake with a mesh certificate, by openssl."""
    done = host.run(
        "openssl", "s_client", "-connect", target, "-cert", str(identity), "-key", str(identity), "-CAfile", str(roots),
        "-alpn", "istio-peer-exchange,istio,http/1.1", "-showcerts", stdin="", check=False, timeout=15,
    )  # fmt: skip
    pem = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", done.stdout, re.S)
    uris: list[str] = []
    if pem:
        text = host.run("openssl", "x509", "-noout", "-ext", "subjectAltName", stdin=pem[0]).stdout
        uris = re.findall(r"URI:(\S+?)(?:,|$|\s)", text)
    version = re.search(r"(TLSv1\.\d)", done.stdout)
    verified = re.search(r"Verif(?:y return code|ication): ?(.+)", done.stdout)
    return Presented(version[1] if version else "none", uris, verified[1].strip() if verified else "none")


def dig(host: Host, name: str, *options: str) -> list[str]:
    """Answers of the host's configured resolver, asked as the application's user would."""
    out = host.run("dig", "+short", "+time=3", "+tries=2", *options, name, uid=APP_UID, check=False).stdout
    return [line for line in out.splitlines() if line and not line.startswith(";")]


class Sampler:
    """A plain client on a host that calls without pause, or with one (seconds); tells when an answer of a kind
    was first seen."""

    def __init__(
        self, mesh: Mesh, name: str, service: str, path: str = "/sample", pause: float = 0.0
    ) -> None:
        self._path = mesh.folder / f"sampler-{time.monotonic_ns()}.log"
        host = mesh.lab.hosts[name]
        self._process = host.start(
            python(), str(APPS / "sampler.py"), service, "9080", path, str(pause), log=self._path, uid=APP_UID
        )
        wait_for("the first sample", self.lines)

    def lines(self) -> list[tuple[int, str, str, str]]:
        """(nanoseconds, status, version, split) of every complete line so far."""
        if not self._path.exists():
            return []
        rows = [line.split() for line in self._path.read_text().split("\n")[:-1]]
        return [(int(row[0]), row[1], row[2], row[3]) for row in rows if len(row) == 4]

    def first_after(self, moment_ns: int, *, split: str, seconds: float = 20) -> float:
        """Milliseconds from a moment to the first answer that carries the mark."""
        found = wait_for(
            f"an answer marked {split}",
            lambda: next((line for line in self.lines() if line[0] >= moment_ns and line[3] == split), None),
            seconds,
        )
        return (found[0] - moment_ns) / 1e6  # type: ignore[no-any-return]

    def failures(self) -> list[tuple[int, str, str, str]]:
        """Answers that were not 200."""
        return [line for line in self.lines() if line[1] != "200"]

    def close(self) -> None:
        """Stop calling."""
        self._process.terminate()
        self._process.wait()


def own_rules_count(host: Host) -> int:
    """How many nftables tables a host has."""
    out = host.run("nft", "list", "tables", check=False).stdout
    return len([line for line in out.splitlines() if "hostmesh" in line])


def machine_fingerprint() -> str:
    """The machine's own interfaces and rules, to show that the demo left them alone. Only outside the lab."""
    parts = []
    for command in (["ip", "-br", "link"], ["ip", "route"], ["nft", "list", "ruleset"]):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )  # fmt: skip
        parts.append(done.stdout)
    return "\n".join(parts)
