"""`hostmesh-agent run` against a real istiod: joining, being seen, restarts of both, leaving."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dns.message
import dns.query

REVIEWS = {
    "service": "reviews",
    "serviceAccount": "bookinfo-reviews",
    "labels": {"app": "reviews", "version": "v2"},
    "ports": [{"name": "http", "port": 9080}],
}


def eventually(what: str, condition: Any, seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


def vip(agent: Any, name: str = "reviews") -> list[str]:
    answer = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=agent.ports["dns"], timeout=5)
    return [rdata.to_text() for rrset in answer.answer for rdata in rrset]


def health(mesh: Any) -> list[str]:
    return [str(work.get("health", "")).lower() for work in mesh.workloads()]


def test_a_host_joins_serves_and_leaves(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    status = agent.status()
    (workload,) = status["workloads"]
    assert workload["identity"]["spiffe"] == "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
    assert workload["istiod"] == {"connected": True, "error": None, "rejected": None, "notRegistered": None}
    eventually("healthy in the registry", lambda: health(mesh) == ["healthy"])
    (address,) = eventually("its name", lambda: vip(agent))
    assert address.startswith("240.240.")
    readiness = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{agent.ports['readiness']}/healthz/ready"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert readiness.stdout == "ready\n"
    name = workload["node"].split("~")[2]
    assert "ACTIVE" in mesh.meshctl("proxy-config", "secret", name), "istiod reaches the host's pages"
    state = Path(agent.directory / "state")
    for file in state.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, f"{file} can be read by others"
    assert agent.process.terminate() == 0
    assert mesh.workloads() == [], "it left at once"


def test_a_host_reboots_into_service_with_istiod_down_and_its_token_gone(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    before = eventually("its name", lambda: vip(agent))
    agent.process.kill()
    mesh.istiod.kill()
    agent.token.unlink()
    agent.start().ready()
    assert vip(agent) == before
    assert not agent.status()["workloads"][0]["istiod"]["connected"]
    mesh.start_istiod()
    eventually("connected again", lambda: agent.status()["workloads"][0]["istiod"]["connected"], 30)


def test_an_agent_outlives_istiod(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    eventually("its name", lambda: vip(agent))
    generation = agent.status()["generation"]
    mesh.istiod.kill()
    eventually("it notices", lambda: not agent.status()["workloads"][0]["istiod"]["connected"])
    assert agent.status()["ready"]
    assert vip(agent)
    mesh.start_istiod()
    eventually("connected again", lambda: agent.status()["workloads"][0]["istiod"]["connected"], 30)
    eventually("healthy in the registry", lambda: health(mesh) == ["healthy"])
    assert agent.status()["generation"] - generation <= 2, "the same content is not sent again"


def test_nothing_is_ready_while_somebody_else_listens_on_the_ports_of_the_proxy(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS)
    with socket.create_server(("0.0.0.0", agent.ports["outbound"])):
        agent.start()
        where = f"0.0.0.0:{agent.ports['outbound']}"
        waiting = eventually("it waits for the port", lambda: (agent.status() or {}).get("waiting"))
        assert waiting == {where: "Address already in use"}
        assert agent.status()["workloads"][0]["istiod"]["rejected"] is None, (
            "the configuration is not at fault"
        )
        assert not agent.status()["ready"]
        assert health(mesh) != ["healthy"]
    agent.ready()
    assert agent.status()["waiting"] == {}
    eventually("healthy in the registry", lambda: health(mesh) == ["healthy"])


def test_a_host_that_cannot_serve_any_more_is_unhealthy_with_the_reason_until_it_can(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    eventually("healthy in the registry", lambda: health(mesh) == ["healthy"])
    (worker,) = agent.status()["workers"]
    agent.process.kill()
    eventually("its worker has ended", lambda: not Path(f"/proc/{worker['pid']}").exists())
    where = f"0.0.0.0:{agent.ports['inbound']}"
    with socket.create_server(("0.0.0.0", agent.ports["inbound"])):
        agent.start()
        eventually("unhealthy in the registry", lambda: health(mesh) == ["unhealthy"])
        reason = f"no worker serves {where}: Address already in use"
        eventually("the reason", lambda: reason in mesh.meshctl("proxy-status", "-o", "json"))
        (workload,) = agent.status()["workloads"]
        assert (workload["healthy"], workload["healthReason"]) == (False, reason)
    agent.ready()
    eventually("healthy in the registry again", lambda: health(mesh) == ["healthy"])
    assert agent.status()["workloads"][0]["healthy"]


def test_the_probe_decides_what_the_registry_says(mesh: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as application:
        port = application.getsockname()[1]
        probe = {"tcpSocket": {"port": port}, "periodSeconds": 0.1, "failureThreshold": 2}
        agent = mesh.agent("one", {**REVIEWS, "probe": probe}).start().ready()
        eventually("healthy in the registry", lambda: health(mesh) == ["healthy"])
    eventually("unhealthy in the registry", lambda: health(mesh) == ["unhealthy"])
    assert agent.status()["ready"], "the proxy itself is"
    with socket.create_server(("127.0.0.1", port)):
        eventually("healthy again", lambda: health(mesh) == ["healthy"])


def test_drain_ends_the_agent_and_a_second_agent_is_refused(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    first = agent.process
    agent.start()
    assert agent.process.process.wait(15) != 0
    assert "another agent is running" in agent.process.text()
    command = [str(Path(sys.executable).parent / "hostmesh-agent"), "drain", "-c", str(agent.config)]
    subprocess.run(command, check=True, timeout=10, capture_output=True)
    assert first.process.wait(15) == 0
    assert mesh.workloads() == []


def test_a_token_for_another_identity_is_refused_with_the_reason(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS)
    agent.token.write_text(
        mesh.meshctl("token", "create", "--namespace", "default", "--service-account", "other")
    )
    agent.start()

    def refusal() -> Any:
        status = agent.status()
        return status and status["workloads"][0]["identity"]["error"]

    error = eventually("refused", refusal)
    assert "PERMISSION_DENIED" in error or "not allowed" in error
    assert "bookinfo-reviews" in mesh.istiod.text()
