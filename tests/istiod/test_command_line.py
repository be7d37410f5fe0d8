"""meshctl's words and flags are kubectl's: selection, watching, dry runs, folders, dumps, completion."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from istiod.ctl.cli import hoisted
from istiod.ctl.failure import CommandError
from istiod.ctl.selector import parse
from tests.istiod.conftest import BIN, Done, Istiod

RULES = "\n---\n".join(
    f"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, labels: {labels}}}\n"
    f"spec: {{host: {name}}}"
    for name, labels in (
        ("reviews", "{team: a, tier: front}"),
        ("ratings", "{team: b, tier: back}"),
        ("details", "{team: b}"),
    )
)


@pytest.fixture(scope="module")
def mesh(shared_istiod: Istiod) -> Istiod:
    shared_istiod.ok("apply", "-n", "cli", "-f", "-", stdin=RULES)
    return shared_istiod


def names(done: str) -> list[str]:
    return [line.removeprefix("destinationrule/") for line in done.split()]


def in_a_process(*arguments: str | Path) -> Done:
    """meshctl as a program, without a context of its own."""
    done = subprocess.run(
        [BIN / "meshctl", *arguments],
        capture_output=True,
        text=True,
        env={"HOME": "/nonexistent"},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("joined", [True, False])
def test_the_context_may_stand_anywhere(mesh: Istiod, place: int, joined: bool) -> None:
    words: list[str | Path] = ["get", "dr", "-n", "cli", "-o", "name"]
    words[place:place] = [f"--context={mesh.context}"] if joined else ["--context", mesh.context]
    if place == 3:
        words = ["get", "dr", "-n", "cli", "-o", "name", *words[place : place + (1 if joined else 2)]]
    done = in_a_process(*words)
    assert names(done.stdout) == ["details", "ratings", "reviews"], done.stderr


def test_what_follows_two_dashes_is_no_option() -> None:
    assert hoisted(["get", "--", "--context", "x"]) == ["get", "--", "--context", "x"]


def test_the_version_needs_no_istiod() -> None:
    done = in_a_process("--version")
    assert (done.returncode, done.stdout) == (0, "meshctl 0.1.0\n")


def test_a_context_without_a_command_is_a_usage_error(mesh: Istiod) -> None:
    assert in_a_process("--context", mesh.context).returncode == 2


def test_several_resources_are_got_by_name(mesh: Istiod) -> None:
    assert names(mesh.ok("get", "dr", "reviews", "details", "-n", "cli", "-o", "name")) == [
        "reviews",
        "details",
    ]
    both = yaml.safe_load(mesh.ok("get", "dr/reviews", "dr/ratings", "-n", "cli", "-o", "yaml"))
    assert [item["metadata"]["name"] for item in both["items"]] == ["reviews", "ratings"]
    table = mesh.ok("get", "dr", "reviews", "ratings", "-n", "cli").splitlines()
    assert [line.split()[0] for line in table] == ["NAME", "reviews", "ratings"]
    missing = mesh.meshctl("get", "dr", "reviews", "nothing", "-n", "cli")
    assert (missing.returncode, "nothing" in missing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ("team=b", ["details", "ratings"]),
        ("team=b,tier=back", ["ratings"]),
        ("team!=b", ["reviews"]),
        ("tier", ["ratings", "reviews"]),
        ("!tier", ["details"]),
        ("team in (a, c)", ["reviews"]),
        ("tier notin (front)", ["details", "ratings"]),
    ],
)
def test_labels_select(mesh: Istiod, labels: str, found: list[str]) -> None:
    assert names(mesh.ok("get", "dr", "-n", "cli", "-o", "name", "-l", labels)) == found


@pytest.mark.parametrize("text", ["=", "a=b c", "a in b", ",a", "a=b,,c=d"])
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="not a label selector"):
        parse(text)


def test_watching_shows_what_changes(mesh: Istiod) -> None:
    mesh.ok("apply", "-n", "watch", "-f", "-", stdin=RULES)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [BIN / "meshctl", "get", "dr", "-n", "watch", "-w", "--context", mesh.context]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = [process.stdout.readline() for _ in range(4)]
        assert [line.split()[0] for line in first] == ["NAME", "details", "ratings", "reviews"]
        mesh.ok("apply", "-n", "watch", "-f", "-", stdin=RULES.replace("host: ratings", "host: changed"))
        changed = process.stdout.readline()
        assert changed.split()[:2] == ["ratings", "changed"]
        assert changed.index("changed") == first[0].index("HOST"), (
            "below the columns that were printed before"
        )
        mesh.ok("delete", "dr", "details", "-n", "watch")
        assert process.stderr.readline() == "destinationrule/details deleted from namespace watch\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_all_of_a_kind_are_deleted_at_once(mesh: Istiod) -> None:
    mesh.ok("apply", "-n", "gone", "-f", "-", stdin=RULES)
    by_label = mesh.ok("delete", "dr", "-l", "team=b", "-n", "gone", "--dry-run=server")
    assert by_label.splitlines() == [
        "destinationrule/details deleted (dry run)",
        "destinationrule/ratings deleted (dry run)",
    ]
    assert mesh.meshctl("delete", "dr", "-n", "gone").returncode == 2, "nothing says which"
    assert mesh.meshctl("delete", "dr", "reviews", "--all", "-n", "gone").returncode == 2
    assert len(mesh.ok("delete", "dr,vs", "--all", "-n", "gone").splitlines()) == 3
    assert mesh.meshctl("delete", "dr", "--all", "-n", "gone").stderr == "No resources found.\n"


@pytest.mark.parametrize("option", ["--dry-run", "--dry-run=server"])
def test_a_dry_run_is_judged_by_istiod_and_writes_nothing(mesh: Istiod, option: str) -> None:
    out = mesh.ok("apply", "-n", "dry", option, "-f", "-", stdin=RULES)
    assert "destinationrule/reviews created (dry run)" in out
    assert mesh.json("get", "dr", "-n", "dry")["items"] == []


def test_dry_run_none_writes(mesh: Istiod) -> None:
    out = mesh.ok("apply", "-n", "wet", "--dry-run=none", "-o", "name", "-f", "-", stdin=RULES)
    assert names(out) == ["reviews", "ratings", "details"]
    assert len(mesh.json("get", "dr", "-n", "wet")["items"]) == 3


def test_a_folder_is_read_without_what_is_hidden_or_foreign(mesh: Istiod, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(RULES)
    (tmp_path / "values.yaml").write_text("image: {tag: 1}\n")
    (tmp_path / "chart.yml").write_text("{{ if .x }}\na: {{ .b }}\n")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "old.yaml").write_text(RULES)
    (tmp_path / ".hidden.yaml").write_text("no: [yaml")
    done = mesh.meshctl("apply", "-n", "folder", "-f", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    (skipped,) = done.stderr.splitlines()
    assert skipped.startswith("skipped, no resource of the mesh: ")
    assert all(name in skipped for name in ("values.yaml", "chart.yml", "binary.json"))
    named = mesh.meshctl("apply", "-n", "folder", "-f", tmp_path / "values.yaml")
    assert (named.returncode, "values.yaml" in named.stderr) == (1, True)


def test_an_empty_file_is_not_valid(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("\n")
    done = in_a_process("validate", "-f", empty)
    assert done.returncode == 1
    assert f"{empty}: is empty" in done.stderr


def test_validate_refuses_what_apply_refuses(mesh: Istiod, tmp_path: Path) -> None:
    file = tmp_path / "filter.yaml"
    file.write_text(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: x}\nspec: {}\n"
    )
    for command in ("validate", "apply"):
        done = mesh.meshctl(command, "-f", file)
        assert done.returncode == 1
        assert "kind EnvoyFilter is not supported by this version" in done.stderr


def test_an_error_is_at_the_line_of_its_field(mesh: Istiod, tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec:\n  host: a\n"
        "  trafficPolicy:\n    loadBalancer:\n      consistentHash:\n        httpHeaderName: x-user\n"
        "        maglev:\n          tableSize: 65536\n"
    )
    done = mesh.meshctl("apply", "-f", file)
    assert done.returncode == 1
    assert (
        f"{file}:11: DestinationRule default/x: spec.trafficPolicy.loadBalancer.consistentHash" in done.stderr
    )


DUMP = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: from-k8s
  namespace: dump
  clusterName: ""
  deletionGracePeriodSeconds: 0
  managedFields: []
  resourceVersion: "91823411"
  uid: 0bf1d8a2-1111-2222-3333-444455556666
spec: {host: ratings.prod.svc.cluster.local, subsets: null}
"""


def test_a_dump_of_another_cluster_is_applied_again_and_again(mesh: Istiod) -> None:
    assert "created" in mesh.ok("apply", "-f", "-", stdin=DUMP)
    assert "unchanged" in mesh.ok("apply", "-f", "-", stdin=DUMP)
    assert "configured" in mesh.ok("apply", "-f", "-", stdin=DUMP.replace("ratings", "reviews"))


def test_a_version_of_this_mesh_still_protects_what_others_wrote(mesh: Istiod) -> None:
    mesh.ok("apply", "-f", "-", stdin=DUMP.replace("from-k8s", "ours"))
    read = mesh.ok("get", "dr", "ours", "-n", "dump", "-o", "yaml")
    mesh.ok("apply", "-f", "-", stdin=DUMP.replace("from-k8s", "ours").replace("ratings", "changed"))
    stale = mesh.meshctl("apply", "-f", "-", stdin=read.replace("ratings", "reviews"))
    assert (stale.returncode, "was changed meanwhile" in stale.stderr) == (1, True)
    mesh.ok("delete", "dr", "ours", "-n", "dump")
    assert "created" in mesh.ok("apply", "-f", "-", stdin=read)


def completed(mesh: Istiod, line: str) -> list[str]:
    """What the shell would offer."""
    environment = {
        "HOME": "/nonexistent",
        "HOSTMESH_CONTEXT": str(mesh.context),
        "_MESHCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run([BIN / "meshctl"], capture_output=True, text=True, env=environment, check=False)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("meshctl get destinationr", ["destinationrule", "destinationrules"]),
        ("meshctl get -n cli dr ", ["details", "ratings", "reviews"]),
        ("meshctl get -n cli dr re", ["reviews"]),
        ("meshctl get -n cli dr reviews ", ["details", "ratings"]),
        ("meshctl get -n cli dr/ra", ["dr/ratings"]),
        ("meshctl delete -n cli dr d", ["details"]),
        ("meshctl get -n nowhere dr ", []),
    ],
)
def test_names_of_resources_are_completed(mesh: Istiod, line: str, offered: list[str]) -> None:
    assert completed(mesh, line) == offered


@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "name"])
@pytest.mark.parametrize(
    "command",
    ["get dr", "get all -A", "proxy-status -A", "workload list", "service list", "token list", "version"],
)
def test_everything_that_prints_data_has_every_form(mesh: Istiod, command: str, form: str) -> None:
    mesh.ok("apply", "-n", "default", "-f", "-", stdin=RULES)
    token = mesh.json("token", "create", "-n", "cli", "-s", "reviews")["id"]
    out = mesh.ok(*command.split(), "-o", form)
    if form == "name" and command == "token list":
        assert token in out.split()
    if form == "name" and command == "get dr":
        assert names(out) == ["details", "ratings", "reviews"]
    if form in ("json", "yaml"):
        assert yaml.safe_load(out) is not None
