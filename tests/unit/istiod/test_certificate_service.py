"""CreateCertificate over real TLS and gRPC: first contact by token, renewal by certificate, and every refusal."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.x509 import Certificate, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName
from cryptography.x509.oid import ExtendedKeyUsageOID

from istiod.ca.authority import Authority, istiod_identity
from istiod.ca.keys import mesh_authority
from istiod.ca.service import CertificateService
from istiod.ca.serving import ServingCertificate, server_names
from istiod.enrolment import Enrolment
from registry.opening import SqliteSettings, open_registry
from wire import lapsed, tls, x509
from wire.grpc import CREATE_CERTIFICATE, GrpcError, GrpcStatus, listen, open_channel, serve
from wire.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from wire.spiffe import SpiffeId

TD = "cluster.local"
REVIEWS = SpiffeId(TD, "default", "reviews")
RATINGS = SpiffeId(TD, "default", "ratings")
DAY = timedelta(hours=24)


@dataclass
class Mesh:
    """A running CA: how to call it, and what it stands on."""

    port: int
    authority: Authority
    enrolment: Enrolment
    certificate: ServingCertificate

    async def ask(
        self,
        csr: bytes | str,
        *,
        token: str | None = None,
        identity: tuple[bytes, bytes] | None = None,
        seconds: int = 0,
        proof: tuple[tuple[str, bytes], ...] = (),
    ) -> list[str]:
        """One call, with a token, a client certificate (chain, key) or the proof of a lapsed one."""
        chain, key = identity if identity else (None, None)
        context = tls.client_context(self.authority.roots_pem, chain, key)

        async def connect() -> trio.abc.Stream:
            return await tls.connect("127.0.0.1", self.port, context, istiod_identity(TD))

        text = csr.decode() if isinstance(csr, bytes) else csr
        request = IstioCertificateRequest(csr=text, validity_duration=seconds)
        bearer = [("authorization", f"Bearer {token}")] if token is not None else []
        metadata: list[tuple[str, str | bytes]] = [*bearer, *proof]
        async with open_channel(connect, "istiod") as channel:
            answer = await channel.unary(
                CREATE_CERTIFICATE, request.SerializeToString(), metadata, deadline=10
            )
        return list(IstioCertificateResponse.FromString(answer).cert_chain)

    async def token(self, *accounts: str) -> str:
        now = datetime.now(UTC)
        return (await self.enrolment.create("default", accounts, timedelta(hours=1), now))[0]


@asynccontextmanager
async def running(
    tmp_path: Path,
    age: timedelta = timedelta(0),
    aliases: tuple[str, ...] = (),
    revoked: Set[str] = frozenset(),
) -> AsyncIterator[Mesh]:
    now = datetime.now(UTC)
    authority = mesh_authority(tmp_path, None, now - age)
    names = server_names(
        [istiod_identity(TD)], configured=["istiod.example"], listening=["0.0.0.0"], hostname="h"
    )
    certificate = ServingCertificate(
        authority, names, client_roots=authority.roots_pem, client_required=False, now=now
    )
    with trio.fail_after(30):
        async with open_registry(SqliteSettings(tmp_path / "registry.db")) as registry:
            enrolment = Enrolment(registry.records, authority.fingerprint)
            service = CertificateService(
                authority,
                enrolment,
                TD,
                DAY,
                grace=timedelta(days=7),
                aliases=lambda: aliases,
                barred=lambda _, der: (
                    "it was revoked" if der is not None and x509.serial_of(der) in revoked else None
                ),
            )
            listeners = await listen("127.0.0.1", 0, certificate.context)
            port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listeners, {CREATE_CERTIFICATE: service.handler})
                yield Mesh(port, authority, enrolment, certificate)
                nursery.cancel_scope.cancel()


def refused(status: GrpcStatus, reason: str) -> pytest.RaisesExc[GrpcError]:
    return pytest.RaisesExc(GrpcError, match=f"(?s){status.name}: .*{reason}")


def test_a_token_buys_a_certificate_that_says_exactly_one_identity(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as mesh:
            key = x509.new_key()
            chain = await mesh.ask(x509.make_csr(key, REVIEWS), token=await mesh.token("reviews"))
            leaf, root = (x509.load_chain(text)[0] for text in chain)
            assert SpiffeId.of_certificate(leaf) == REVIEWS
            names = leaf.extensions.get_extension_for_class(SubjectAlternativeName).value
            assert len(names) == 1
            leaf.verify_directly_issued_by(root)
            assert x509.fingerprint(root) == mesh.authority.fingerprint
            usage = leaf.extensions.get_extension_for_class(KeyUsage).value
            assert usage.digital_signature and not usage.key_cert_sign
            purposes = list(leaf.extensions.get_extension_for_class(ExtendedKeyUsage).value)
            assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
            now = datetime.now(UTC)
            assert now - timedelta(minutes=5) < leaf.not_valid_before_utc <= now - timedelta(minutes=1)
            assert leaf.not_valid_after_utc - now == pytest.approx(DAY, abs=timedelta(minutes=1))

    trio.run(main)


@pytest.mark.parametrize(("asked", "given"), [(3600, 3600), (10**9, 86400), (-5, 86400), (1, 60)])
def test_the_requested_lifetime_is_capped(tmp_path: Path, asked: int, given: int) -> None:
    async def main() -> None:
        async with running(tmp_path) as mesh:
            csr = x509.make_csr(x509.new_key(), REVIEWS)
            chain = await mesh.ask(csr, token=await mesh.token("reviews"), seconds=asked)
            life = x509.load_chain(chain[0])[0].not_valid_after_utc - datetime.now(UTC)
            assert life.total_seconds() == pytest.approx(given, abs=30)

    trio.run(main)


def test_a_certificate_is_renewed_with_the_current_one_and_no_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as mesh:
            key = x509.new_key()
            chain = await mesh.ask(x509.make_csr(key, REVIEWS), token=await mesh.token("reviews"))
            identity = (chain[0].encode(), x509.key_to_pem(key))
            renewed = await mesh.ask(x509.make_csr(x509.new_key(), REVIEWS), identity=identity)
            assert SpiffeId.of_certificate(x509.load_chain(renewed[0])[0]) == REVIEWS
            with refused(
                GrpcStatus.PERMISSION_DENIED, "does not allow spiffe://cluster.local/ns/default/sa/ratings"
            ):
                await mesh.ask(x509.make_csr(x509.new_key(), RATINGS), identity=identity)
            # A second workload of the host comes with a token of its own, over the first one's connection.
            second = await mesh.ask(
                x509.make_csr(x509.new_key(), RATINGS), identity=identity, token=await mesh.token("ratings")
            )
            assert SpiffeId.of_certificate(x509.load_chain(second[0])[0]) == RATINGS

    trio.run(main)


def test_an_identity_is_one_principal_in_every_trust_domain_of_the_mesh(tmp_path: Path) -> None:
    old = SpiffeId("old.example", "default", "reviews")

    async def main() -> None:
        async with running(tmp_path, aliases=("old.example",)) as mesh:
            key = x509.new_key()
            chain = await mesh.ask(x509.make_csr(key, old), token=await mesh.token("reviews"))
            identity = (chain[0].encode(), x509.key_to_pem(key))
            for wanted in (old, REVIEWS):
                renewed = await mesh.ask(x509.make_csr(x509.new_key(), wanted), identity=identity)
                assert SpiffeId.of_certificate(x509.load_chain(renewed[0])[0]) == wanted
            with refused(GrpcStatus.PERMISSION_DENIED, "does not allow"):
                await mesh.ask(x509.make_csr(x509.new_key(), RATINGS), identity=identity)
            with refused(GrpcStatus.PERMISSION_DENIED, "istiod's own identity"):
                istiod = istiod_identity("old.example")
                await mesh.ask(x509.make_csr(x509.new_key(), istiod), token=await mesh.token("reviews"))

    trio.run(main)


def test_refusals_have_a_reason_and_are_logged_without_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> None:
        async with running(tmp_path) as mesh:
            token = await mesh.token("reviews")
            csr = x509.make_csr(x509.new_key(), REVIEWS)
            with refused(GrpcStatus.UNAUTHENTICATED, "neither a client certificate nor a join token"):
                await mesh.ask(csr)
            with refused(GrpcStatus.PERMISSION_DENIED, "is for default/reviews only"):
                await mesh.ask(x509.make_csr(x509.new_key(), RATINGS), token=token)
            with refused(GrpcStatus.PERMISSION_DENIED, "not of the trust domain"):
                await mesh.ask(
                    x509.make_csr(x509.new_key(), SpiffeId("evil", "default", "reviews")), token=token
                )
            with refused(GrpcStatus.PERMISSION_DENIED, "istiod's own identity"):
                await mesh.ask(x509.make_csr(x509.new_key(), istiod_identity(TD)), token=token)
            with refused(GrpcStatus.INVALID_ARGUMENT, "cannot be read"):
                await mesh.ask("no csr", token=token)
            with refused(GrpcStatus.UNAUTHENTICATED, "there is no join token"):
                await mesh.ask(csr, token=token[:20] + ("A" if token[20] != "A" else "B") + token[21:])
            with refused(GrpcStatus.UNAUTHENTICATED, "not a join token"):
                await mesh.ask(csr, token="nonsense")
            await mesh.ask(csr, token=token)
            with refused(GrpcStatus.PERMISSION_DENIED, "used already"):
                await mesh.ask(x509.make_csr(x509.new_key(), REVIEWS), token=token)
            secret = token.split(".")[2]
            assert secret not in caplog.text
            assert caplog.text.count("certificate refused") == 8
            assert caplog.text.count("certificate issued") == 1

    trio.run(main)


def test_a_first_contact_can_pin_the_root_and_then_trust_istiod(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as mesh:
            pin = (await mesh.token("reviews")).split(".")[3]
            pem = await tls.pinned_root(await trio.open_tcp_stream("127.0.0.1", mesh.port), pin, "istiod")
            context = tls.client_context(pem)
            async with await tls.connect("127.0.0.1", mesh.port, context, istiod_identity(TD)) as stream:
                assert tls.peer_spiffe_id(stream) == istiod_identity(TD)
            with pytest.raises(tls.TlsError, match="pinned"):
                await tls.pinned_root(await trio.open_tcp_stream("127.0.0.1", mesh.port), "00" * 32, "istiod")

    trio.run(main)


def test_istiods_own_certificate_changes_under_a_listener_that_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as mesh:
            context = tls.client_context(mesh.authority.roots_pem)
            seen = set()
            for _ in range(2):
                async with await tls.connect("127.0.0.1", mesh.port, context, istiod_identity(TD)) as stream:
                    seen.add(tls.peer_certificate(stream))
                mesh.certificate.renew(datetime.now(UTC))
            assert len(seen) == 2

    trio.run(main)


def test_istiods_own_certificate_is_renewed_at_half_of_its_life(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    start = datetime.now(UTC)
    authority = mesh_authority(tmp_path, None, start)
    names = server_names([istiod_identity(TD)], configured=[], listening=["::"], hostname="istiod-1.example")
    assert names.ips == ("127.0.0.1", "::1")
    assert names.dns == ("istiod", "istiod-1.example", "localhost")

    async def main() -> None:
        began = trio.current_time()

        def clock() -> datetime:
            return start + timedelta(seconds=trio.current_time() - began)

        certificate = ServingCertificate(
            authority, names, client_roots=authority.roots_pem, client_required=False, now=start
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(certificate.keep_fresh, clock)
            await trio.sleep(11.9 * 3600)
            first = certificate.expires
            await trio.sleep(0.2 * 3600)
            assert certificate.expires - first == pytest.approx(
                timedelta(hours=12), abs=timedelta(minutes=10)
            )
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


def issued_earlier(
    authority: Authority, key: x509.PrivateKey, identity: SpiffeId, now: datetime, ended: timedelta
) -> Certificate:
    """A certificate of one hour that ended so long ago."""
    hour = timedelta(hours=1)
    return authority.issue(key.public_key(), now=now - ended - hour, ttl=hour, uris=[identity]).certificate


def test_a_lapsed_certificate_renews_for_its_owner_and_for_a_limited_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, timedelta(days=60)) as mesh:
            now = datetime.now(UTC)

            key, other, stranger = x509.new_key(), x509.new_key(), x509.new_key()
            csr = x509.make_csr(x509.new_key(), REVIEWS)
            day_ago = issued_earlier(mesh.authority, key, REVIEWS, now, timedelta(days=1))
            chain = await mesh.ask(csr, proof=lapsed.prove(day_ago, key, csr))
            assert SpiffeId.of_certificate(x509.load_chain(chain[0])[0]) == REVIEWS

            with refused(GrpcStatus.PERMISSION_DENIED, "not by the lapsed certificate's key"):
                await mesh.ask(csr, proof=lapsed.prove(day_ago, other, csr))
            another = x509.make_csr(x509.new_key(), REVIEWS)
            with refused(GrpcStatus.PERMISSION_DENIED, "not by the lapsed certificate's key"):
                await mesh.ask(another, proof=lapsed.prove(day_ago, key, csr))
            with refused(GrpcStatus.PERMISSION_DENIED, "does not allow"):
                foreign = x509.make_csr(x509.new_key(), RATINGS)
                await mesh.ask(foreign, proof=lapsed.prove(day_ago, key, foreign))
            long_ago = issued_earlier(mesh.authority, key, REVIEWS, now, timedelta(days=8))
            with refused(GrpcStatus.PERMISSION_DENIED, "longer ago than ca.renewalGrace allows"):
                await mesh.ask(csr, proof=lapsed.prove(long_ago, key, csr))
            root = x509.self_signed_root(stranger, ttl=timedelta(days=365), now=now - timedelta(days=30))
            forged = x509.issue(
                key.public_key(), ca_cert=root, ca_key=stranger, ttl=timedelta(hours=1),
                now=now - timedelta(days=1), uri_sans=[REVIEWS],
            )  # fmt: skip
            with refused(GrpcStatus.PERMISSION_DENIED, "not issued by this mesh's CA"):
                await mesh.ask(csr, proof=lapsed.prove(forged, key, csr))
            with refused(GrpcStatus.PERMISSION_DENIED, "cannot be read"):
                await mesh.ask(csr, proof=((lapsed.CERTIFICATE, b"nonsense"), (lapsed.SIGNATURE, b"x")))

    trio.run(main)


def test_a_lapsed_certificate_that_was_revoked_renews_no_more(tmp_path: Path) -> None:
    revoked: set[str] = set()

    async def main() -> None:
        async with running(tmp_path, timedelta(days=60), revoked=revoked) as mesh:
            key = x509.new_key()
            csr = x509.make_csr(x509.new_key(), REVIEWS)
            day_ago = issued_earlier(mesh.authority, key, REVIEWS, datetime.now(UTC), timedelta(days=1))
            await mesh.ask(csr, proof=lapsed.prove(day_ago, key, csr))
            revoked.add(f"{day_ago.serial_number:x}")
            with refused(GrpcStatus.PERMISSION_DENIED, "it was revoked"):
                await mesh.ask(csr, proof=lapsed.prove(day_ago, key, csr))

    trio.run(main)
