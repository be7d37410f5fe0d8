"""meshctl against a real istiod: resources, tokens, errors as a user sees them."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from istiod.admin_context import AdminContext, read
from istiod.ctl.client import AdminClient
from istiod.ctl.failure import CommandError
from tests.istiod.conftest import BIN, CASES, Istiod, poll
from tests.istiod.proxies import ISTIOD, enrol
from wire import tls
from wire.spiffe import SpiffeId

SAMPLES = CASES / "istio-samples"


def test_a_first_start_leaves_a_context_that_only_its_owner_may_read(shared_istiod: Istiod) -> None:
    assert shared_istiod.context.stat().st_mode & 0o777 == 0o600
    assert shared_istiod.state.stat().st_mode & 0o777 == 0o700
    for key in shared_istiod.state.rglob("*key*.pem"):
        assert key.stat().st_mode & 0o777 == 0o600, key
    assert "control plane version: 0.1.0" in shared_istiod.ok("version")


def test_apply_says_what_became_of_each_document(istiod: Istiod) -> None:
    file = SAMPLES / "virtual-service-all-v1.yaml"
    first = istiod.ok("apply", "-f", file)
    assert [line.split(" (")[0] for line in first.splitlines()] == [
        "virtualservice/productpage created",
        "virtualservice/reviews created",
        "virtualservice/ratings created",
        "virtualservice/details created",
    ]
    assert all("(version " in line for line in first.splitlines())
    again = istiod.ok(
        "apply",
        "-f",
        SAMPLES / "virtual-service-reviews-90-10.yaml",
        "-f",
        file.parent / "destination-rule-reviews.yaml",
    )
    assert "virtualservice/reviews configured" in again
    assert "destinationrule/reviews created" in again
    unchanged = istiod.ok("apply", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")
    assert "virtualservice/reviews unchanged" in unchanged


def test_a_dry_run_writes_nothing(shared_istiod: Istiod) -> None:
    out = shared_istiod.ok("apply", "-n", "dry", "--dry-run", "-f", SAMPLES / "virtual-service-all-v1.yaml")
    assert "virtualservice/reviews created (dry run)" in out
    assert shared_istiod.json("get", "vs", "-n", "dry")["items"] == []


def test_one_wrong_document_keeps_all_from_being_written(shared_istiod: Istiod, tmp_path: Path) -> None:
    good = (SAMPLES / "virtual-service-all-v1.yaml").read_text()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        good
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken}
spec:
  hosts: [reviews]
  http:
  - rout: []
"""
    )
    done = shared_istiod.meshctl("apply", "-n", "wrong", "-f", wrong)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{wrong}:" in done.stderr
    assert "VirtualService wrong/broken" in done.stderr
    assert "spec.http[0].rout" in done.stderr
    assert "did you mean route" in done.stderr
    assert shared_istiod.json("get", "all", "-n", "wrong")["items"] == []


def test_what_get_prints_can_be_applied_again(shared_istiod: Istiod) -> None:
    shared_istiod.ok("apply", "-n", "again", "-f", SAMPLES / "destination-rule-all.yaml")
    text = shared_istiod.ok("get", "dr", "reviews", "-n", "again", "-o", "yaml")
    assert yaml.safe_load(text)["spec"]["host"] == "reviews"
    assert "destinationrule/reviews unchanged" in shared_istiod.ok("apply", "-f", "-", stdin=text)


def test_a_stale_document_is_a_conflict(shared_istiod: Istiod) -> None:
    shared_istiod.ok("apply", "-n", "stale", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")
    text = shared_istiod.ok("get", "vs", "reviews", "-n", "stale", "-o", "yaml")
    shared_istiod.ok("apply", "-n", "stale", "-f", SAMPLES / "virtual-service-reviews-50-v3.yaml")
    done = shared_istiod.meshctl("apply", "-f", "-", stdin=text)
    assert done.returncode == 1
    assert "was changed meanwhile" in done.stderr


def test_diff_shows_the_change_and_exits_1(shared_istiod: Istiod) -> None:
    shared_istiod.ok("apply", "-n", "diff", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")
    same = shared_istiod.meshctl("diff", "-n", "diff", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")
    assert (same.returncode, same.stdout) == (0, "")
    other = shared_istiod.meshctl("diff", "-n", "diff", "-f", SAMPLES / "virtual-service-reviews-50-v3.yaml")
    assert other.returncode == 1
    assert "-      weight: 90" in other.stdout
    assert "+      weight: 50" in other.stdout


def test_delete_by_name_and_by_file(shared_istiod: Istiod) -> None:
    shared_istiod.ok("apply", "-n", "gone", "-f", SAMPLES / "virtual-service-all-v1.yaml")
    assert (
        shared_istiod.ok("delete", "-n", "gone", "vs", "reviews").strip() == "virtualservice/reviews deleted"
    )
    missing = shared_istiod.meshctl("delete", "-n", "gone", "virtualservice/reviews")
    assert (missing.returncode, "not found" in missing.stderr) == (1, True)
    shared_istiod.ok(
        "delete", "-n", "gone", "--ignore-not-found", "-f", SAMPLES / "virtual-service-all-v1.yaml"
    )
    assert shared_istiod.json("get", "vs", "-n", "gone")["items"] == []


def test_get_across_namespaces_shows_kubectls_columns(shared_istiod: Istiod) -> None:
    shared_istiod.ok("apply", "-n", "wide-a", "-f", SAMPLES / "virtual-service-reviews-90-10.yaml")
    shared_istiod.ok("apply", "-n", "wide-b", "-f", SAMPLES / "destination-rule-reviews.yaml")
    out = shared_istiod.ok("get", "vs,dr", "-A", "-o", "wide")
    assert "NAMESPACE" in out.splitlines()[0]
    assert "GENERATION" in out.splitlines()[0]
    assert any(line.startswith("wide-a ") and '["reviews"]' in line for line in out.splitlines())
    assert any(line.startswith("wide-b ") and "destinationrule/reviews" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("get", "virtualservic"), 1, "did you mean"),
        (("get", "vs", "nothing"), 1, 'VirtualService "nothing" in namespace default not found'),
        (("apply",), 2, "filename"),
        (("apply", "-f", "/does/not/exist"), 1, "no such file"),
        (("token", "create", "-s", "a", "--ttl", "soon"), 2, "duration"),
        (("token", "create", "-s", "Not a name"), 1, "serviceAccounts"),
        (("token", "revoke", "nothing"), 1, "not found"),
        (("proxy-status", "default/nobody"), 1, "proxy default/nobody not found"),
        (("proxy-config", "clusters", "default/nobody"), 1, "proxy default/nobody not found"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_mistakes_are_answered_with_what_is_wrong(
    shared_istiod: Istiod, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = shared_istiod.meshctl(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_needs_no_istiod() -> None:
    done = subprocess.run(
        [BIN / "meshctl", "validate", "-f", SAMPLES / "virtual-service-all-v1.yaml"],
        capture_output=True,
        text=True,
        env={"HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "virtualservice/reviews valid" in done.stdout


def test_without_a_context_the_error_says_where_to_get_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "meshctl", "get", "vs"],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 1
    assert "admin-context.yaml" in done.stderr


def test_an_istiod_that_is_not_there_is_named(istiod: Istiod) -> None:
    istiod.stop()
    done = istiod.meshctl("get", "vs")
    assert done.returncode == 1
    assert "cannot reach istiod at https://127.0.0.1:" in done.stderr
    assert "systemctl status hostmesh-istiod" in done.stderr


def test_a_context_that_others_may_read_is_refused(istiod: Istiod) -> None:
    istiod.context.chmod(0o644)
    done = istiod.meshctl("get", "vs")
    assert done.returncode == 1
    assert "chmod 600" in done.stderr


def test_tokens_are_made_listed_and_revoked(shared_istiod: Istiod) -> None:
    created = shared_istiod.json(
        "token", "create", "-n", "tok", "-s", "reviews", "-s", "ratings", "--ttl", "2h"
    )
    assert created["token"].startswith(f"hm1.{created['id']}.")
    alone = shared_istiod.ok("token", "create", "-n", "tok", "-s", "reviews").strip()
    assert len(alone.split(".")) == 4
    assert "\n" not in alone
    listed = {token["id"]: token for token in shared_istiod.json("token", "list")}
    assert listed[created["id"]]["serviceAccounts"] == ["reviews", "ratings"]
    assert "token" not in listed[created["id"]]
    shared_istiod.ok("token", "revoke", created["id"])
    listed = {token["id"]: token for token in shared_istiod.json("token", "list")}
    assert listed[created["id"]]["status"] == "revoked"
    secret = created["token"].split(".")[2]
    assert secret not in shared_istiod.log


def test_the_admin_port_asks_for_a_certificate_of_the_admin_ca(shared_istiod: Istiod) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(shared_istiod.address("admin"), timeout=5) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
        context.wrap_socket(raw) as tls,
    ):
        tls.sendall(b"GET /api/v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.recv(100) == b"", "an answer without a certificate"
        raise ConnectionResetError


def test_a_workloads_certificate_does_not_open_the_admin_api(shared_istiod: Istiod) -> None:
    token = shared_istiod.ok("token", "create", "-n", "adm", "-s", "reviews").strip()
    workload = trio.run(
        enrol, shared_istiod.address("xds"), token, SpiffeId("cluster.local", "adm", "reviews")
    )
    admin = read(shared_istiod.context)
    stolen = AdminContext(
        admin.address, admin.certificate_authority, workload.chain.decode(), workload.key.decode()
    )
    with AdminClient(stolen) as client, pytest.raises(CommandError) as refusal:
        client.get("/api/v1/version")
    assert "refused this context's certificate" in str(refusal.value)


def test_an_admins_certificate_does_not_open_xds(shared_istiod: Istiod) -> None:
    admin = read(shared_istiod.context)

    async def story() -> None:
        context = tls.client_context(
            (shared_istiod.state / "ca" / "root-cert.pem").read_bytes(),
            admin.client_certificate.encode(),
            admin.client_key.encode(),
        )
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError, OSError)):
            stream = await tls.connect(*shared_istiod.address("xds"), context, ISTIOD)
            try:
                await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                assert await stream.receive_some() == b"", "istiod talks HTTP/2 with an admin's certificate"
                raise ConnectionResetError
            finally:
                await trio.aclose_forcefully(stream)

    trio.run(story)


def test_a_request_above_the_limit_is_refused(shared_istiod: Istiod) -> None:
    big = json.dumps({"sources": [{"name": "big", "text": "#" * (9 * 1024 * 1024)}]}).encode()
    with pytest.raises(CommandError) as refusal:
        shared_istiod.api("/api/v1/apply", "POST", big)
    assert "at most" in str(refusal.value)


def test_monitoring_says_ready_healthy_and_counts(shared_istiod: Istiod) -> None:
    assert shared_istiod.monitoring("/ready") == (200, "ready\n")
    assert shared_istiod.monitoring("/healthz")[0] == 200
    assert json.loads(shared_istiod.monitoring("/version")[1]) == {"version": "0.1.0"}
    assert "pilot_xds 0.0" in shared_istiod.monitoring("/metrics")[1]
    assert shared_istiod.monitoring("/api/v1/version")[0] == 404


def test_sigterm_ends_it_with_status_0(istiod: Istiod) -> None:
    assert istiod.stop() == 0


def test_a_restart_keeps_resources_and_the_context(istiod: Istiod) -> None:
    istiod.ok("apply", "-f", SAMPLES / "virtual-service-all-v1.yaml")
    before = istiod.context.read_text()
    istiod.kill()
    istiod.start()
    assert len(istiod.json("get", "vs")["items"]) == 4
    address = yaml.safe_load(istiod.context.read_text())
    old = yaml.safe_load(before)
    assert address["certificateAuthority"] == old["certificateAuthority"]


def test_a_broken_configuration_is_named_and_nothing_starts(tmp_path: Path) -> None:
    config = tmp_path / "istiod.yaml"
    config.write_text("stateDir: /tmp/x\nlisten: {xdss: 1}\n")
    done = subprocess.run(
        [BIN / "hostmesh-istiod", "check-config", "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "listen.xdss: unknown field; did you mean xds?" in done.stderr


def test_two_istiods_cannot_have_one_port(istiod: Istiod, tmp_path: Path) -> None:
    config = tmp_path / "second.yaml"
    host, port = istiod.address("admin")
    listen = f'{{xds: "127.0.0.1:0", xdsPlaintext: "127.0.0.1:0", admin: "{host}:{port}"}}'
    config.write_text(f"stateDir: {tmp_path}/second\nlisten: {listen}\n")
    done = subprocess.run(
        [BIN / "hostmesh-istiod", "run", "--config", config],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot listen on {host}:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_sighup_takes_over_new_mesh_settings(istiod: Istiod) -> None:
    assert istiod.process is not None
    config = istiod.directory / "istiod.yaml"
    config.write_text(config.read_text() + "mesh: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}\n")
    istiod.process.send_signal(1)
    poll(lambda: "configuration read again" in istiod.log, 10, "reload")


def virtual_service(name: str, host: str = "reviews", **rule: Any) -> dict[str, Any]:
    route = [{"destination": {"host": "reviews"}}]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name},
        "spec": {"hosts": [host], "http": [{"route": route, **rule}]},
    }


def test_put_stores_only_over_the_version_that_the_document_names(istiod: Istiod) -> None:
    path = "/api/v1/resources/virtualservice/default/reviews"
    document = virtual_service("reviews")
    first = istiod.api(path, "PUT", json.dumps(document).encode())
    istiod.api(path, "PUT", json.dumps(virtual_service("reviews", timeout="1s")).encode())
    document["metadata"]["resourceVersion"] = first["version"]
    with pytest.raises(CommandError, match="was changed meanwhile"):
        istiod.api(path, "PUT", json.dumps(document).encode())
    assert istiod.api(path)["spec"]["http"][0]["timeout"] == "1s"


def test_sigterm_ends_an_istiod_that_waits_for_its_registry(istiod: Istiod) -> None:
    istiod.stop()
    with sqlite3.connect(istiod.state / "registry.db") as rows:
        rows.execute("DROP TABLE instances")
    rows.close()
    log = istiod.directory / "log.waiting"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BIN / "hostmesh-istiod", "run", "--config", istiod.directory / "istiod.yaml"],
            stderr=file,
            stdout=file,
        )
    try:
        poll(lambda: "last snapshot stays in force" in log.read_text(), 20, "istiod to wait")
        process.terminate()
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_new_domain_suffix_is_shown_after_a_reload(istiod: Istiod) -> None:
    with sqlite3.connect(istiod.state / "registry.db") as rows:
        body = {"namespace": "default", "name": "web", "slot": 7, "ports": [{"name": "http", "number": 80}]}
        rows.execute("INSERT INTO services VALUES ('default', 'web', ?)", (json.dumps(body),))
    rows.close()
    poll(lambda: istiod.json("service", "list"), 10, "the service")
    config = istiod.directory / "istiod.yaml"
    config.write_text(config.read_text() + "\nmesh: {domainSuffix: mesh.example}\n")
    assert istiod.process is not None
    istiod.process.send_signal(signal.SIGHUP)
    poll(
        lambda: istiod.json("service", "list")[0]["hostname"] == "web.default.svc.mesh.example",
        10,
        "the new suffix",
    )
