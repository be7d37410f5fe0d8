"""What people are told about their YAML: paths, nearest names, and every problem at once."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

import pytest

from istiod.resources.document import InvalidResourceError, parse, typed
from registry.model import Resource


def virtual_service(spec: str) -> str:
    return f"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x}}\nspec: {spec}\n"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (
            virtual_service("{hosts: [a], http: [{rout: [{destination: {host: a}}]}]}"),
            "spec.http[0].rout",
            "unknown field; did you mean route?",
        ),
        (
            virtual_service("{hosts: [a], http: [{route: [{destination: {host: a}, weigth: 3}]}]}"),
            "spec.http[0].route[0].weigth",
            "unknown field; did you mean weight?",
        ),
        (
            virtual_service("{hosts: [a], http: [{match: [{headers: {x: {exakt: y}}}], route: [{destination: {host: a}}]}]}"),
            "spec.http[0].match[0].headers[x].exakt",
            "unknown field; did you mean exact?",
        ),
        (
            virtual_service("{hosts: [a], http: [{route: [{destination: {host: a, port: {number: '9080'}}, weight: '5x'}]}]}"),
            "spec.http[0].route[0].weight",
            "must be an integer",
        ),
        (
            virtual_service("{hosts: [a], http: [{timeout: 5, route: [{destination: {host: a}}]}]}"),
            "spec.http[0].timeout",
            "must be a duration string such as 5s, 100ms or 1h30m",
        ),
        (
            virtual_service("{hosts: [1], http: [{route: [{destination: {host: a}}]}]}"),
            "spec.hosts[0]",
            'must be a string, not a number; write "1" in quotes',
        ),
        (virtual_service("{hosts: [a], http: [{}]}"), "spec.http[0]", "one of route, redirect, directResponse, delegate must be set"),
        (virtual_service("{hosts: ['*'], http: [{route: [{destination: {host: a}}]}]}"), "spec.hosts[0]", "the wildcard * is not allowed for the gateway mesh"),
        (
            virtual_service("{hosts: [a], http: [{match: [{uri: {regex: '('}}], route: [{destination: {host: a}}]}]}"),
            "spec.http[0].match[0].uri.regex",
            "not an RE2 expression: missing ): (",
        ),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: x}", "kind", "unknown kind 'VirtualServise'; did you mean VirtualService?"),
        (
            "apiVersion: security.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}",
            "apiVersion",
            "'security.istio.io/v1' has no VirtualService; use one of networking.istio.io/v1, "
            "networking.istio.io/v1beta1, networking.istio.io/v1alpha3",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: x}\nspec: {mtls: {mode: STRICKT}}",
            "spec.mtls.mode",
            'Unsupported value: "STRICKT"; one of UNSET, DISABLE, PERMISSIVE, STRICT; did you mean STRICT?',
        ),
        ("a: [1", "", "not YAML: line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\na: 2", "", "not YAML: line 2, column 1: the key 'a' is there twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained_with_its_path(text: str, path: str, message: str) -> None:
    (problem,) = parse(text).errors()
    assert (problem.path, problem.message) == (path, message)


def test_every_problem_of_every_document_is_told_with_its_line() -> None:
    text = virtual_service("{hosts: [a], http: [{a: 1, b: 2}]}") + "---\n" + virtual_service("{tcp: 1}")
    problems = parse(text, "two.yaml").errors()
    assert [(problem.where, problem.path) for problem in problems] == [
        ("two.yaml:4", "spec.http[0].a"),
        ("two.yaml:4", "spec.http[0].b"),
        ("two.yaml:9", "spec.tcp"),
    ]


def test_snake_case_means_the_same_as_camel_case() -> None:
    camel = "{host: a, trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 3}}}}"
    snake = "{host: a, traffic_policy: {connection_pool: {http: {http1_max_pending_requests: 3}}}}"
    head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: "
    assert parse(head + camel).documents[0].spec == parse(head + snake).documents[0].spec


@pytest.mark.parametrize(
    "kind", ["RequestAuthentication", "WasmPlugin", "Telemetry", "ProxyConfig", "EnvoyFilter"]
)
def test_kinds_whose_absence_would_deceive_are_refused(kind: str) -> None:
    from istiod.resources.kinds import KINDS

    specs = {"WasmPlugin": "{url: 'file:///x.wasm'}"}
    text = f"apiVersion: {KINDS[kind].api_version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {specs.get(kind, '{}')}"
    parsed = parse(text)
    assert parsed.errors() == ()
    assert [problem.message for problem in parsed.blocking()] == [
        f"kind {kind} is not supported by this version"
    ]


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("{template: {network: n}}", "spec.template.network"),
        ("{template: {address: 10.0.0.1}}", "spec.template.address"),
        ("{template: {}, probe: {tcpSocket: {port: 80}}}", "spec.probe"),
    ],
)
def test_what_a_workload_group_cannot_do_is_refused_with_its_path(spec: str, path: str) -> None:
    text = f"apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: x}}\nspec: {spec}"
    assert [problem.path for problem in parse(text).blocking()] == [path]


def test_external_authorization_is_refused_rather_than_ignored() -> None:
    text = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: x}
spec: {action: CUSTOM, provider: {name: p}, rules: [{}]}
"""
    (problem,) = parse(text).blocking()
    assert problem.path == "spec.action"


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = parse("\n".join(lines)).errors()
    assert problem.message.endswith("too large once its aliases are written out")


def test_foreign_documents_are_passed_over_and_lists_unfolded() -> None:
    item = "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: x}}"
    parsed = parse(f"apiVersion: v1\nkind: Service\nmetadata: {{name: y}}\n---\nkind: List\nitems: [{item}]")
    assert [document.subject for document in parsed.documents] == ["PeerAuthentication default/x"]
    assert [problem.message for problem in parsed.problems] == [
        "Service of v1 is no resource of the mesh; passed over"
    ]


def test_the_same_resource_twice_is_an_error() -> None:
    one = virtual_service("{hosts: [a], http: [{route: [{destination: {host: a}}]}]}")
    (problem,) = parse(f"{one}---\n{one}", "f").errors()
    assert problem.message == "is there twice, first at f:1"


def test_a_stored_resource_that_no_longer_validates_is_reported() -> None:
    stored = Resource("VirtualService", "default", "old", "networking.istio.io/v1", {"hostz": ["a"]})
    with pytest.raises(InvalidResourceError, match=r"spec\.hostz: unknown field; did you mean hosts\?"):
        typed(stored)


def test_a_problem_is_at_the_line_of_its_field() -> None:
    text = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: x
  labels: {a: 1}
spec:
  hosts:
  - a
  - "b c"
  http:
  - match:
    - headers:
        x-user: {prefix: ''}
    route:
    - destination:
        host: a
      weight: 100
      headers:
        response:
          set:
            x-note: 100% off
  - rewrite: {uri_regex_rewrite: {match: /a}}
    route: [{destination: {host: a}}]
---
apiVersion: v1
kind: List
items:
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: y}
  spec:
    host: 10.0.0.1
"""
    assert [str(problem).replace("VirtualService", "VS") for problem in parse(text, "f.yaml").errors()] == [
        "f.yaml:5: metadata.labels: must be a mapping of strings to strings (quote numbers and booleans)",
        "f.yaml:9: VS: spec.hosts[1]: 'b c' is not a DNS label",
        "f.yaml:13: VS: spec.http[0].match[0].headers[x-user].prefix: must not be empty: it would match everything",
        "f.yaml:21: VS: spec.http[0].route[0].headers.response.set[x-note]: has a % that begins no command such as "
        "%REQ(x-user)%; write %% for a percent sign",
        "f.yaml:22: VS: spec.http[1].rewrite.uriRegexRewrite.rewrite: must be set together with match",
        "f.yaml:32: DestinationRule default/y: spec.host: '10.0.0.1' is not a domain name: its last label is a number",
    ]


def test_merge_keys_are_merged_as_kubectl_does() -> None:
    text = virtual_service(
        """
  hosts: [details]
  http:
  - {match: [{uri: {prefix: /a}}], retries: &q {attempts: 3, perTryTimeout: 2s}, route: &r [{destination: {host: details}}]}
  - {match: [{uri: {prefix: /b}}], retries: {<<: *q, attempts: 5}, route: *r}
  - {retries: {<<: [{attempts: 7}, *q]}, route: *r}
"""
    )
    (found,) = parse(text).documents
    retries = [rule["retries"] for rule in found.resource.spec["http"]]
    assert [(one["attempts"], one["perTryTimeout"]) for one in retries] == [(3, "2s"), (5, "2s"), (7, "2s")]


@pytest.mark.parametrize("merged", ["1", "[1]", "{<<: 2}"])
def test_a_merge_of_anything_but_mappings_is_not_yaml(merged: str) -> None:
    (problem,) = parse(f"spec:\n  <<: {merged}", "f.yaml").errors()
    assert problem.message == "not YAML: line 2, column " + problem.message.split("column ")[1]
    assert problem.message.endswith("<< can merge mappings only")


def test_a_bomb_of_merges_is_refused() -> None:
    lines = ["a0: &a0 {x: [1, 2, 3, 4, 5, 6, 7, 8, 9]}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    (problem,) = parse("\n".join(lines)).errors()
    assert problem.message.endswith("too large once its aliases are written out")


def test_what_an_api_server_adds_to_metadata_is_taken() -> None:
    text = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: from-k8s
  namespace: null
  clusterName: ''
  creationTimestamp: "2024-01-01T00:00:00Z"
  deletionGracePeriodSeconds: 0
  deletionTimestamp: null
  finalizers: []
  generation: 3
  managedFields: [{manager: kubectl}]
  ownerReferences: null
  resourceVersion: "91823411"
  selfLink: /x
  uid: 0bf1d8a2-1111-2222-3333-444455556666
spec: {host: ratings.prod.svc.cluster.local, subsets: null}
status: {}
"""
    parsed = parse(text, default_namespace="prod")
    assert parsed.problems == ()
    (found,) = parsed.documents
    assert (found.resource.namespace, found.resource.version) == ("prod", "91823411")
    assert found.uid == "0bf1d8a2-1111-2222-3333-444455556666"


def test_a_document_says_where_its_fields_are_written() -> None:
    text = "kind: List\napiVersion: v1\nitems:\n- " + virtual_service(
        "\n    hosts: [a]\n    http:\n    - route:\n      - destination: {host: a}"
    ).replace("\n", "\n  ")
    (found,) = parse(text, "f.yaml").documents
    assert found.where == "f.yaml:4"
    assert found.at("spec.http[0].route[0].weight") == "f.yaml:11"
    assert typed(found.resource).at("spec.http[0]") == ""


def test_a_stored_policy_is_not_dropped_for_its_metadata() -> None:
    stored = Resource(
        "AuthorizationPolicy",
        "default",
        "old",
        "security.istio.io/v1",
        {"action": "DENY", "rules": [{}]},
        annotations={"istio.io/dry-run": "perhaps"},
    )
    assert typed(stored).spec.action == "DENY"
