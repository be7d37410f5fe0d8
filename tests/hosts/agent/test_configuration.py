"""What a host does with a configuration of which it cannot use a part: real istiod, real agent, real worker."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.agent.conftest import Agent, Mesh, eventually

REVIEWS = {"service": "reviews", "ports": [{"name": "http", "port": 9080}]}
DOCUMENTS = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: default}
spec:
  hosts: [NAME.example]
  ports: [{number: 443, name: https, protocol: HTTPS}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.7}]
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: secured, namespace: default}
spec:
  host: secured.example
  trafficPolicy:
    tls: {mode: MUTUAL, clientCertificate: FOLDER/cert.pem, privateKey: FOLDER/key.pem, caCertificates: FOLDER/cert.pem}
"""


def workload(agent: Agent) -> dict[str, Any]:
    status = agent.status()
    assert status is not None
    found: dict[str, Any] = status["workloads"][0]
    return found


def apply(mesh: Mesh, folder: Path, text: str) -> None:
    file = folder / "documents.yaml"
    file.write_text(text)
    mesh.meshctl("apply", "-f", str(file))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the workers' user may read, which tmp_path is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_missing_certificate_file_holds_back_only_its_cluster_until_it_is_there(
    mesh: Mesh, tmp_path: Path, open_folder: Path
) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    before = workload(agent)["resources"]["clusters"]
    folder = open_folder / "certificates"
    secured = RULE.replace("FOLDER", str(folder))
    apply(mesh, tmp_path, "---".join([DOCUMENTS.replace("NAME", "secured"), secured]))
    refused = eventually("what cannot be used is named", lambda: workload(agent)["refused"])
    assert {one["type"] for one in refused} == {"Cluster"}
    assert all("secured.example" in one["path"] and "cert.pem" in one["reason"] for one in refused)
    held_back = workload(agent)["resources"]["clusters"]
    apply(mesh, tmp_path, DOCUMENTS.replace("NAME", "other"))
    eventually("a later change", lambda: workload(agent)["resources"]["clusters"] > held_back)
    assert workload(agent)["refused"] == refused
    assert workload(agent)["missing"] == []
    folder.mkdir()
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=x"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*make.split(), *files], check=True, capture_output=True)
    (folder / "key.pem").chmod(0o644)
    apply(mesh, tmp_path, DOCUMENTS.replace("NAME", "third"))
    eventually("the cluster is there with its files", lambda: workload(agent)["refused"] == [])
    assert workload(agent)["resources"]["clusters"] >= before + 3
