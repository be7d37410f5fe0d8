"""An agent's identity against a real gRPC server with mutual TLS: joining, renewing, surviving."""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate

from agent.host.config import JoinToken
from agent.host.control.control_plane import ControlPlane
from agent.host.identity import keeper as identity_module
from agent.host.identity.identity import Identity, IdentityError, read
from agent.host.identity.join_token import TokenError, parse
from agent.host.identity.keeper import IdentityKeeper
from agent.host.state import State
from wire import lapsed
from wire.grpc import CREATE_CERTIFICATE, GrpcError, GrpcStatus, ServerCall, listen, serve
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.tls import server_context
from wire.x509 import fingerprint, issue, key_to_pem, load_chain, new_key, read_csr, self_signed_root, to_pem

REVIEWS = SpiffeId("cluster.local", "default", "bookinfo-reviews")
ISTIOD = SpiffeId("cluster.local", "hostmesh-system", "istiod")


class CertificateAuthority:
    """istiod's CA service in small: one token, mutual TLS for renewals."""

    def __init__(self, name: SpiffeId = ISTIOD) -> None:
        self.key = new_key()
        self.now = datetime.now(UTC)
        self.root = self_signed_root(self.key, ttl=timedelta(days=1), now=self.now)
        self.token = f"hm1.id.secret.{fingerprint(self.root)}"
        self.ttl = timedelta(hours=1)
        self.name = name
        self.calls: list[str] = []
        self.refuse: GrpcError | None = None
        self.renews_lapsed = False
        self.keys: list[bytes] = []
        """Every public key that a certificate was asked for, in order."""
        self.port = 0
        self.further_roots: list[Certificate] = []
        """Trusted beside the own root, as while a root is being replaced."""

    async def create(self, call: ServerCall) -> None:
        message = await call.receive()
        assert message is not None
        public_key, spiffe = read_csr(istio_ca_pb2.IstioCertificateRequest.FromString(message).csr)
        self.keys.append(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        der, signature = call.metadata.binary(lapsed.CERTIFICATE), call.metadata.binary(lapsed.SIGNATURE)
        if call.peer.spiffe_id == spiffe:
            self.calls.append("renewed")
        elif der is not None and signature is not None and self.renews_lapsed:
            csr = istio_ca_pb2.IstioCertificateRequest.FromString(message).csr
            assert SpiffeId.of_certificate(lapsed.proven(der, signature, csr.encode())) == spiffe
            self.calls.append("renewed after its end")
        elif call.metadata.get("authorization") == f"Bearer {self.token}":
            self.calls.append("joined")
        else:
            raise GrpcError(GrpcStatus.PERMISSION_DENIED, f"nobody may be {spiffe} like this")
        if self.refuse is not None:
            raise self.refuse
        leaf = issue(
            public_key,
            ca_cert=self.root,
            ca_key=self.key,
            ttl=self.ttl,
            now=datetime.now(UTC),
            uri_sans=[spiffe],
        )
        chain = [to_pem(leaf).decode(), to_pem([self.root, *self.further_roots]).decode()]
        await call.send(istio_ca_pb2.IstioCertificateResponse(cert_chain=chain).SerializeToString())

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        key = new_key()
        leaf = issue(
            key.public_key(),
            ca_cert=self.root,
            ca_key=self.key,
            ttl=timedelta(hours=1),
            now=self.now,
            uri_sans=[self.name],
        )
        chain, root = to_pem([leaf, self.root]), to_pem(self.root)
        context = server_context(chain, key_to_pem(key), root, client_required=False)
        listeners = await listen("127.0.0.1", self.port, context)
        listener = listeners[0]
        assert isinstance(listener, trio.SSLListener)
        assert isinstance(listener.transport_listener, trio.SocketListener)
        self.port = listener.transport_listener.socket.getsockname()[1]
        task_status.started()
        await serve(listeners, {CREATE_CERTIFICATE: self.create}, grace=0)


class Host:
    """One agent's identity keeper with its state directory and a clock that can be turned."""

    def __init__(
        self,
        tmp_path: Path,
        authority: CertificateAuthority,
        ports: list[int] | None = None,
        state: State | None = None,
    ) -> None:
        self.token_file = tmp_path / "token"
        self.token_file.write_text(authority.token + "\n")
        self.state = state or State(tmp_path / "state")
        self.state.prepare(["default/reviews"])
        self.ahead = 0.0
        self.seen: list[Identity] = []
        addresses = [f"127.0.0.1:{port}" for port in ports or [authority.port]]
        self.keeper = IdentityKeeper(
            "default/reviews",
            REVIEWS,
            state=self.state,
            control_plane=ControlPlane(addresses, ISTIOD),
            token=JoinToken(file=self.token_file),
            on_change=self.changed,
            clock=lambda: time.time() + self.ahead,
            chance=lambda: 0.5,
        )

    async def changed(self, identity: Identity, roots: bytes) -> None:
        self.seen.append(identity)


def with_authority(test: Callable[[CertificateAuthority, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                authority = CertificateAuthority()
                await nursery.start(authority.serve)
                await test(authority, nursery)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


@pytest.fixture(autouse=True)
def short_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "_LONGEST_SLEEP", 0.02)


def test_a_host_joins_with_its_token_and_renews_with_its_certificate(tmp_path: Path) -> None:
    async def renewal(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        assert not host.keeper.load()
        await nursery.start(host.keeper.run)
        first, changed = host.keeper.current, host.keeper.changed
        host.token_file.unlink()
        host.ahead = 1810
        await changed.wait()
        second = host.keeper.current
        assert authority.calls == ["joined", "renewed"]
        assert first is not None
        assert second is not None
        assert second.key_pem != first.key_pem, "every certificate has a key of its own"
        assert [identity.serial for identity in host.seen] == [first.serial, second.serial]

    with_authority(renewal)


def test_the_identity_survives_a_restart_with_istiod_down(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        again = Host(tmp_path, authority, [1])
        assert again.keeper.load()
        assert again.keeper.current is not None
        assert host.keeper.current is not None
        assert again.keeper.current.key_pem == host.keeper.current.key_pem
        path = tmp_path / "state" / "workloads" / "default.reviews" / "identity.pem"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

    with_authority(test)


def test_a_failed_renewal_keeps_the_certificate_and_is_tried_again(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        first, changed = host.keeper.current, host.keeper.changed
        authority.refuse = GrpcError(GrpcStatus.UNAVAILABLE, "the disk is full")
        host.ahead = 1810
        await eventually(lambda: "the disk is full" in host.keeper.last_error)
        assert host.keeper.current is first
        authority.refuse = None
        await changed.wait()
        assert set(authority.calls) == {"joined", "renewed"}
        assert host.keeper.last_error == ""

    with_authority(test)


def test_an_error_of_a_wrong_clock_goes_with_it(tmp_path: Path, short_naps: None) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        host.ahead = 86400
        await eventually(lambda: host.keeper.last_error != "")
        host.ahead = 0
        await eventually(lambda: host.keeper.last_error == "")
        assert authority.calls[0] == "joined"

    with_authority(test)


def test_an_expired_certificate_needs_the_token_again(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        again = Host(tmp_path, authority)
        again.ahead = 3601
        authority.ttl = timedelta(hours=3)
        assert again.keeper.load()
        async with trio.open_nursery() as inner:
            changed = again.keeper.changed
            inner.start_soon(again.keeper.run)
            await changed.wait()
            inner.cancel_scope.cancel()
        assert authority.calls == ["joined", "joined"]

    with_authority(test)


def test_a_host_that_was_away_beyond_its_certificates_life_renews_without_its_token(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        host.token_file.unlink()
        authority.renews_lapsed, authority.ttl = True, timedelta(hours=3)
        again = Host(tmp_path, authority)
        again.token_file.unlink()
        again.ahead = 3601
        assert again.keeper.load()
        assert again.keeper.expired
        changed = again.keeper.changed
        nursery.start_soon(again.keeper.run)
        await changed.wait()
        assert not again.keeper.expired
        assert authority.calls == ["joined", "renewed after its end"]
        assert len(set(authority.keys)) == 2

    with_authority(test)


def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key_also_after_a_restart(
    tmp_path: Path,
) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        authority.refuse = GrpcError(GrpcStatus.UNAVAILABLE, "the answer is lost")
        async with trio.open_nursery() as inner:
            inner.start_soon(Host(tmp_path, authority).keeper.run)
            await eventually(lambda: len(authority.keys) == 1)
            inner.cancel_scope.cancel()
        authority.refuse = None
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        assert len(set(authority.keys)) == 1
        pending = tmp_path / "state" / "workloads" / "default.reviews" / "joining-key.pem"
        assert not pending.exists(), "it is not needed any more"

    with_authority(test)


class FullDisk(State):
    """A state directory on a disk that is full for a while."""

    full = False

    def save_identity(self, key: str, pem: bytes) -> None:
        self._write()
        super().save_identity(key, pem)

    def save_pending_key(self, key: str, pem: bytes) -> None:
        self._write()
        super().save_pending_key(key, pem)

    def _write(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_neither_uses_the_token_up_nor_throws_a_certificate_away(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        disk = FullDisk(tmp_path / "state")
        disk.full = True
        host = Host(tmp_path, authority, state=disk)
        nursery.start_soon(host.keeper.run)
        await eventually(lambda: "its key cannot be stored" in host.keeper.last_error)
        assert authority.keys == [], "istiod was not asked"
        disk.full = False
        await eventually(lambda: host.keeper.current is not None)
        first = host.keeper.current
        disk.full = True
        host.ahead = 1810
        await eventually(lambda: host.keeper.current is not first)
        assert host.seen[-1] is host.keeper.current, "the workers got it"
        await eventually(lambda: "cannot be stored" in host.keeper.last_error)
        disk.full = False
        await eventually(lambda: host.keeper.last_error == "")
        stored = disk.identity("default/reviews")
        assert stored is not None
        assert host.keeper.current is not None
        assert stored[0] == host.keeper.current.pem

    with_authority(test)


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nabc", bytes(range(256))])
def test_damaged_trust_roots_are_repaired_from_the_identitys_own_chain(tmp_path: Path, damage: bytes) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        root = tmp_path / "state" / "root-cert.pem"
        root.write_bytes(damage)
        again = Host(tmp_path, authority)
        assert again.keeper.load()
        assert again.keeper.roots == to_pem(authority.root)
        await nursery.start(again.keeper.run)
        await eventually(lambda: root.read_bytes() == to_pem(authority.root))

    with_authority(test)


def test_the_second_istiod_is_asked_when_the_first_is_down(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority, [1, authority.port])
        await nursery.start(host.keeper.run)
        assert authority.calls == ["joined"]

    with_authority(test)


def test_a_server_that_is_not_istiod_gets_no_token(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                impostor = CertificateAuthority(SpiffeId("cluster.local", "default", "ratings"))
                await nursery.start(impostor.serve)
                host = Host(tmp_path, impostor)
                nursery.start_soon(host.keeper.run)
                await eventually(lambda: bool(host.keeper.last_error))
                assert "ratings" in host.keeper.last_error
                assert impostor.calls == []
                stranger = CertificateAuthority()
                host.token_file.write_text(stranger.token)
                host.keeper.last_error = ""
                await eventually(lambda: "pinned fingerprint" in host.keeper.last_error)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_identity_whose_parts_do_not_fit_is_not_used(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        current = host.keeper.current
        assert current is not None
        other = SpiffeId("cluster.local", "default", "ratings")
        for pem, spiffe in (
            (current.pem, other),
            (key_to_pem(new_key()) + current.chain_pem, REVIEWS),
            (current.key_pem, REVIEWS),
            (b"nonsense", REVIEWS),
        ):
            with pytest.raises(IdentityError):
                read(pem, spiffe, 0.0)
        host.state.save_identity("default/reviews", b"half a fi")
        assert not Host(tmp_path, authority).keeper.load()

    with_authority(test)


def test_a_token_of_another_authority_means_joining_anew(tmp_path: Path) -> None:
    async def test(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        assert not Host(tmp_path, CertificateAuthority(), [1]).keeper.load()

    with_authority(test)


@pytest.mark.parametrize("text", ["", "hm1.a.b", "hm2.a.b." + "0" * 64, "hm1.a.b." + "G" * 64])
def test_a_broken_token_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        parse(text)
    assert not text or text not in str(caught.value)
    assert "secret" not in repr(parse("hm1.id.secret." + "0" * 64))


def test_the_trusted_roots_are_exactly_those_of_istiods_bundle(tmp_path: Path) -> None:
    async def story(authority: CertificateAuthority, nursery: trio.Nursery) -> None:
        former = self_signed_root(new_key(), ttl=timedelta(days=1), now=authority.now)
        authority.further_roots = [former]
        host = Host(tmp_path, authority)
        await nursery.start(host.keeper.run)
        changed = host.keeper.changed
        assert host.keeper.roots == to_pem([authority.root, former])
        assert host.keeper.current is not None
        assert load_chain(host.keeper.current.chain_pem)[1:] == [authority.root], "what is presented"
        authority.further_roots = []
        host.ahead = 1810
        await changed.wait()
        assert host.keeper.roots == to_pem(authority.root), "the dropped root is trusted no more"
        assert (tmp_path / "state" / "root-cert.pem").read_bytes() == to_pem(authority.root)

    with_authority(story)
