"""What two gateways are told alike: each kind of listener, rule and policy, with a host of its own."""

import json

# Two gateways of one selector, each with ports of its own.
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: %(plane)s, namespace: istio-system}
spec:
  selector: {plane: %(plane)s}
  ports:
  - {name: http, port: 80, targetPort: %(http)d}
  - {name: https, port: 443, targetPort: %(https)d}
  - {name: tcp, port: 9000, targetPort: %(tcp)d}
"""
GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 80, name: http-secured, protocol: HTTP}
    hosts: [secured.example]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [secure.example, "*.secure.example"]
    tls: {mode: SIMPLE, credentialName: secure}
  - port: {number: 443, name: https-new, protocol: HTTPS}
    hosts: [new.example]
    tls: {mode: SIMPLE, credentialName: secure, minProtocolVersion: TLSV1_3}
  - port: {number: 443, name: https-mutual, protocol: HTTPS}
    hosts: [mutual.example]
    tls: {mode: MUTUAL, credentialName: mutual}
  - port: {number: 443, name: https-optional, protocol: HTTPS}
    hosts: [optional.example]
    tls: {mode: OPTIONAL_MUTUAL, credentialName: mutual}
  - port: {number: 443, name: https-broken, protocol: HTTPS}
    hosts: [broken.example]
    tls: {mode: SIMPLE, credentialName: nowhere}
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: [raw.example]
    tls: {mode: PASSTHROUGH}
  - port: {number: 9000, name: tcp, protocol: TCP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw}
spec:
  hosts: [raw.example]
  gateways: [edge]
  tls: [{match: [{sniHosts: [raw.example]}], route: [{destination: {host: raw.example, port: {number: 443}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp}
spec:
  hosts: ["*"]
  gateways: [edge]
  tcp: [{match: [{port: 9000}], route: [{destination: {host: echo.example, port: {number: 80}}}]}]
"""


def entry(host, *ports):
    """A server outside of the mesh; of each port the number, where it listens for it, and its protocol."""
    listed = [{"number": number, "name": protocol.lower(), "protocol": protocol} for number, _, protocol in ports]
    endpoint = {"address": "127.0.0.1", "ports": {protocol.lower(): target for _, target, protocol in ports}}
    spec = {"hosts": [host], "location": "MESH_EXTERNAL", "resolution": "STATIC", "ports": listed, "endpoints": [endpoint]}
    return {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": host.split(".")[0]}, "spec": spec}


def to(host="echo.example", **more):
    return {"destination": {"host": host, "port": {"number": 80}}, **more}


def named(name, *matches, **more):
    """A rule by whose name its server is told that it was the one."""
    rule = {"headers": {"request": {"set": {"x-rule": name}}}, "route": [to()], **more}
    return rule | ({"match": list(matches)} if matches else {})


def rules(name, *rules, hosts=None):
    spec = {"hosts": hosts or [f"{name}.example"], "gateways": ["edge"], "http": list(rules)}
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}, "spec": spec}


def at(path, **more):
    return {"match": [{"uri": {"exact": path}}], **more}


SERVICES = [
    rules("plain", {"route": [to()]}),
    rules("wild", {"route": [to()]}, hosts=["*.wild.example"]),
    rules("secure", {"route": [to()]}, hosts=["secure.example", "*.secure.example", "new.example", "mutual.example", "optional.example",
        "broken.example"]),
    rules("secured", {"route": [to()]}),
    rules("grpc", {"route": [to("grpc.example")]}),
    rules("web", {"route": [to("web.example")]}),
    rules("dead", {"route": [to("dead.example")]}),
    rules("nobody", {"route": [to("nobody.example")]}),
    rules(
        "match",
        named("exact", {"uri": {"exact": "/exact"}}),
        named("any-case", {"uri": {"exact": "/Any-Case"}, "ignoreUriCase": True}),
        named("any-case-prefix", {"uri": {"prefix": "/Wide/"}, "ignoreUriCase": True}),
        named("regex", {"uri": {"regex": "/r[0-9]+"}}),
        named("method", {"uri": {"prefix": "/m"}, "method": {"exact": "PUT"}}),
        named("method-regex", {"uri": {"prefix": "/m"}, "method": {"regex": "P.*"}}),
        named("header", {"uri": {"prefix": "/h"}, "headers": {"x-a": {"exact": "one"}}}),
        named("header-prefix", {"uri": {"prefix": "/h"}, "headers": {"x-a": {"prefix": "tw"}}}),
        named("header-regex", {"uri": {"prefix": "/h"}, "headers": {"x-a": {"regex": "t[a-h]+.*"}}}),
        named("header-there", {"uri": {"prefix": "/h"}, "headers": {"x-b": {}}}),
        named("header-two", {"uri": {"prefix": "/h"}, "headers": {"x-c": {"exact": "1"}, "x-d": {"exact": "2"}}}),
        named("header-not", {"uri": {"prefix": "/n"}, "withoutHeaders": {"x-a": {}}}),
        named("header-not-so", {"uri": {"prefix": "/n"}, "withoutHeaders": {"x-a": {"exact": "one"}}}),
        named("query", {"uri": {"prefix": "/q"}, "queryParams": {"a": {"exact": "1"}}}),
        named("query-prefix", {"uri": {"prefix": "/q"}, "queryParams": {"a": {"prefix": "x"}}}),
        named("query-regex", {"uri": {"prefix": "/q"}, "queryParams": {"b": {"regex": "[0-9]+"}}}),
        named("authority", {"uri": {"prefix": "/a"}, "authority": {"prefix": "match.example:"}}),
        named("scheme", {"uri": {"prefix": "/s"}, "scheme": {"exact": "https"}}),
        named("scheme-plain", {"uri": {"prefix": "/s"}, "scheme": {"exact": "http"}}),
        named("port", {"uri": {"prefix": "/p"}, "port": 80}),
        named("either", {"uri": {"exact": "/e1"}}, {"uri": {"exact": "/e2"}}),
        named("prefix", {"uri": {"prefix": "/prefix"}}),
        named("directory", {"uri": {"prefix": "/directory/"}}),
    ),
    rules(
        "rewrite",
        {"match": [{"uri": {"prefix": "/a/"}}], "rewrite": {"uri": "/"}, "route": [to()]},
        {"match": [{"uri": {"prefix": "/b"}}], "rewrite": {"uri": "/c"}, "route": [to()]},
        at("/exact", rewrite={"uri": "/else"}, route=[to()]),
        at("/host", rewrite={"authority": "inside.example"}, route=[to()]),
        at("/both", rewrite={"uri": "/else", "authority": "inside.example:81"}, route=[to()]),
        at("/query", rewrite={"uri": "/else?x=1"}, route=[to()]),
        {"match": [{"uri": {"prefix": "/r"}}], "rewrite": {"uriRegexRewrite": {"match": "/r/([^/]*)/([^/]*)", "rewrite": "/\\2/\\1"}},
            "route": [to()]},
    ),
    rules(
        "redirect",
        at("/uri", redirect={"uri": "/to"}),
        at("/authority", redirect={"authority": "to.example"}),
        at("/both", redirect={"uri": "/to", "authority": "to.example", "redirectCode": 302}),
        *(at(f"/{code}", redirect={"uri": "/to", "redirectCode": code}) for code in (301, 302, 303, 307, 308)),
        at("/scheme", redirect={"scheme": "https"}),
        at("/port", redirect={"port": 8443, "scheme": "https"}),
        at("/derived", redirect={"derivePort": "FROM_PROTOCOL_DEFAULT"}),
        at("/request-port", redirect={"derivePort": "FROM_REQUEST_PORT", "authority": "to.example"}),
        at("/query", redirect={"uri": "/to?x=1"}),
        at("/headers", redirect={"uri": "/to"}, headers={"response": {"set": {"x-set": "1"}}}),
    ),
    rules(
        "direct",
        at("/ok", directResponse={"status": 200, "body": {"string": "told"}}),
        at("/teapot", directResponse={"status": 418, "body": {"bytes": "dG9sZA=="}}),
        at("/empty", directResponse={"status": 503}),
        at("/none", directResponse={"status": 204}),
        at("/headers", directResponse={"status": 200, "body": {"string": "{}"}},
            headers={"response": {"set": {"content-type": "application/json"}, "add": {"x-add": "1"}}}),
    ),
    rules(
        "cors",
        {
            "match": [{"uri": {"prefix": "/strict"}}],
            "corsPolicy": {
                "allowOrigins": [{"exact": "https://a.example"}],
                "allowMethods": ["GET"],
                "unmatchedPreflights": "IGNORE",
            },
            "route": [to()],
        },
        {
            "corsPolicy": {
                "allowOrigins": [{"exact": "https://a.example"}, {"prefix": "https://b."}, {"regex": "https://c[0-9]\\.example"}],
                "allowMethods": ["GET", "POST"],
                "allowHeaders": ["x-a", "x-b"],
                "exposeHeaders": ["x-echo"],
                "maxAge": "60s",
                "allowCredentials": True,
            },
            "route": [to()],
        },
    ),
    rules(
        "headers",
        {
            "headers": {
                "request": {
                    "set": {"x-set": "1", "x-path": "%REQ(:path)%"},
                    "add": {"x-add": "2", "x-protocol": "%PROTOCOL%"},
                    "remove": ["x-gone", "user-agent"],
                },
                "response": {
                    "set": {"x-set": "3", "x-code": "%RESPONSE_CODE%"},
                    "add": {"x-add": "4"},
                    "remove": ["x-a", "set-cookie"],
                },
            },
            "route": [to(headers={"request": {"set": {"x-set": "5", "host": "named.example"}}, "response": {"add": {"x-add": "6"}}})],
        },
    ),
    rules(
        "fault",
        at("/abort", fault={"abort": {"httpStatus": 418, "percentage": {"value": 100}}}, route=[to()]),
        at("/grpc", fault={"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100}}}, route=[to()]),
        at("/never", fault={"abort": {"httpStatus": 418, "percentage": {"value": 0}}}, route=[to()]),
        at("/delay", fault={"delay": {"fixedDelay": "50ms", "percentage": {"value": 100}}}, route=[to()]),
        at("/both", fault={"delay": {"fixedDelay": "50ms", "percentage": {"value": 100}},
            "abort": {"httpStatus": 500, "percentage": {"value": 100}}}, route=[to()]),
    ),
    rules(
        "timeout",
        at("/short", timeout="300ms", route=[to()]),
        # Longer than a busy machine takes for anything: who reaches a limit must not depend on who was waited for.
        at("/long", timeout="60s", route=[to()]),
        at("/tries", timeout="60s", retries={"attempts": 2, "perTryTimeout": "150ms", "retryOn": "5xx,reset", "backoff": "1ms"},
            route=[to()]),
        at("/retried", retries={"attempts": 2, "retryOn": "5xx", "backoff": "1ms"}, route=[to()]),
        at("/by-code", retries={"attempts": 1, "retryOn": "503", "backoff": "1ms"}, route=[to()]),
        at("/not", retries={"attempts": 0}, route=[to()]),
        at("/reset", retries={"attempts": 1, "retryOn": "reset", "backoff": "1ms"}, route=[to()]),
        at("/grpc", timeout="300ms", retries={"attempts": 2, "retryOn": "unavailable", "backoff": "1ms"}, route=[to("grpc.example")]),
    ),
    rules("guarded", {"route": [to()]}),
    rules("token", {"route": [to()]}),
    rules("limited", {"route": [to()]}),
]

ISSUER = "https://issuer.example"
POLICIES = """\
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  jwtRules:
  - {issuer: "%(issuer)s", audiences: [edge], jwks: '%(jwks)s', outputClaimToHeaders: [{header: x-subject, claim: sub}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  action: DENY
  rules:
  - to: [{operation: {hosts: [guarded.example, "guarded.example:*"], paths: [/admin, /admin/*]}}]
  - to: [{operation: {hosts: [guarded.example], methods: [DELETE]}}]
  - to: [{operation: {hosts: [guarded.example]}}]
    when: [{key: "request.headers[x-role]", values: [evil]}]
  - from: [{source: {remoteIpBlocks: [1.2.3.4/32]}}]
    to: [{operation: {hosts: [guarded.example]}}]
  - from: [{source: {notRequestPrincipals: ["*"]}}]
    to: [{operation: {hosts: [token.example]}}]
  - to: [{operation: {hosts: [token.example], paths: [/group]}}]
    when: [{key: "request.auth.claims[group]", notValues: [staff]}]
---
apiVersion: policy.mesh-control/v1alpha1
kind: RateLimit
metadata: {name: limited, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  rules:
  - name: users
    match: {headers: {x-limited: "yes"}}
    by: [{header: x-user}]
    limit: {requests: 2, per: 3600s}
"""

# One that decides by this.
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: connections, namespace: istio-system}
spec: {selector: {matchLabels: {istio: ingressgateway}}, %s}
"""


def objects(echo, dead):
    """All but policies, and what has ports of its own."""
    entries = [
        entry("echo.example", (80, echo, "HTTP")),
        entry("grpc.example", (80, echo, "GRPC")),
        entry("dead.example", (80, dead, "HTTP")),
        entry("web.example", (80, echo, "GRPC-WEB")),
    ]
    return "\n---\n".join([GATEWAY, *map(json.dumps, [*entries, *SERVICES])])


def passed(port):
    """A server of TLS that clients speak with through the gateway."""
    return json.dumps(entry("raw.example", (443, port, "TLS")))
