"""Certificates for one run of the benchmarks, made when it starts. Not for: anything that outlives the run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from wire import x509
from wire.secret_file import write_secret
from wire.spiffe import SpiffeId

CLIENT = "spiffe://cluster.local/ns/bench/sa/client"
SERVER = "spiffe://cluster.local/ns/bench/sa/server"


def make(folder: Path) -> None:
    """Write root.pem, and NAME.pem and NAME.key for `client` and `server`, into the folder."""
    now = datetime.now(UTC)
    root_key = x509.new_key()
    root = x509.self_signed_root(root_key, ttl=timedelta(days=1), now=now)
    (folder / "root.pem").write_bytes(x509.to_pem(root))
    for name, identity in (("client", CLIENT), ("server", SERVER)):
        key = x509.new_key()
        leaf = x509.issue(
            key.public_key(),
            ca_cert=root,
            ca_key=root_key,
            ttl=timedelta(days=1),
            now=now,
            uri_sans=[SpiffeId.parse(identity)],
        )
        (folder / f"{name}.pem").write_bytes(x509.to_pem([leaf, root]))
        write_secret(folder / f"{name}.key", x509.key_to_pem(key))
