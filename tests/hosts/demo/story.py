"""The demo's steps, in the order a newcomer would try them. Every line is measured on real processes."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from tests.hosts.demo.board import Board
from tests.hosts.demo.observers import TLS13_SELECTED, Sampler, Tap, dig, own_rules_count, s_client
from tests.hosts.lab.mesh import Mesh, wait_for
from tests.hosts.lab.namespaces import Lab

URL = "http://reviews:9080/"
ENROLLED = ("productpage", "reviews-v1", "reviews-v2", "ratings")

FIFTY = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - headers: {response: {set: {x-split: fifty}}}
    route:
    - {destination: {host: reviews, subset: v1}, weight: 50}
    - {destination: {host: reviews, subset: v2}, weight: 50}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""


class Story:
    """The mesh and the board that shows it."""

    def __init__(self, board: Board, folder: Path, registry: str) -> None:
        self.board, self.folder, self.registry = board, folder, registry
        self.lab = Lab(folder)
        self.mesh: Mesh | None = None

    def tell(self) -> None:
        """All steps."""
        self.start()
        mesh = self.mesh
        assert mesh is not None
        self.encryption(mesh)
        self.names(mesh)
        self.traffic(mesh)
        self.headers_and_faults(mesh)
        self.strict(mesh)
        self.telemetry(mesh)
        self.istiod_killed(mesh)
        self.agent_killed(mesh)

    def start(self) -> None:
        """Hosts, istiod, enrolment, registration."""
        board = self.board
        with board.step("Hosts, control plane, enrolment"):
            before = time.monotonic()
            mesh = self.mesh = Mesh(self.lab, registry=self.registry)
            took = time.monotonic() - before
            board.check("istiod is ready", "within 30 s", f"{took:.1f} s", took < 30)
            self.outsider = self.lab.add("outsider")
            for name in ENROLLED:
                service, _, version = name.partition("-")
                mesh.run_application(name, service, version or "v1")
            before = time.monotonic()
            for name in ENROLLED:
                mesh.enrol(name)
            for name in ENROLLED:
                mesh.await_agent(name)
            took = time.monotonic() - before
            board.check(
                f"{len(ENROLLED)} hosts enrolled with join tokens, ready",
                "within 60 s",
                f"{took:.1f} s",
                took < 60,
            )
            found = wait_for(
                "all workloads to be healthy", lambda: len(mesh.healthy()) == len(ENROLLED) and mesh.healthy()
            )
            names = ", ".join(sorted(f"{item['service']}@{item['node']}" for item in found))
            board.check(
                "healthy in the registry",
                str(len(ENROLLED)),
                f"{len(found)}: {names}",
                len(found) == len(ENROLLED),
            )
            if self.registry == "consul":
                out = mesh.istiod_host.run("curl", "-sf", "http://127.0.0.1:8500/v1/catalog/services").stdout
                services = sorted(name for name in json.loads(out) if name != "consul")
                board.check(
                    "Consul's own catalog has",
                    "the services",
                    ", ".join(services),
                    any("reviews" in s for s in services),
                )
                reviews = next(name for name in services if "reviews" in name)
                out = mesh.istiod_host.run(
                    "curl", "-sf", f"http://127.0.0.1:8500/v1/catalog/service/{reviews}"
                ).stdout
                rows = [f"{row['ServiceAddress']}:{row['ServicePort']}" for row in json.loads(out)]
                board.check(f"Consul's instances of {reviews}", "2", ", ".join(rows), len(rows) == 2)

    def names(self, mesh: Mesh) -> None:
        """DNS as the application sees it."""
        with self.board.step("Names"):
            host = self.lab.hosts["productpage"]
            for name in ("reviews", "reviews.default.svc.cluster.local"):
                v4 = dig(host, name)
                self.board.check(
                    f"dig {name}",
                    "a VIP of 240.240.0.0/16",
                    ", ".join(v4),
                    bool(v4) and v4[0].startswith("240.240."),
                )
            v6 = dig(host, "reviews.default.svc.cluster.local", "AAAA")
            self.board.check("dig AAAA", "an IPv6 VIP", ", ".join(v6), bool(v6) and ":" in v6[0])
            for options in ([], ["+tcp"]):
                other = dig(host, "outside.example", *options)
                how = "over TCP" if options else "over UDP"
                self.board.check(
                    f"a name outside the mesh, {how}", "192.0.2.7", ", ".join(other), other == ["192.0.2.7"]
                )
            answer = json.loads(
                mesh.curl("productpage", "http://reviews.default.svc.cluster.local:9080/full").stdout
            )
            self.board.check(
                "curl by the full name", "reviews", answer["service"], answer["service"] == "reviews"
            )

    def traffic(self, mesh: Mesh) -> None:
        """Splits and how fast a change takes effect."""
        board = self.board
        with board.step("Traffic split"):
            mesh.apply_sample("destination-rule-all.yaml")
            mesh.apply_sample("virtual-service-all-v1.yaml", "--wait")
            found = mesh.versions("productpage", URL, 50)
            board.check("virtual-service-all-v1", "50 × v1", found, found == {"v1": 50})
            mesh.apply_sample("virtual-service-reviews-90-10.yaml", "--wait")
            with board.counting("virtual-service-reviews-90-10") as counter:
                for _ in range(8):
                    counter.add(mesh.versions("productpage", URL, 50))
            share = counter.share("v2")
            board.check("v2's share of 400", "10 % ± 6", f"{share:.1%}", 0.04 <= share <= 0.16)
            sampler = Sampler(mesh, "productpage", "reviews")
            try:
                moment = time.monotonic_ns()
                mesh.apply(FIFTY)
                done = (time.monotonic_ns() - moment) / 1e6
                effect = sampler.first_after(moment, split="fifty")
                board.check(
                    "50/50: from starting `meshctl apply` to effect",
                    "≤ 5000 ms",
                    f"{effect:.0f} ms (meshctl itself {done:.0f} ms)",
                    effect <= 5000,
                )
                failures = sampler.failures()
                board.check("calls that failed meanwhile", "0", len(failures), not failures)
            finally:
                sampler.close()
            with board.counting("50/50") as counter:
                for _ in range(8):
                    counter.add(mesh.versions("productpage", URL, 50))
            share = counter.share("v2")
            board.check("v2's share of 400", "50 % ± 10", f"{share:.1%}", 0.40 <= share <= 0.60)

    def headers_and_faults(self, mesh: Mesh) -> None:
        """A header match and two faults, from Istio's samples."""
        board = self.board
        with board.step("Header match and faults"):
            mesh.apply_sample("virtual-service-reviews-test-v2.yaml", "--wait")
            jason = mesh.versions("productpage", URL, 20, "-H", "end-user: jason")
            others = mesh.versions("productpage", URL, 20)
            board.check("end-user: jason", "20 × v2", jason, jason == {"v2": 20})
            board.check("everybody else", "20 × v1", others, others == {"v1": 20})
            mesh.apply_sample("virtual-service-ratings-test-abort.yaml", "--wait")
            ratings = "http://ratings:9080/"
            jason = mesh.versions("productpage", ratings, 10, "-H", "end-user: jason")
            others = mesh.versions("productpage", ratings, 10)
            board.check("abort for jason", "10 × 500", jason, jason == {"HTTP 500": 10})
            board.check("abort for others", "10 × v1", others, others == {"v1": 10})
            mesh.apply_sample("virtual-service-ratings-test-delay.yaml", "--wait")
            took = float(
                mesh.curl(
                    "productpage", "-H", "end-user: jason", "-o", "/dev/null", "-w", "%{time_total}", ratings
                ).stdout
            )
            board.check("delay for jason", "7 s", f"{took:.2f} s", 6.9 <= took <= 8)
            mesh.apply_sample("virtual-service-all-v1.yaml", "--wait")

    def encryption(self, mesh: Mesh) -> None:
        """What passes between hosts from the very first call on, and who shows which identity."""
        board = self.board
        with board.step("Encryption and identity"), ExitStack() as taps:
            secret = f"secret-{uuid.uuid4().hex}"
            bridge = Tap(self.folder / "bridge.pcap")
            locals_ = [
                Tap(self.folder / f"{name}.pcap", self.lab.hosts[name], "lo")
                for name in ("reviews-v1", "reviews-v2")
            ]
            for tap in (bridge, *locals_):
                taps.enter_context(tap)
            answer = json.loads(mesh.curl("productpage", f"{URL}{secret}", "-d", f"body-{secret}").stdout)
            taps.close()
            inside = sum(tap.bytes.count(secret.encode()) for tap in locals_)
            outside = bridge.bytes.count(secret.encode())
            board.check(
                "the request's bytes between proxy and application", "seen", f"{inside} times", inside > 0
            )
            seen = f"{outside} times in {len(bridge.bytes)} captured bytes"
            board.check(
                "the request's bytes on the bridge",
                "0 times",
                seen,
                outside == 0 and len(bridge.bytes) > 1000,
            )
            handshakes = bridge.bytes.count(TLS13_SELECTED)
            board.check(
                "TLS 1.3 chosen on the bridge", "≥ 1 handshake", f"{handshakes} handshakes", handshakes > 0
            )
            xfcc = next(
                (v for k, v in answer["headers"].items() if k.lower() == "x-forwarded-client-cert"), "none"
            )
            client = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
            board.check("the client as the application sees it (XFCC)", client, xfcc, f"URI={client}" in xfcc)
            identity = next((mesh.workloads["productpage"].folder / "state").rglob("identity.pem"))
            roots = next((mesh.workloads["productpage"].folder / "state").rglob("root-cert.pem"))
            shown = s_client(mesh.istiod_host, f"{self.lab.hosts['reviews-v1'].v4}:9080", identity, roots)
            server = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
            board.check(
                "the server as openssl sees it", server, ", ".join(shown.uris), shown.uris == [server]
            )
            good = shown.version == "TLSv1.3" and "OK" in shown.verified
            board.check("… over", "TLSv1.3, verified", f"{shown.version}, {shown.verified}", good)

    def strict(self, mesh: Mesh) -> None:
        """Plain text from a host that is not in the mesh."""
        board = self.board
        with board.step("STRICT mutual TLS"):
            mesh.apply(STRICT, "--wait")
            target = f"http://{self.lab.hosts['reviews-v1'].v4}:9080/"
            done = self.outsider.run(
                "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", target, check=False
            )
            board.check(
                "plain text from a host outside",
                "refused",
                f"curl: ({done.returncode}) {done.stderr.strip()[-60:]}",
                done.returncode != 0 and done.stdout in ("000", ""),
            )
            inside = mesh.versions("productpage", URL, 10)
            board.check("the same service from inside", "10 × v1", inside, inside == {"v1": 10})

    def telemetry(self, mesh: Mesh) -> None:
        """Metrics as Prometheus would scrape them."""
        with self.board.step("Telemetry"):
            out = (
                self.lab.hosts["productpage"]
                .run("curl", "-sf", "http://127.0.0.1:15020/stats/prometheus")
                .stdout
            )
            label = 'destination_service="reviews.default.svc.cluster.local"'
            totals = [line for line in out.splitlines() if line.startswith("istio_requests_total")]
            rows = [line for line in totals if label in line]
            total = sum(float(line.rsplit(" ", 1)[1]) for line in rows)
            self.board.check(
                "istio_requests_total to reviews", "> 900", f"{total:.0f} in {len(rows)} series", total > 900
            )
            status = mesh.meshctl("proxy-status").stdout
            self.board.note(status)
            synced = status.count("SYNCED")
            self.board.check("meshctl proxy-status", "SYNCED", f"{synced} × SYNCED", synced >= len(ENROLLED))

    def istiod_killed(self, mesh: Mesh) -> None:
        """The control plane's death is nobody's outage."""
        board = self.board
        with board.step("istiod killed"):
            sampler = Sampler(mesh, "productpage", "reviews")
            try:
                self._kill(mesh.istiod.pid)
                mesh.istiod.wait()
                found = mesh.versions("productpage", URL, 200)
                board.check("200 calls with istiod dead", "200 × v1", found, found == {"v1": 200})
                failures = sampler.failures()
                board.check(
                    "failures of a running client",
                    "0",
                    f"{len(failures)} of {len(sampler.lines())}",
                    not failures,
                )
            finally:
                sampler.close()
            before = time.monotonic()
            mesh.istiod = mesh.start_istiod()
            wait_for("all workloads to be back", lambda: len(mesh.healthy()) == len(ENROLLED), 60)
            board.check(
                "istiod restarted, all workloads connected again",
                "within 30 s",
                f"{time.monotonic() - before:.1f} s",
                time.monotonic() - before < 30,
            )

    def agent_killed(self, mesh: Mesh) -> None:
        """A dead agent does not cut its host off."""
        board = self.board
        with board.step("Agent killed with SIGKILL"):
            victim = mesh.workloads["reviews-v2"]
            target = f"http://{victim.host.v4}:9080/"
            board.check(
                "nftables table before", "1", own_rules_count(victim.host), own_rules_count(victim.host) == 1
            )
            assert victim.agent is not None
            self._kill(victim.agent.pid)
            before = time.monotonic()
            wait_for("the kernel to remove the table", lambda: own_rules_count(victim.host) == 0, 10)
            board.check(
                "kernel removed the table",
                "within 1 s",
                f"{(time.monotonic() - before) * 1000:.0f} ms",
                time.monotonic() - before < 1,
            )
            done = self.outsider.run(
                "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", target, check=False
            )
            board.check("plain traffic to its application", "200", done.stdout, done.stdout == "200")
            out = dig(victim.host, "outside.example")
            board.check("its own name resolution", "192.0.2.7", ", ".join(out), out == ["192.0.2.7"])
            inside = mesh.versions("productpage", URL, 20)
            board.check("the rest of the mesh", "20 × v1", inside, inside == {"v1": 20})
            victim.agent.wait()
            mesh.start_agent("reviews-v2")
            mesh.await_agent("reviews-v2")
            done = self.outsider.run(
                "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", target, check=False
            )
            board.check(
                "its agent started again with the identity on disk; plain text from outside",
                "refused",
                f"curl: ({done.returncode})",
                done.returncode != 0,
            )

    @staticmethod
    def _kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
