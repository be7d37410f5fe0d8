"""Verdicts on documents, field by field: what Istio accepts is accepted, what it refuses is refused, and what this
version cannot put into effect is refused too. Each line is a kind of document that was judged otherwise once."""
# ruff: noqa: E501 - a document is easier to read on one line

from __future__ import annotations

import pytest

from istiod.resources.document import Parsed, parse
from istiod.resources.kinds import KINDS

ROUTE = "route: [{destination: {host: a}}]"


def judged(kind: str, spec: str, metadata: str = "") -> Parsed:
    """The verdict on one document."""
    return parse(
        f"apiVersion: {KINDS[kind].api_version}\nkind: {kind}\nmetadata: {{name: x{metadata}}}\nspec: {spec}"
    )


def http(rule: str, hosts: str = "[a]", more: str = "") -> str:
    return f"{{hosts: {hosts}, http: [{{{rule}}}]{more}}}"


def policy(text: str, host: str = "a") -> str:
    return f"{{host: {host}, trafficPolicy: {{{text}}}}}"


def balancer(text: str) -> str:
    return policy(f"loadBalancer: {{{text}}}")


def locality(text: str) -> str:
    return balancer(f"localityLbSetting: {{{text}}}")


def entry(text: str, hosts: str = "[a.example]") -> str:
    return f"{{hosts: {hosts}, ports: [{{number: 80, name: http, protocol: HTTP}}], {text}}}"


ACCEPTED = [
    # Istio's reading of names and matches.
    ("VirtualService", http(f"match: [{{headers: {{x: {{regex: '*'}}}}, withoutHeaders: {{y: {{regex: '*'}}}}, queryParams: {{z: {{regex: '*'}}}}}}], {ROUTE}")),
    ("VirtualService", http(f"match: [{{headers: {{':method': {{exact: GET}}, ':authority': {{prefix: a}}}}}}], {ROUTE}")),
    ("VirtualService", http(f"match: [{{headers: {{'@request.auth.claims.group': {{exact: x}}}}, withoutHeaders: {{'@request.auth.claims[sub]': {{exact: x}}}}}}], {ROUTE}", more=", gateways: [gw]")),
    ("VirtualService", "{hosts: [a], tcp: [{route: [{destination: {host: '*foo.baz'}}]}]}"),
    ("VirtualService", "{hosts: ['*.foo.baz'], tls: [{match: [{sniHosts: [b.foo.baz]}], route: [{destination: {host: '*-foo.baz'}}]}]}"),
    ("VirtualService", http(f"match: [{{authority: {{regex: 'a{{1000}}'}}}}], {ROUTE}")),
    ("DestinationRule", "{host: '*-foo.bar.com'}"),
    ("DestinationRule", "{host: '*foo.bar.com'}"),
    ("ServiceEntry", entry("resolution: STATIC, endpoints: [{network: other}, {address: 1.1.1.1}]")),
    ("ServiceEntry", entry("resolution: DNS, endpoints: [{address: b.example}]", "['*.a.example']")),
    ("ServiceEntry", entry("resolution: NONE", "['*.a.example']")),
    ("ServiceEntry", entry("addresses: [10.1.2.3/8, '001:db8::', 1.1.1.1], exportTo: ['~']")),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: ':8080'}]}"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: '[::1]:8080'}]}"),
    ("Sidecar", "{egress: [{hosts: ['ns/*.example.com', '~/*', '*/a.b']}]}"),
    # Host is the authority.
    ("VirtualService", http(f"headers: {{request: {{set: {{Host: internal.example.com}}}}}}, {ROUTE}")),
    ("VirtualService", http(f"headers: {{request: {{add: {{':authority': internal.example.com}}}}}}, {ROUTE}")),
    ("VirtualService", http(f"headers: {{response: {{set: {{a: '100%% off', b: '%REQ(x):5% %START_TIME(%s)%'}}}}}}, {ROUTE}")),
    ("VirtualService", http("match: [{uri: {prefix: ''}}], redirect: {prefixRewrite: /x}")),
    ("VirtualService", http("directResponse: {status: 200, body: {bytes: _-8}}")),
    ("VirtualService", http("redirect: {redirectCode: 0, uri: /x}")),
    ("VirtualService", http(f"retries: {{attempts: 2, retryRemoteLocalities: true}}, {ROUTE}")),
    ("VirtualService", http(ROUTE, "['*.foo.bar', '*.foo.baz', 10.0.0.1]")),
    ("VirtualService", http(ROUTE, more=", exportTo: ['.', other]")),
    ("VirtualService", http(ROUTE, more=", gateways: [mesh, ns/gw, gw]")),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, maglev: {tableSize: 65537}}")),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, ringHash: {minimumRingSize: 8388608}}")),
    ("DestinationRule", locality("enabled: false")),
    ("DestinationRule", policy("connectionPool: {tcp: {connectTimeout: 1h, tcpKeepalive: {time: 2h, interval: 75s, probes: 9}}}")),
    ("DestinationRule", "{host: a, exportTo: ['.'], workloadSelector: {matchLabels: {a: b}}}"),
    # null is "not set", as in Kubernetes.
    ("DestinationRule", "{host: a, subsets: null, trafficPolicy: null, exportTo: null}"),
    ("VirtualService", f"{{hosts: [a], gateways: null, http: [{{match: null, headers: null, {ROUTE}}}], tls: null}}"),
    ("ServiceEntry", entry("resolution: STATIC, endpoints: [{address: 1.1.1.1, weight: 4294967295}, {address: 1.1.1.2}]")),
    ("VirtualService", http("route: [{destination: {host: a}, weight: 2147483647}, {destination: {host: b}, weight: 2147483647}, {destination: {host: c}, weight: 2}]")),
    ("PeerAuthentication", "null"),
]  # fmt: skip

REFUSED = [
    # VirtualService: hosts, gateways, exportTo
    ("VirtualService", http(ROUTE, more=", exportTo: ['~']"), "spec.exportTo[0]"),
    ("VirtualService", http(ROUTE, more=", exportTo: ['.', '*']"), "spec.exportTo"),
    ("VirtualService", http(ROUTE, more=", exportTo: ['*', other]"), "spec.exportTo"),
    ("VirtualService", http(ROUTE, more=", exportTo: [other, other]"), "spec.exportTo[1]"),
    ("VirtualService", http(ROUTE, more=", exportTo: ['.', default]"), "spec.exportTo[1]"),
    ("VirtualService", http(ROUTE, more=", exportTo: [bad_name]"), "spec.exportTo[0]"),
    ("VirtualService", http(ROUTE, "['*.foo.bar', '*.bar']"), "spec.hosts[1]"),
    ("VirtualService", http(ROUTE, "[b.foo.bar, '*.bar']"), "spec.hosts[1]"),
    ("VirtualService", http(ROUTE, "[a, A]"), "spec.hosts[1]"),
    ("VirtualService", http(ROUTE, more=", gateways: ['ns/*']"), "spec.gateways[0]"),
    ("VirtualService", http(ROUTE, more=", gateways: ['*/gw']"), "spec.gateways[0]"),
    ("VirtualService", http(ROUTE, more=", gateways: [mesh, b@d]"), "spec.gateways[1]"),
    ("VirtualService", http(f"match: [{{gateways: ['*/gw']}}], {ROUTE}"), "spec.http[0].match[0].gateways[0]"),
    ("VirtualService", http(f"match: [{{headers: {{'@request.auth.claims.x': {{exact: y}}}}}}], {ROUTE}"), "spec.http[0].match[0].headers[@request.auth.claims.x]"),
    ("VirtualService", "{http: [{delegate: {name: other}}]}", "spec.http[0].delegate"),
    ("VirtualService", f"{{tcp: [{{{ROUTE}}}]}}", "spec.tcp"),
    ("VirtualService", f"{{tls: [{{match: [{{sniHosts: [a.b]}}], {ROUTE}}}]}}", "spec.tls"),
    ("VirtualService", f"{{hosts: [a.b], tls: [{{match: [{{sniHosts: [c.d]}}], {ROUTE}}}]}}", "spec.tls[0].match[0].sniHosts[0]"),
    ("VirtualService", f"{{hosts: [a.b], tcp: [{{match: [{{destinationSubnets: [1.1.1.1/48]}}], {ROUTE}}}]}}", "spec.tcp[0].match[0].destinationSubnets[0]"),
    ("VirtualService", f"{{hosts: [a.b], tcp: [{{match: [{{sourceSubnet: 10.0.0.0/8}}], {ROUTE}}}]}}", "spec.tcp[0].match[0].sourceSubnet"),
    ("VirtualService", "{hosts: [a.b], tcp: [{route: [{destination: {host: 10.0.0.1}}]}]}", "spec.tcp[0].route[0].destination.host"),
    ("VirtualService", http("route: [{destination: {host: '*'}}]"), "spec.http[0].route[0].destination.host"),
    ("VirtualService", http("route: [{destination: {host: a, subset: 'v1|x'}}]"), "spec.http[0].route[0].destination.subset"),
    # VirtualService: matches
    ("VirtualService", http(f"match: [{{headers: {{x: {{prefix: ''}}}}}}], {ROUTE}"), "spec.http[0].match[0].headers[x].prefix"),
    ("VirtualService", http(f"match: [{{withoutHeaders: {{x: {{prefix: ''}}}}}}], {ROUTE}"), "spec.http[0].match[0].withoutHeaders[x].prefix"),
    ("VirtualService", http(f"match: [{{method: {{prefix: ''}}}}], {ROUTE}"), "spec.http[0].match[0].method.prefix"),
    ("VirtualService", http(f"match: [{{authority: {{prefix: ''}}}}], {ROUTE}"), "spec.http[0].match[0].authority.prefix"),
    ("VirtualService", http(f"match: [{{queryParams: {{x: {{prefix: ''}}}}}}], {ROUTE}"), "spec.http[0].match[0].queryParams[x].prefix"),
    ("VirtualService", http(f"match: [{{uri: {{regex: '*'}}}}], {ROUTE}"), "spec.http[0].match[0].uri.regex"),
    ("VirtualService", http(f"match: [{{uri: {{regex: '{'a' * 1025}'}}}}], {ROUTE}"), "spec.http[0].match[0].uri.regex"),
    ("VirtualService", http(f"match: [{{uri: {{regex: '{'(a{999})' * 40}'}}}}], {ROUTE}"), "spec.http[0].match[0].uri.regex"),
    ("VirtualService", http(f"match: [{{headers: {{'a b': {{exact: x}}}}}}], {ROUTE}"), "spec.http[0].match[0].headers[a b]"),
    ("VirtualService", http(f"match: [{{headers: {{':status': {{exact: x}}}}}}], {ROUTE}"), "spec.http[0].match[0].headers[:status]"),
    ("VirtualService", http(f"match: [{{sourceLabels: {{a: 'b c'}}}}], {ROUTE}"), "spec.http[0].match[0].sourceLabels[a]"),
    ("VirtualService", http(f"match: [{{sourceNamespace: 'b_c'}}], {ROUTE}"), "spec.http[0].match[0].sourceNamespace"),
    # VirtualService: header operations and rewrites
    ("VirtualService", http(f"headers: {{request: {{remove: [Host]}}}}, {ROUTE}"), "spec.http[0].headers.request.remove[0]"),
    ("VirtualService", http(f"headers: {{request: {{remove: [':path']}}}}, {ROUTE}"), "spec.http[0].headers.request.remove[0]"),
    ("VirtualService", http(f"headers: {{request: {{set: {{':path': /x}}}}}}, {ROUTE}"), "spec.http[0].headers.request.set[:path]"),
    ("VirtualService", http(f"headers: {{response: {{set: {{host: x}}}}}}, {ROUTE}"), "spec.http[0].headers.response.set[host]"),
    ("VirtualService", http(f"headers: {{response: {{add: {{x: '100% off'}}}}}}, {ROUTE}"), "spec.http[0].headers.response.add[x]"),
    ("VirtualService", http(f"headers: {{request: {{set: {{x: '%START_TIME%%'}}}}}}, {ROUTE}"), "spec.http[0].headers.request.set[x]"),
    ("VirtualService", http(f"headers: {{request: {{set: {{x: 'abc%123'}}}}}}, {ROUTE}"), "spec.http[0].headers.request.set[x]"),
    ("VirtualService", http(f'headers: {{request: {{set: {{x: "a\\nb"}}}}}}, {ROUTE}'), "spec.http[0].headers.request.set[x]"),
    ("VirtualService", http("route: [{destination: {host: a}, headers: {response: {set: {x: '5%'}}}}]"), "spec.http[0].route[0].headers.response.set[x]"),
    ("VirtualService", http(f"rewrite: {{authority: b}}, headers: {{request: {{set: {{':authority': c}}}}}}, {ROUTE}"), "spec.http[0].headers.request.set[:authority]"),
    ("VirtualService", http(f"headers: {{request: {{set: {{Host: b, ':authority': c}}}}}}, {ROUTE}"), "spec.http[0].headers.request"),
    ("VirtualService", http(f"rewrite: {{uriRegexRewrite: {{match: /a}}}}, {ROUTE}"), "spec.http[0].rewrite.uriRegexRewrite.rewrite"),
    ("VirtualService", http(f"rewrite: {{uriRegexRewrite: {{match: '/(a)', rewrite: '\\2'}}}}, {ROUTE}"), "spec.http[0].rewrite.uriRegexRewrite.rewrite"),
    ("VirtualService", http("match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /x}"), "spec.http[0].redirect.prefixRewrite"),
    ("VirtualService", http("match: [{uri: {regex: /a}}], redirect: {prefixRewrite: /x}"), "spec.http[0].redirect.prefixRewrite"),
    ("VirtualService", http("redirect: {scheme: ftp}"), "spec.http[0].redirect.scheme"),
    ("VirtualService", http("redirect: {uri: /x, redirectCode: 200}"), "spec.http[0].redirect.redirectCode"),
    # VirtualService: answers, retries, faults, CORS, durations
    ("VirtualService", http("directResponse: {status: 200, body: {bytes: 'not base64!!'}}"), "spec.http[0].directResponse.body.bytes"),
    ("VirtualService", http(f"directResponse: {{status: 200, body: {{string: '{'a' * (1024 * 1024 + 1)}'}}}}"), "spec.http[0].directResponse.body"),
    ("VirtualService", http("fault: {abort: {httpStatus: 500}}, directResponse: {status: 200}"), "spec.http[0].fault"),
    ("VirtualService", http("rewrite: {uri: /x}, directResponse: {status: 200}"), "spec.http[0].rewrite"),
    ("VirtualService", http(f"retries: {{attempts: 0, retryRemoteLocalities: true}}, {ROUTE}"), "spec.http[0].retries.attempts"),
    ("VirtualService", http(f"corsPolicy: {{allowMethods: [PUTT]}}, {ROUTE}"), "spec.http[0].corsPolicy.allowMethods[0]"),
    ("VirtualService", http(f"corsPolicy: {{allowOrigins: [{{prefix: ''}}]}}, {ROUTE}"), "spec.http[0].corsPolicy.allowOrigins[0]"),
    ("VirtualService", http(f"corsPolicy: {{allowHeaders: ['a b']}}, {ROUTE}"), "spec.http[0].corsPolicy.allowHeaders[0]"),
    ("VirtualService", http(f"fault: {{delay: {{exponentialDelay: 1s}}}}, {ROUTE}"), "spec.http[0].fault.delay.exponentialDelay"),
    ("VirtualService", http(f"fault: {{abort: {{http2Error: x}}}}, {ROUTE}"), "spec.http[0].fault.abort.http2Error"),
    ("VirtualService", http(f"fault: {{abort: {{httpStatus: 500, percentage: {{value: 0.00001}}}}}}, {ROUTE}"), "spec.http[0].fault.abort.percentage.value"),
    ("VirtualService", http(f"timeout: 1500us, {ROUTE}"), "spec.http[0].timeout"),
    ("VirtualService", http(f"timeout: 1ns, {ROUTE}"), "spec.http[0].timeout"),
    ("VirtualService", http(f"timeout: 99999999999s, {ROUTE}"), "spec.http[0].timeout"),
    ("VirtualService", http("mirror: {host: b}, redirect: {uri: /x}"), "spec.http[0].mirror"),
    ("VirtualService", http(f"mirror: {{host: b}}, mirrors: [{{destination: {{host: c}}}}], {ROUTE}"), "spec.http[0].mirrors"),
    ("VirtualService", http("mirror: {host: b}, delegate: {name: c}"), "spec.http[0].mirror"),
    ("VirtualService", http(f"mirror: {{host: b}}, mirrorPercent: 101, {ROUTE}"), "spec.http[0].mirrorPercent"),
    # DestinationRule
    ("DestinationRule", "{host: 10.0.0.1}", "spec.host"),
    ("DestinationRule", "{host: a, trafficPolicy: {}}", "spec.trafficPolicy"),
    ("DestinationRule", policy("portLevelSettings: [{port: {number: 80}}]"), "spec.trafficPolicy.portLevelSettings[0]"),
    ("DestinationRule", "{host: a, subsets: [{name: v_1}]}", "spec.subsets[0].name"),
    ("DestinationRule", "{host: a, subsets: [{name: v1}, {name: v1}]}", "spec.subsets[1].name"),
    ("DestinationRule", "{host: a, exportTo: ['*'], workloadSelector: {matchLabels: {a: b}}}", "spec.exportTo"),
    ("DestinationRule", "{host: a, exportTo: [other], workloadSelector: {matchLabels: {a: b}}}", "spec.exportTo"),
    ("DestinationRule", locality("distribute: [{from: a, to: {a: 50}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"),
    ("DestinationRule", locality("distribute: [{from: a, to: {a: 100, b: 0}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to[b]"),
    ("DestinationRule", locality("distribute: [{from: a, to: {b: 50, b/c: 50}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to"),
    ("DestinationRule", locality("distribute: [{from: a/*/c, to: {b: 100}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute"),
    ("DestinationRule", locality("distribute: [{from: a, to: {b: 100}}, {from: a/b, to: {c: 100}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute"),
    ("DestinationRule", locality("failover: [{from: a, to: a}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].to"),
    ("DestinationRule", locality("failover: [{from: a*, to: b}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].from"),
    ("DestinationRule", locality("failover: [{from: a, to: b/c}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].to"),
    ("DestinationRule", locality("failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/region]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.failoverPriority[0]"),
    ("DestinationRule", locality("failover: [{from: a, to: b}], distribute: [{from: a, to: {b: 100}}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute"),
    ("DestinationRule", locality("failover: [{from: a, to: b}]"), "spec.trafficPolicy.loadBalancer.localityLbSetting"),
    ("DestinationRule", balancer("localityLbSetting: {enabled: false}, zoneAwareLbSetting: {enabled: true}"), "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting"),
    ("DestinationRule", balancer("warmup: {duration: 10s}"), "spec.trafficPolicy.loadBalancer.warmup"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, maglev: {tableSize: 65536}}"), "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, maglev: {tableSize: 0}}"), "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, maglev: {tableSize: 5000011}}"), "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, maglev: {tableSize: '18446744073709551615'}}"), "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, minimumRingSize: 10000000}"), "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, ringHash: {minimumRingSize: 8388609}}"), "spec.trafficPolicy.loadBalancer.consistentHash.ringHash.minimumRingSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: x, minimumRingSize: 9, ringHash: {}}"), "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize"),
    ("DestinationRule", balancer("consistentHash: {httpHeaderName: ''}"), "spec.trafficPolicy.loadBalancer.consistentHash.httpHeaderName"),
    ("DestinationRule", balancer("consistentHash: {httpQueryParameterName: ''}"), "spec.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName"),
    ("DestinationRule", balancer("consistentHash: {httpCookie: {name: c, attributes: [{name: a}, {name: A}]}}"), "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[1].name"),
    ("DestinationRule", policy("tls: {mode: MUTUAL, credentialName: c, clientCertificate: /c}"), "spec.trafficPolicy.tls.clientCertificate"),
    ("DestinationRule", policy("tls: {mode: MUTUAL, credentialName: c, privateKey: /c}"), "spec.trafficPolicy.tls.privateKey"),
    ("DestinationRule", policy("tls: {mode: SIMPLE, credentialName: c, caCertificates: /c}"), "spec.trafficPolicy.tls.caCertificates"),
    ("DestinationRule", policy("tls: {mode: SIMPLE, credentialName: c, caCrl: /c}"), "spec.trafficPolicy.tls.caCrl"),
    ("DestinationRule", policy("tls: {mode: SIMPLE, credentialName: c, insecureSkipVerify: true}"), "spec.trafficPolicy.tls.insecureSkipVerify"),
    ("DestinationRule", policy("tls: {mode: MUTUAL, credentialName: partner-cert}"), "spec.trafficPolicy.tls.credentialName"),
    ("DestinationRule", policy("connectionPool: {tcp: {connectTimeout: 999999999s}}"), "spec.trafficPolicy.connectionPool.tcp.connectTimeout"),
    ("DestinationRule", policy("connectionPool: {tcp: {tcpKeepalive: {time: 10000000h}}}"), "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time"),
    ("DestinationRule", policy("connectionPool: {tcp: {tcpKeepalive: {interval: 10h}}}"), "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval"),
    ("DestinationRule", policy("connectionPool: {tcp: {tcpKeepalive: {probes: 128}}}"), "spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes"),
    ("DestinationRule", policy("connectionPool: {http: {http2KeepAlive: {interval: 1s}}}"), "spec.trafficPolicy.connectionPool.http.http2KeepAlive"),
    ("DestinationRule", policy("connectionPool: {http: {http2KeepAlive: {interval: 1s, timeout: 1s}}}"), "spec.trafficPolicy.connectionPool.http.http2KeepAlive"),
    ("DestinationRule", policy("connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}"), "spec.trafficPolicy.connectionPool.http.useClientProtocol"),
    ("DestinationRule", policy("outlierDetection: {consecutiveLocalOriginFailures: 3}"), "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures"),
    ("DestinationRule", policy("outlierDetection: {outlierDetectionHttpErrorCodes: [500]}"), "spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes"),
    ("DestinationRule", policy("tunnel: {targetHost: a.b, targetPort: 80}"), "spec.trafficPolicy.tunnel"),
    ("DestinationRule", policy("tunnel: {targetHost: a.b, targetPort: 80, protocol: PUT}"), "spec.trafficPolicy.tunnel.protocol"),
    ("DestinationRule", policy("proxyProtocol: {version: V2}"), "spec.trafficPolicy.proxyProtocol"),
    # ServiceEntry
    ("ServiceEntry", entry("addresses: [1.1.1.1/48], resolution: STATIC"), "spec.addresses[0]"),
    ("ServiceEntry", entry("addresses: [192.168.0.01]"), "spec.addresses[0]"),
    ("ServiceEntry", entry("addresses: [10.0.0.0/255.0.0.0]"), "spec.addresses[0]"),
    ("ServiceEntry", entry("addresses: ['fe80::1%eth0']"), "spec.addresses[0]"),
    ("ServiceEntry", entry("addresses: [db.example]"), "spec.addresses[0]"),
    ("ServiceEntry", entry("resolution: DNS", "['*.example.com']"), "spec.hosts[0]"),
    ("ServiceEntry", entry("resolution: DNS_ROUND_ROBIN", "['*.example.com']"), "spec.hosts[0]"),
    ("ServiceEntry", "{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: a}, {number: 81, name: b}], endpoints: [{address: 'unix:///s'}]}", "spec.endpoints[0].address"),
    ("ServiceEntry", entry("resolution: STATIC, endpoints: [{address: 10.0.0.0/8}]"), "spec.endpoints[0].address"),
    ("ServiceEntry", entry("resolution: STATIC, endpoints: [{address: b.example}]"), "spec.endpoints[0].address"),
    ("ServiceEntry", entry("resolution: DNS, endpoints: [{address: 'b.example:80'}]"), "spec.endpoints[0].address"),
    ("ServiceEntry", entry("resolution: STATIC, endpoints: [{address: 1.1.1.1, ports: {other: 81}}]"), "spec.endpoints[0].ports"),
    ("ServiceEntry", entry("resolution: DYNAMIC_DNS"), "spec.hosts[0]"),
    ("ServiceEntry", entry("resolution: DYNAMIC_DNS, endpoints: [{address: 1.1.1.1}]", "['*.a.example']"), "spec.endpoints"),
    ("ServiceEntry", entry("resolution: DYNAMIC_DNS, location: MESH_INTERNAL", "['*.a.example']"), "spec.location"),
    ("ServiceEntry", "{hosts: ['*.a.example'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: a, protocol: TCP}]}", "spec.ports[0].protocol"),
    ("ServiceEntry", f"{{hosts: [a.example], ports: [{{number: 80, name: {'a' * 64}}}]}}", "spec.ports[0].name"),
    ("ServiceEntry", "{hosts: [a.example, b.example], resolution: STATIC, ports: [{number: 80, name: a, protocol: TCP}]}", "spec.ports[0].protocol"),
    ("ServiceEntry", entry("resolution: DYNAMIC_DNS", "['*.a.example']"), "spec.resolution"),
    ("ServiceEntry", "{hosts: [a.b], ports: [{number: 80, name: a, protocol: HTTP, targetPort: 81}]}", "spec.ports[0].targetPort"),
    ("ServiceEntry", entry("workloadSelector: {labels: {a: b}}"), "spec.workloadSelector"),
    ("ServiceEntry", entry("exportTo: ['~', other]"), "spec.exportTo"),
    ("ServiceEntry", entry("exportTo: ['~', '*']"), "spec.exportTo"),
    ("ServiceEntry", entry("", "[10.0.0.1]"), "spec.hosts[0]"),
    # WorkloadEntry
    ("WorkloadEntry", "{address: 'invaliddns.com:9443'}", "spec.address"),
    ("WorkloadEntry", "{address: 10.0.0.0/8}", "spec.address"),
    ("WorkloadEntry", "{address: 1.1.1.1, labels: {a: 'b c'}}", "spec.labels[a]"),
    # Sidecar
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: ISTIO_MUTUAL}}]}", "spec.ingress[0].tls.mode"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: AUTO_PASSTHROUGH}}]}", "spec.ingress[0].tls.mode"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: SIMPLE, credentialName: x}}]}", "spec.ingress[0].tls.credentialName"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: SIMPLE, credentialNames: [x]}}]}", "spec.ingress[0].tls.credentialNames"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: SIMPLE, tlsCertificates: [{serverCertificate: /c, privateKey: /k}]}}]}", "spec.ingress[0].tls.tlsCertificates"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k}}]}", "spec.ingress[0].tls"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, bind: here}]}", "spec.ingress[0].bind"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}}, {port: {number: 80, protocol: HTTP}, bind: 10.0.0.1}]}", "spec.ingress[1].port.number"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: 10.0.0.1:80}]}", "spec.ingress[0].defaultEndpoint"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: 'unix://relative'}]}", "spec.ingress[0].defaultEndpoint"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, connectionPool: {tcp: {maxConnections: 1}}}]}", "spec.ingress[0].connectionPool"),
    ("Sidecar", "{inboundConnectionPool: {tcp: {maxConnections: 1}}}", "spec.inboundConnectionPool"),
    ("Sidecar", "{egress: [{hosts: ['*/*']}, {hosts: ['./*']}]}", "spec.egress[0].port"),
    ("Sidecar", "{egress: [{hosts: ['*/*']}, {port: {number: 80}, hosts: ['./*']}]}", "spec.egress[0].port"),
    ("Sidecar", "{egress: [{port: {number: 80}, hosts: ['./*']}, {port: {number: 80}, hosts: ['./*']}]}", "spec.egress[1].port.number"),
    ("Sidecar", "{egress: [{port: {protocol: HTTP}, hosts: ['./*']}]}", "spec.egress[0].port.number"),
    ("Sidecar", "{egress: [{port: {number: 80, targetPort: 81}, hosts: ['./*']}]}", "spec.egress[0].port.targetPort"),
    ("Sidecar", "{egress: [{port: {number: 80, protocol: HTTP}, hosts: ['./*']}]}", "spec.egress[0].port"),
    ("Sidecar", "{egress: [{port: {number: 80}, bind: 10.0.0.1, hosts: ['./*']}]}", "spec.egress[0].bind"),
    ("Sidecar", "{egress: [{captureMode: NONE, hosts: ['./*']}]}", "spec.egress[0].captureMode"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, captureMode: NONE}]}", "spec.ingress[0].captureMode"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, bind: 10.0.0.1}]}", "spec.ingress[0].bind"),
    ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP, targetPort: 81}, defaultEndpoint: '127.0.0.1:80'}]}", "spec.ingress[0].port.targetPort"),
    ("Sidecar", "{egress: [{hosts: ['test/*a.com']}]}", "spec.egress[0].hosts[0]"),
    ("Sidecar", "{egress: [{hosts: ['~Invalid_NS/*']}]}", "spec.egress[0].hosts[0]"),
    ("Sidecar", "{egress: [{hosts: ['./short']}]}", "spec.egress[0].hosts[0]"),
    ("Sidecar", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY, egressProxy: {host: a.b, port: {number: 80}}}}", "spec.outboundTrafficPolicy.egressProxy"),
    ("Sidecar", "{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.b}}}", "spec.outboundTrafficPolicy.egressProxy.port"),
    # AuthorizationPolicy
    ("AuthorizationPolicy", "{rules: [{}], targetRef: {group: apps, kind: Deployment, name: x}}", "spec.targetRef.kind"),
    ("AuthorizationPolicy", "{rules: [{}], targetRefs: [{kind: Gateway, name: x}]}", "spec.targetRefs[0].kind"),
    ("AuthorizationPolicy", "{rules: [{}], targetRef: {kind: Service, name: x}}", "spec.targetRef"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {principals: [a]}}]}]}", "spec.rules[0].from[0].source.principals"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}, rules: [{from: [{source: {notNamespaces: [a]}}]}]}", "spec.rules[0].from[0].source.notNamespaces"),
    ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: p}, rules: [{when: [{key: 'request.auth.claims[x]', values: [a]}]}]}", "spec.rules[0].when[0].key"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", "spec.rules[0].from[0].source.requestPrincipals"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{when: [{key: 'request.auth.claims[group]', values: [x]}]}]}", "spec.rules[0].when[0].values"),
    ("AuthorizationPolicy", "{action: DENY, rules: [{when: [{key: 'experimental.envoy.filters.x[y]', values: [x]}]}]}", "spec.rules[0].when[0].values"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {notRequestPrincipals: [x]}}]}]}", "spec.rules[0].from[0].source.notRequestPrincipals"),
    ("AuthorizationPolicy", "{rules: [{when: [{key: experimental.envoy.filters.x, values: [x]}]}]}", "spec.rules[0].when[0].key"),
    ("AuthorizationPolicy", "{rules: [{from: [{source: {ipBlocks: [1.1.1.1/48]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
    # Gateway (validated although it has no effect)
    ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['ns_x/a.b']}]}", "spec.servers[0].hosts[0]"),
    ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*'], tls: {mode: SIMPLE, serverCertificate: /c, privateKey: /k}}]}", "spec.servers[0].tls"),
    ("Gateway", "{servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, serverCertificate: /c, privateKey: /k}}]}", "spec.servers[0].tls.caCertificates"),
]  # fmt: skip


def named(value: object) -> str:
    """A test's name from a document."""
    return str(value)[:70]


@pytest.mark.parametrize(("kind", "spec"), ACCEPTED, ids=named)
def test_what_istio_accepts_is_accepted(kind: str, spec: str) -> None:
    assert [str(problem) for problem in judged(kind, spec).blocking()] == []


@pytest.mark.parametrize(("kind", "spec", "path"), REFUSED, ids=named)
def test_what_cannot_take_effect_is_refused_at_its_field(kind: str, spec: str, path: str) -> None:
    assert path in [problem.path for problem in judged(kind, spec).blocking()]


@pytest.mark.parametrize(
    ("kind", "spec", "metadata", "accepted"),
    [
        ("AuthorizationPolicy", "{rules: [{}]}", ", annotations: {istio.io/dry-run: foo}", False),
        ("AuthorizationPolicy", "{action: AUDIT, rules: [{}]}", ", annotations: {istio.io/dry-run: 'true'}", False),
        ("PeerAuthentication", "{}", ", annotations: {istio.io/dry-run: 'true'}", False),
        ("AuthorizationPolicy", "{rules: [{}]}", ", annotations: {istio.io/dry-run: 'T'}", True),
        ("AuthorizationPolicy", "{action: DENY, rules: [{}]}", ", annotations: {istio.io/dry-run: 'false'}", True),
    ],
)  # fmt: skip
def test_a_dry_run_is_true_or_false_and_for_allow_and_deny(
    kind: str, spec: str, metadata: str, accepted: bool
) -> None:
    paths = [problem.path for problem in judged(kind, spec, metadata).blocking()]
    assert paths == ([] if accepted else ["metadata.annotations[istio.io/dry-run]"])


@pytest.mark.parametrize("path", ["unix:///run/x", "unix://@x"])
def test_unix_sockets_of_a_sidecar_are_right_and_not_supported(path: str) -> None:
    egress = judged("Sidecar", f"{{egress: [{{port: {{protocol: HTTP}}, bind: '{path}', hosts: ['./*']}}]}}")
    ingress = judged(
        "Sidecar", f"{{ingress: [{{port: {{number: 80, protocol: HTTP}}, defaultEndpoint: '{path}'}}]}}"
    )
    assert egress.errors() == ingress.errors() == ()
    assert [problem.path for problem in egress.blocking()] == ["spec.egress[0].bind"]
    assert [problem.path for problem in ingress.blocking()] == ["spec.ingress[0].defaultEndpoint"]


def test_a_condition_that_can_never_hold_is_named_where_it_fails_closed() -> None:
    parsed = judged("AuthorizationPolicy", "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}")
    assert parsed.blocking() == ()
    assert [problem.path for problem in parsed.warnings()] == [
        "spec.rules[0].from[0].source.requestPrincipals"
    ]


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("ServiceEntry", "{hosts: [a.b], ports: [{number: 5432, name: db, protocol: TCP}]}", "spec.ports[0]"),
        ("ServiceEntry", "{hosts: [a.b], addresses: [10.0.0.1], ports: [{number: 53, name: dns, protocol: UDP}]}", "spec.ports[0].protocol"),
        ("VirtualService", http(f"fault: {{abort: {{httpStatus: 500}}}}, {ROUTE}"), "spec.http[0].fault.abort"),
        ("VirtualService", http(f"fault: {{delay: {{fixedDelay: 1s}}}}, {ROUTE}"), "spec.http[0].fault.delay"),
        ("VirtualService", http(ROUTE, more=", gateways: [mesh, edge]"), "spec.gateways[1]"),
        ("AuthorizationPolicy", "{action: AUDIT, rules: [{}]}", "spec.action"),
        ("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}]}", "kind"),
    ],
)  # fmt: skip
def test_what_surprises_without_harm_is_warned_about(kind: str, spec: str, path: str) -> None:
    parsed = judged(kind, spec)
    assert parsed.blocking() == ()
    assert [problem.path for problem in parsed.warnings()] == [path]
