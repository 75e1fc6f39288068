"""The same objects, two gateways, the same requests: an Envoy and `mesh-gateway` are asked the same at once, byte by byte, over every
kind of listener, rule and policy (`edge_objects.py`, `edge_kinds.py`, `edge_policies.py`), and have to answer alike, and to send on
the same. Where they do not, the difference stands in `edge_differences.py` with its reason.
"""

import base64
import concurrent.futures
import json
import re
import socket
import ssl
import threading
import time

import authority
import echo
import edge_differences
import edge_kinds
import edge_objects
import edge_policies
import gateway
import raw
import scan
import sslyze
from ports import free_port, free_ports

PLANES = ("envoy", "mesh-gateway")
# What proxies say of themselves, of the moment and of the call: none of it is what was asked or answered.
OF_THEMSELVES = {"date", "server", "x-envoy-upstream-service-time", "x-envoy-decorator-operation", "x-request-id", "connection",
    "keep-alive"}
# The same of requests that go on; Envoys tell each other of their mesh, too.
OF_THEIR_OWN = {"x-request-id", "x-envoy-attempt-count", "x-envoy-expected-rq-timeout-ms", "x-envoy-decorator-operation",
    "x-envoy-peer-metadata",
                "x-envoy-peer-metadata-id", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "traceparent", "tracestate", "x-envoy-internal"}
# Of answers that a proxy gives itself: how it words them is its own.
OF_WORDS = {"content-length", "content-type", "transfer-encoding", "grpc-message"}
# Fields that are no lists (RFC 6265, 3).
NO_LISTS = {"set-cookie", "cookie"}


class Edge:
    """Two gateways, and the server behind them."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "edge"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)

    def run(self):
        check = self.suite.check
        check("edge", "an Envoy and mesh-gateway have the same listeners, by the same objects", self.start)
        check("edge", "requests of every kind are answered alike, and go on alike",
            lambda: self.alike(edge_kinds.kinds((self.client, self.stranger))))
        check("edge", "and where policies decide", self.policies)
        check("edge", "and where they decide on connections that nobody looks into", self.connections)
        check("edge", "sslyze has nothing against mesh-gateway, which speaks TLS 1.2 and 1.3", self.scanned)
        check("edge", "every difference that is known of is one", self.unused)

    def write(self, name, text):
        temporary = self.folder / name
        temporary.write_text(text)
        temporary.rename(self.config / name)

    def start(self):
        self.echo, self.explained, self.count = echo.Echo(), set(), 0
        self.ports = {plane: dict(zip(("http", "https", "tcp"), free_ports(3))) for plane in PLANES}
        self.certificates()
        for plane, ports in self.ports.items():
            self.write(f"service-{plane}.yaml", edge_objects.SERVICE % {"plane": plane, **ports})
        self.write("objects.yaml", edge_objects.objects(self.echo.port, free_port()))
        self.write("raw.yaml", edge_objects.passed(self.serve_raw()))
        state = self.folder / "state"
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", state, "--sds-private-keys"]
        control = self.suite.start("mesh-control of the edge", command)
        xds = control.wait_for_line("xds listening on ")
        self.processes = [control]
        for plane in PLANES:
            labels = {"istio": "ingressgateway", "plane": plane}
            name = f"edge-by-{plane}"
            started = gateway.start(self.suite, self.failure, plane, xds, state, self.folder, name, gateway.NAMESPACE, labels)
            self.processes.append(started)
        self.when_both("every listener", lambda plane: self.is_there(plane))

    def when_both(self, what, holds):
        for plane in PLANES:
            self.suite.until(f"{what} of {plane}", lambda: holds(plane), self.processes)

    def is_there(self, plane):
        ports = self.ports[plane]
        last = edge_kinds.get("/", "plain.example", "connection: close")
        plain = raw.http1(ports["http"], last)
        secured = raw.http1(ports["https"], edge_kinds.get("/", "mutual.example", "connection: close"),
            raw.Tls("mutual.example", ("http/1.1",), self.client))
        passed = raw.http1(ports["https"], last, raw.Tls("raw.example"))
        tcp = raw.http1(ports["tcp"], last)
        return all(one["answers"] and one["answers"][0]["status"] == 200 for one in (plain, secured, passed, tcp))

    def certificates(self):
        def own(name, *hosts):
            return authority.self_signed(self.folder, name, "-addext", "subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts))

        secure = own("secure", "secure.example", "*.secure.example", "new.example")
        mutual = own("mutual", "mutual.example", "optional.example")
        self.raw, self.stranger = own("raw", "raw.example"), own("stranger", "stranger.example")
        self.client, clients = authority.signed(self.folder, "client")
        self.write("secure.yaml", gateway.secret("secure", tls_crt=secure[0], tls_key=secure[1]))
        self.write("mutual.yaml", gateway.secret("mutual", tls_crt=mutual[0], tls_key=mutual[1], ca_crt=clients))

    def serve_raw(self):
        """The same server, by TLS of its own."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, self.raw))
        listening = socket.create_server(("127.0.0.1", 0))

        def serve(connection):
            try:
                self.echo.serve(context.wrap_socket(connection, server_side=True))
            except OSError:
                pass

        def accept():
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listening.getsockname()[1]

    def policies(self):
        issuer = edge_policies.Issuer()
        self.write("policies.yaml", edge_objects.POLICIES % {"issuer": edge_objects.ISSUER, "jwks": issuer.jwks})

        def decides(plane):
            heard = raw.http1(self.ports[plane]["http"], edge_kinds.get("/admin", "guarded.example", "connection: close"))
            return heard["answers"] and heard["answers"][0]["status"] == 403

        self.when_both("a policy", decides)
        return self.alike(edge_policies.guarded(issuer))

    def connections(self):
        for asked, (spec, *let_in) in edge_policies.CONNECTIONS.items():
            self.write("policies.yaml", edge_objects.POLICY % spec)
            self.when_both(f"a policy {asked}", lambda plane, expected=let_in: self.let_in(plane) == expected)
            self.alike(edge_policies.connections(asked))
        return f"{len(edge_policies.CONNECTIONS)} policies"

    def let_in(self, plane):
        """By TCP, and by TLS that passes."""
        ports = self.ports[plane]
        last = edge_kinds.get("/", "plain.example", "connection: close")
        heard = [raw.http1(ports["tcp"], last), raw.http1(ports["https"], last, raw.Tls("raw.example"))]
        return [bool(one["answers"]) for one in heard]

    def alike(self, kinds):
        """Asks both, and compares. What differs is asked once more: a connection of an Envoy may close under a request, and of two
        listeners one may have a change a moment later."""
        kinds = list(kinds)
        self.count += len(kinds)
        unexplained = self.unexplained(kinds)
        if unexplained:
            time.sleep(1)
            unexplained = self.unexplained([kind for kind in kinds if kind.name in unexplained])
        if any(process.child.poll() is not None for process in self.processes):
            raise self.failure("a gateway has ended")
        if unexplained:
            said = [f"{name}: {difference}" for name, all in unexplained.items() for difference in all]
            raise self.failure(f"{len(said)} differences:\n" + "\n".join(said))
        return f"{len(kinds)} kinds"

    def unexplained(self, kinds):
        """Differences without a reason, by the names of their kinds: many are asked at once, since an Envoy takes a second to close a connection."""
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            asked = [[pool.submit(kind.ask, self.ports[plane][kind.port], plane) for plane in PLANES] for kind in kinds]
            heard = [[told(one.result(), plane, self.ports[plane]) for one, plane in zip(both, PLANES)] for both in asked]
        unexplained = {}
        for kind, (theirs, ours) in zip(kinds, heard):
            for difference in differences(theirs, ours):
                reason = edge_differences.reason(kind.name, difference)
                if reason is None:
                    unexplained.setdefault(kind.name, []).append(difference)
                self.explained.add(reason)
        return unexplained

    def scanned(self):
        location = sslyze.ServerNetworkLocation(hostname="secure.example", port=self.ports["mesh-gateway"]["https"], ip_address="127.0.0.1")
        return scan.scan(self.failure, location, ["tls_1_2", "tls_1_3"])

    def unused(self):
        if unused := [reason for reason in edge_differences.ALL if reason not in self.explained]:
            raise self.failure(f"these are none any more: {unused}")
        return f"{self.count} kinds, {len(edge_differences.ALL)} reasons to differ"


def told(heard, plane, ports):
    """What was heard as lines to be compared: each is a place, and what was there."""
    text = json.dumps(heard)
    for port in ports.values():
        text = re.sub(rf"\b{port}\b", "PORT", text)
    heard = json.loads(text.replace(f"key-{plane}", "KEY"))
    # Nobody was answered: how the connection ends is told by TLS, or by HTTP/2, in words of its own.
    then = heard["then"] if heard["answers"] or heard["then"] == "silence" else "nothing"
    lines = {"then": then, "alpn": heard.get("alpn"), "statuses": [one["status"] for one in heard["answers"]]}
    for number, one in enumerate(heard["answers"]):
        place = f"{number} " if number else ""
        names = {name for name, _ in one["headers"]}
        is_own = "x-echo" not in names and (one["status"] >= 400 or "grpc-status" in names) and "x-set" not in names
        lines |= {f"{place}version": one["version"], f"{place}interim": one["interim"]}
        lines |= {f"{place}trailers": sorted(map(tuple, one["trailers"]))}
        left_out = OF_THEMSELVES | (OF_WORDS if is_own else set())
        for name in names - left_out - {":status"}:
            lines[f"{place}header {name}"] = values(one["headers"], name)
        if is_own:
            continue
        if not one["body"]:
            # There is none to HEAD.
            lines.pop(f"{place}header transfer-encoding", None)
        whole = read_as_text(one) or one["body"]
        grpc, body = whole[:5], whole[5:]
        if not (grpc.startswith("\0") and body.startswith("{")):
            body = whole
        if not body.startswith('{"line"'):
            lines[f"{place}body"] = body
            continue
        lines.pop(f"{place}header content-length", None)
        seen, end = json.JSONDecoder().raw_decode(body)
        # Of gRPC-Web the trailers are what is left.
        lines[f"{place}behind"] = body[end:]
        lines |= {f"{place}seen line": seen["line"], f"{place}seen body": seen["body"],
            f"{place}seen trailers": sorted(map(tuple, seen["trailers"]))}
        # Which one is each gateway's own.
        lines[f"{place}seen a request id"] = any(name == "x-request-id" for name, _ in seen["headers"])
        for name in {name for name, _ in seen["headers"]} - OF_THEIR_OWN:
            lines[f"{place}seen {name}"] = values(seen["headers"], name)
        # No body, whether its length is told or not (RFC 9110, 8.6).
        if lines.get(f"{place}seen content-length") == ["0"]:
            del lines[f"{place}seen content-length"]
    return lines


def read_as_text(one):
    """The body of an answer of gRPC-Web that is text: parts of base64, each with an end of its own."""
    if not any(name == "content-type" and value.startswith("application/grpc-web-text") for name, value in one["headers"]):
        return None
    return "".join(base64.b64decode(part).decode("latin1") for part in re.findall("[^=]+=*", one["body"]))


def values(fields, name):
    """Those of a field; a list is the same in one line or in several."""
    lines = [value for other, value in fields if other == name]
    return lines if name in NO_LISTS else [one.strip() for value in lines for one in value.split(",")]


def differences(theirs, ours):
    # What follows from another status, or from none, is none of its own.
    first = ["statuses"]
    for place in [*first, *sorted((theirs.keys() | ours.keys()) - {*first})]:
        envoys, own = (short(lines.get(place)) for lines in (theirs, ours))
        if envoys != own:
            yield f"{place}: {envoys} | {own}"
            if place in first:
                return


def short(value):
    text = str(value)
    return text if len(text) < 200 else f"{text[:100]}... {len(text)}, {hash(text)}"
