"""A worker takes of a table what it can use, keeps the last good version of the rest, and lets go of what has gone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.table.build import CLUSTER, LISTENER, SECRET
from agent.table.snapshot import Table
from agent.table.tls import DataSource, DownstreamTls, Secret, UpstreamTls
from agent.worker.worker import Worker
from tests.unit.agent_worker.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    found = Stage(tmp_path)
    yield found
    found.sinks.close()


def pem_pair(uri: str = "spiffe://x/y") -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    certificate = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def inline(name: str, pair: tuple[bytes, bytes]) -> Secret:
    return Secret(name, DataSource(inline=pair[0]), DataSource(inline=pair[1]))


def in_files(folder: Path) -> Secret:
    return Secret("", DataSource(filename=str(folder / "cert")), DataSource(filename=str(folder / "key")))


def with_tls(table: Table, tls: UpstreamTls, name: str = "b") -> Table:
    """The table with one more cluster, like `a` but with TLS."""
    cluster = replace(table.clusters["a"], name=name, tls=tls)
    return replace(table, clusters={**table.clusters, name: cluster})


def served(table: Table, tls: DownstreamTls) -> Table:
    """The table with TLS on its filter chain."""
    main = table.listeners["main"]
    chains = tuple(replace(chain, tls=tls) for chain in main.chains)
    return replace(table, listeners={"main": replace(main, chains=chains)})


def test_a_missing_certificate_file_holds_back_only_its_cluster(stage: Stage, tmp_path: Path) -> None:
    table = stage.space.table
    wanted = with_tls(table, UpstreamTls(certificates=(in_files(tmp_path),)))
    refused = stage.space.apply(wanted)
    assert [(one.type_url, one.name, one.path) for one in refused] == [
        (CLUSTER, "b", "Cluster[b].transport_socket")
    ]
    assert str(tmp_path) in refused[0].reason
    assert set(stage.space.clusters) == {"a"}
    # The rest of a later change is taken, and the cluster as soon as the files are there.
    certificate, key = pem_pair()
    (tmp_path / "cert").write_bytes(certificate)
    (tmp_path / "key").write_bytes(key)
    assert stage.space.apply(wanted) == ()
    assert set(stage.space.clusters) == {"a", "b"}


def test_a_cluster_keeps_its_last_good_version(stage: Stage, tmp_path: Path) -> None:
    table = stage.space.table
    stage.space.apply(with_tls(table, UpstreamTls(sni="good")))
    before = stage.space.clusters["b"]
    refused = stage.space.apply(with_tls(table, UpstreamTls(certificates=(in_files(tmp_path),))))
    assert [one.name for one in refused] == ["b"]
    assert stage.space.clusters["b"] is before
    assert before.config.tls == UpstreamTls(sni="good")
    assert before.hosts[0].tls.sni == "good"


def test_a_bad_secret_is_refused_each_time_and_the_last_good_one_stays(stage: Stage) -> None:
    pair = pem_pair()
    good, bad = inline("s", pair), inline("s", (b"nonsense", pair[1]))
    table = with_tls(stage.space.table, UpstreamTls(certificates=("s",)))
    assert stage.space.apply(replace(table, secrets={"s": good})) == ()
    context = stage.space.clusters["b"].hosts[0].tls.context
    for _ in range(3):
        refused = stage.space.apply(replace(table, secrets={"s": bad}))
        assert [(one.type_url, one.name) for one in refused] == [(SECRET, "s")]
        assert stage.space.clusters["b"].hosts[0].tls.context is context
    renewed = inline("s", pem_pair())
    assert stage.space.apply(replace(table, secrets={"s": renewed})) == ()
    assert stage.space.clusters["b"].hosts[0].tls.context is not context


def test_the_own_name_that_upstreams_are_told_is_that_of_the_renewed_certificate(stage: Stage) -> None:
    table = served(stage.space.table, DownstreamTls(certificates=("s",)))
    for uri in ("spiffe://a/old", "spiffe://a/new"):
        assert stage.space.apply(replace(table, secrets={"s": inline("s", pem_pair(uri))})) == ()
        tls = stage.space.every_station()[0].tls
        assert tls is not None
        assert tls.local_uri_sans == (uri,)


def test_nothing_of_tls_changes_where_the_table_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_tls(stage.space.table, UpstreamTls(certificates=("s",)))
    stage.space.apply(replace(table, secrets={"s": inline("s", pem_pair())}))
    context = stage.space.clusters["b"].hosts[0].tls.context
    main = table.listeners["main"]
    taken = replace(main, bind=True, address=replace(main.address, host="192.0.2.1"))
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        stage.space.apply(replace(table, secrets={"s": inline("s", pem_pair())}, listeners={"main": taken}))
    assert stage.space.clusters["b"].hosts[0].tls.context is context


def test_a_first_listener_closes_only_the_chain_whose_certificate_is_missing(
    stage: Stage, tmp_path: Path
) -> None:
    table = stage.space.table
    stage.space.apply(replace(table, listeners={}))
    refused = stage.space.apply(served(table, DownstreamTls(certificates=(in_files(tmp_path),))))
    assert [(one.type_url, one.path, one.in_use) for one in refused] == [
        (LISTENER, "Listener[main].filter_chains[0].transport_socket", True)
    ]
    (station,) = stage.space.every_station()[:1]
    assert station.tls is not None
    assert station.tls.context is None


def test_a_listener_keeps_its_last_good_version_where_a_new_certificate_is_missing(
    stage: Stage, tmp_path: Path
) -> None:
    before = stage.space.every_station()
    refused = stage.space.apply(served(stage.space.table, DownstreamTls(certificates=(in_files(tmp_path),))))
    assert [one.name for one in refused] == ["main"]
    assert stage.space.every_station() == before


BUCKET = (
    '[{match: {prefix: /}, route: {cluster: a}, typed_per_filter_config: {limit: {"@type": '
    "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, "
    "filter_enabled: {default_value: {numerator: 100}}, token_bucket: {max_tokens: NUMBER, fill_interval: 60s}}}}]"
)
FILTER = (
    '          - {name: limit, typed_config: {"@type": '
    "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x}}\n"
)


def limited(text: str) -> str:
    router = "          - name: envoy.filters.http.router"
    return text.replace(router, FILTER + router)


def test_changes_of_a_filter_leave_the_state_of_the_last_one(stage: Stage) -> None:
    for number in range(20):
        stage.apply(BUCKET.replace("NUMBER", str(number + 1)), limited)
    stage.later(61)  # the former chains' connections have had their time
    assert len(stage.space._filter_state._held) <= 2


def with_worker(test: Callable[[Worker], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                worker = Worker()
                await nursery.start(worker.run)
                await test(worker)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_removed_workload_ends_with_its_connections_names_and_clusters(stage: Stage) -> None:
    table = stage.space.table
    named = replace(table.clusters["a"], name="n", discovery="strict_dns")
    table = replace(table, clusters={**table.clusters, "n": named})

    async def test(worker: Worker) -> None:
        worker.apply({"default/w": table})
        space = worker.spaces["default/w"]
        assert worker._resolver is not None
        assert worker._resolver.clusters == 1
        worker.apply({})
        assert worker.spaces == {}
        while worker._leaving:
            await trio.sleep(0.05)
        assert space.clusters == {}
        assert worker._resolver.clusters == 0

    with_worker(test)


def test_a_removed_cluster_is_resolved_no_longer(stage: Stage) -> None:
    table = stage.space.table
    named = replace(table.clusters["a"], name="n", discovery="strict_dns")

    async def test(worker: Worker) -> None:
        worker.apply({"": replace(table, clusters={"n": named})})
        assert worker._resolver is not None
        assert worker._resolver.clusters == 1
        worker.apply({"": replace(table, clusters={})})
        assert worker._resolver.clusters == 0

    with_worker(test)
