"""Envoys beside workloads, told everything by mesh-control: in front of a plain server for our clients, and behind a plain client for
our servers. The steps are those of docs/envoy.md.
"""

import http.server
import json
import subprocess
import threading
import time
import urllib.request

import authority
import envoy
from ports import free_ports

# A key on P-256 (the one of RFC 7515, A.3): nobody here signs with it.
KEY = {"x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
SERVICES = 20
# Fields that name files.
FILES = ("clientCertificate", "privateKey", "caCertificates", "caCrl")
REVISIONS = 40
# Where the plain client is.
SHOP = "127.0.0.4"

OBJECTS = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: %(reviews)d, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: http, port: %(ratings)d}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers}
spec:
  selector: {matchLabels: {app: reviews}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/shop]}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec: {host: ratings, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
"""

GUARDS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    extensionProviders:
    - name: asker
      envoyExtAuthzHttp: {service: asker.example, port: 80, includeRequestHeadersInCheck: [x-token]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: asker}
spec:
  hosts: [asker.example]
  ports: [{number: 80, targetPort: %(asker)d, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked}
spec:
  selector: {matchLabels: {app: reviews}}
  action: CUSTOM
  provider: {name: asker}
  rules: [{to: [{operation: {paths: [/asked]}}]}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens}
spec:
  selector: {matchLabels: {app: reviews}}
  jwtRules: [{issuer: somebody, jwks: '{"keys":[{"kty":"EC","crv":"P-256","kid":"a","alg":"ES256","x":"%(x)s","y":"%(y)s"}]}'}]
"""

SPLIT = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %(host)s}
spec:
  hosts: [%(host)s]
  http:
  - route:
    - {destination: {host: %(host)s, subset: v1}, weight: %(first)d}
    - {destination: {host: %(host)s, subset: v2}, weight: %(second)d}
"""

STORM = """\
apiVersion: v1
kind: Service
metadata: {name: storm-%(index)d}
spec: {selector: {app: storm-%(index)d}, ports: [{name: %(protocol)s, port: %(port)d}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: storm-%(index)d}
spec:
  host: storm-%(index)d
  trafficPolicy: {connectionPool: {tcp: {connectTimeout: %(seconds)ds}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: storm-%(index)d}
spec:
  hosts: [storm-%(index)d]
  http: [{route: [{destination: {host: storm-%(index)d, subset: %(subset)s}}]}]
"""


class Asker(http.server.BaseHTTPRequestHandler):
    """Says whether a request may pass, by a header that it is shown."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200 if self.headers.get("x-token") == "good" else 403)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Answer(http.server.BaseHTTPRequestHandler):
    """A server of HTTP/1.1 that knows nothing of any mesh: says which version it is, and whom its proxy says it was called by."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps({"version": self.server.version, "caller": self.headers.get("x-forwarded-client-cert", "")})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def outbound(ip):
    """Where the workload at this address calls its sidecar."""
    return ip.replace("127.0.0.", "127.0.1.")


class Sidecar:
    def __init__(self, suite, failure, folder="sidecar"):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / folder
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)
        self.bin = suite.args.bin
        self.envoys = {}

    def run(self):
        self.start()
        check = self.suite.check
        check("envoy", "a sidecar in front of a plain server: STRICT, split, moved, and closed to others", self.called)
        check("envoy", "a sidecar behind a plain client: STRICT, split, moved", self.calls)
        check("envoy", "what it calls is in the graph, by its load reports", self.reported)
        check("envoy", "redirected connections: every listener is taken", self.redirected)
        check("envoy", "whatever validate passes is accepted", self.corpus)
        check("envoy", f"a storm of {REVISIONS} revisions of {SERVICES} services", self.storm)
        check("envoy", "mesh-control killed and back: calls go on, and workloads are endpoints again", self.restarted)
        check("envoy", "no sidecar refused anything", self.none_refused)

    def write(self, name, text):
        temporary = self.folder / name
        temporary.write_text(text)
        temporary.rename(self.config / name)

    def start(self):
        names = ("reviews", "ratings", "v1", "v2", "asker")
        self.ports = dict(zip(names, free_ports(len(names))))
        self.write("objects.yaml", OBJECTS % self.ports)
        self.write("guards.yaml", GUARDS % {**self.ports, **KEY})
        self.split("reviews", 100, 0)
        self.split("ratings", 100, 0)
        self.xds = "127.0.0.1:0"
        self.start_control()
        asker = http.server.ThreadingHTTPServer(("127.0.0.1", self.ports["asker"]), Asker)
        threading.Thread(target=asker.serve_forever, daemon=True).start()
        for version, ip in (("v1", "127.0.0.2"), ("v2", "127.0.0.3")):
            # Where the workload listens, its sidecar does not.
            server = http.server.ThreadingHTTPServer(("127.0.0.1", self.ports[version]), Answer)
            server.version = version
            threading.Thread(target=server.serve_forever, daemon=True).start()
            # Both protocols.
            self.sidecar(f"reviews-{version}", "reviews", version, ip, is_incremental=version == "v1", http=self.ports[version])
        self.sidecar("shop", "shop", "v1", SHOP)
        for version in ("v1", "v2"):
            listen = ["--listen", f"127.0.0.{5 if version == 'v1' else 6}:{self.ports['ratings']}"]
            command = [self.bin / "mesh-echo", "--name", "ratings", "--version", version, *listen]
            server = self.suite.start(f"ratings {version}", [*command, "--control", self.xds])
            server.wait_for_line(" serving")

    def start_control(self):
        command = [*self.suite.serve(self.config, self.xds), "--dev", "--state-dir", self.folder / "state"]
        self.control = self.suite.start("mesh-control of sidecars", [*command, "--sds-private-keys"])
        self.xds = self.control.wait_for_line("xds listening on ")
        self.status = self.control.wait_for_line("status listening on ")

    def read_status(self):
        with urllib.request.urlopen(f"http://{self.status}/status", timeout=10) as answer:
            return json.loads(answer.read())

    def split(self, host, first, second):
        self.write(f"{host}.yaml", SPLIT % {"host": host, "first": first, "second": second})

    def sidecar(self, name, account, version, ip, interception="none", xds=None, state="state", is_incremental=True, **ports):
        """An Envoy with the configuration that mesh-control writes for it."""
        [admin] = free_ports(1)
        folder = self.folder / name
        certificates = authority.issue(self.suite, self.folder / state, folder, "default", account)
        command = [self.bin / "mesh-control", "bootstrap", "--envoy", "sidecar", "--server", xds or self.xds, "--name", name]
        command += ["--service-account", account, "--label", f"app={account}", "--label", f"version={version}"]
        command += ["--ip", ip, "--certificates", certificates, "--admin-port", str(admin), "--interception", interception]
        if interception == "none":
            # Each has an address of its own where its workload calls it, as each would have a machine.
            command += ["--outbound-ip", outbound(ip)]
        command += [word for name, port in ports.items() for word in ("--port-name", f"{name}={port}")]
        config = folder / "envoy.json"
        subprocess.run([*map(str, command), "--out", str(config)], check=True, timeout=30)
        if not is_incremental:
            config.write_text(config.read_text().replace("DELTA_GRPC", "GRPC"))
        process = self.suite.start(name, [envoy.program(self.failure), "-c", config, *envoy.QUIET])
        self.envoys[name] = (process, admin, ip)
        return name

    def admin(self, name, path):
        _, port, _ = self.envoys[name]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def stats(self, name):
        lines = (line.rsplit(": ", 1) for line in self.admin(name, "/stats").splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}

    def until(self, what, holds):
        return self.suite.until(what, holds, [process for process, *_ in self.envoys.values()])

    def ours(self, account, count=40, path="/", header="a: b"):
        """What a client of ours gets of reviews: statuses, versions, and whom it was taken for."""
        url = f"http://reviews:{self.ports['reviews']}{path}"
        command = [self.bin / "mesh-curl", "--control", self.xds, "--service-account", account, "-o", "json", "-n", str(count)]
        command += ["-H", header]
        done = subprocess.run([*map(str, command), url], capture_output=True, timeout=60, text=True)
        calls = [json.loads(line) for line in done.stdout.splitlines()]
        calls = [call for call in calls if "summary" not in call]
        bodies = [json.loads(call["body"]) for call in calls if call["status"] == 200]
        return {
            "status": {call["status"] for call in calls},
            "versions": {body["version"] for body in bodies},
            "callers": {body["caller"] for body in bodies},
        }

    def called(self):
        def is_as(account, status, versions):
            def holds():
                got = self.ours(account)
                return got if (got["status"], got["versions"]) == ({status}, versions) else None

            return holds

        got = self.until("all of it at v1", is_as("shop", 200, {"v1"}))
        [caller] = got["callers"]
        if "URI=spiffe://cluster.local/ns/default/sa/shop" not in caller:
            raise self.failure(f"the workload is told of another caller: {caller!r}")
        self.split("reviews", 50, 50)
        self.until("both versions", is_as("shop", 200, {"v1", "v2"}))
        self.split("reviews", 0, 100)
        self.until("all of it at v2", is_as("shop", 200, {"v2"}))
        refused = self.ours("somebody", 2)
        if refused["status"] != {403}:
            raise self.failure(f"a policy lets in somebody else: {refused}")
        for path, header, status in (
            ("/asked", "x-token: bad", 403),
            ("/asked", "x-token: good", 200),
            ("/", "authorization: Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln", 401),
        ):
            if (got := self.ours("shop", 2, path, header))["status"] != {status}:
                raise self.failure(f"{path} with {header}: {got}")
        for version, ip in (("v1", "127.0.0.2"), ("v2", "127.0.0.3")):
            address = f"http://{ip}:{self.ports[version]}/"
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    raise self.failure(f"{address} is served in plaintext: {answer.status}")
            except OSError:
                pass
        return f"moved from v1 to v2 as {caller.split(';')[-1]}; 403 and 401 where policies say so, nothing in plaintext"

    def reported(self):
        def holds():
            self.plain(20)
            wanted = ("default/shop/v1", "ratings.default.svc.cluster.local", "envoy")
            edges = self.suite.edges(self.status)
            found = [edge for edge in edges if (edge["source"], edge["service"], edge["class"]) == wanted]
            return [edge for edge in found if edge["requests"] >= 20] or None

        edge = self.until("an edge of the Envoy", holds)[0]
        return f"{edge['requests']} requests to {edge['destination']}"

    def plain(self, count=40):
        """What a client that knows nothing of any mesh gets of ratings, through its sidecar."""
        versions, peers = set(), set()
        for _ in range(count):
            request = urllib.request.Request(f"http://{outbound(SHOP)}:{self.ports['ratings']}/", headers={"host": "ratings"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                body = json.loads(answer.read())
            versions.add(body["version"])
            peers.add(body["peer"])
        return versions, peers

    def calls(self):
        def is_as(expected):
            def holds():
                versions, peers = self.plain()
                return peers if versions == expected else None

            return holds

        peers = self.until("all of it at v1", is_as({"v1"}))
        if not all("ns/default/sa/shop" in str(peer) for peer in peers):
            raise self.failure(f"our server was called by {peers}")
        self.split("ratings", 50, 50)
        self.until("both versions", is_as({"v1", "v2"}))
        self.split("ratings", 0, 100)
        self.until("all of it at v2", is_as({"v2"}))
        return f"called by {peers.pop()}"

    def redirected(self):
        name = self.sidecar("redirected", "shop", "v1", "127.0.0.7", "redirect")
        names = {"virtualOutbound", "virtualInbound", f"0.0.0.0_{self.ports['reviews']}"}
        process, *_ = self.envoys[name]
        try:
            self.until("every listener there", lambda: names <= self.active(name))
            rejected = {key: value for key, value in self.stats(name).items() if key.endswith("update_rejected") and value}
            if rejected:
                raise self.failure(f"refused: {rejected}")
        finally:
            process.kill()
            del self.envoys[name]

    def active(self, name):
        dump = json.loads(self.admin(name, "/config_dump?resource=dynamic_listeners"))
        return {one["name"] for one in dump.get("configs", []) if "active_state" in one}

    def corpus(self):
        """Every field of every kind, in one go, to an Envoy that would bind none of the ports."""
        everything, _ = self.suite.write_corpus()
        folder = self.folder / "corpus-config"
        folder.mkdir()
        # Files of the machine that are not there are refused, and have to be.
        texts = {path.name: path.read_text() for path in everything.iterdir()}
        texts = {name: text for name, text in texts.items() if not any(key in text for key in FILES)}
        for name, text in texts.items():
            (folder / name).write_text(text)
        state = ["--state-dir", self.folder / "state-of-corpus", "--sds-private-keys"]
        command = [*self.suite.serve(folder, "127.0.0.1:0"), "--dev", *state]
        control = self.suite.start("mesh-control of the corpus for Envoy", command)
        xds = control.wait_for_line("xds listening on ")
        status = control.wait_for_line("status listening on ")
        name = self.sidecar("corpus", "corpus", "v1", "127.0.0.8", "redirect", xds, "state-of-corpus")
        process, *_ = self.envoys.pop(name)

        def is_synced():
            with urllib.request.urlopen(f"http://{status}/status", timeout=10) as answer:
                clients = json.loads(answer.read())["clients"]
            kinds = [kind for client in clients for kind in client["kinds"] if kind["subscribed"]]
            if refused := [f"{kind['kind']}: {kind['last_nack']['text']}" for kind in kinds if kind["nacks"]]:
                raise self.failure("; ".join(refused))
            return kinds if len(kinds) == 4 and all(kind["state"] == "synced" for kind in kinds) else None

        try:
            kinds = self.until("synced", is_synced)
        finally:
            process.kill()
            control.end()
        return f"{len(texts)} manifests, " + ", ".join(f"{kind['subscribed']} {kind['kind']}" for kind in kinds)

    def storm(self):
        """Every revision changes each service: its route, its cluster, and whether it is there."""
        ports = free_ports(SERVICES)
        for revision in range(REVISIONS):
            last = revision == REVISIONS - 1
            objects = [
                STORM
                % {
                    "index": index,
                    "port": port,
                    "protocol": ("http", "grpc")[index % 2],
                    "seconds": 1 + (revision + index) % 9,
                    "subset": ("v1", "v2")[(revision + index) % 2],
                }
                for index, port in enumerate(ports)
                if last or (revision + index) % 4
            ]
            self.write("storm.yaml", "---\n".join(objects))
            time.sleep(0.1)
        clusters = {f"outbound|{port}|v1|storm-{index}.default.svc.cluster.local" for index, port in enumerate(ports)}

        def is_calm(name):
            stats = self.stats(name)
            warming = {key: value for key, value in stats.items() if key.endswith("_warming") and value}
            known = {line.split("::")[0] for line in self.admin(name, "/clusters").splitlines()}
            ip = outbound(self.envoys[name][2])
            missing = sorted(clusters - known) + sorted({f"{ip}_{port}" for port in ports} - self.active(name))
            return not warming and not missing

        for name in self.envoys:
            self.until(f"{name} calm after the storm", lambda: is_calm(name))
        return f"{len(self.envoys)} Envoys: nothing missing, nothing warming"

    def restarted(self):
        self.control.kill()
        versions, _ = self.plain()
        self.start_control()

        def is_back():
            workloads = [one["address"] for one in self.read_status()["workloads"] if one["connected"]]
            wanted = {f"{ip}:{self.ports[version]}" for version, ip in (("v1", "127.0.0.2"), ("v2", "127.0.0.3"))}
            return workloads if wanted <= set(workloads) else None

        workloads = self.until("every workload an endpoint again", is_back)
        got = self.until("answers", lambda: self.ours("shop") if self.ours("shop", 4)["status"] == {200} else None)
        return f"{versions} meanwhile; then {len(workloads)} workloads, and {got['versions']} called"

    def none_refused(self):
        found = {}
        for name in self.envoys:
            for key, value in self.stats(name).items():
                if key.endswith("update_rejected") and value:
                    found[f"{name} {key}"] = value

        def subscriptions():
            envoys = [one for one in self.read_status()["clients"] if one["node"].startswith("sidecar~")]
            return envoys, [(one["node"], kind) for one in envoys for kind in one["kinds"] if kind["subscribed"]]

        def all_synced():
            # A mesh-control that has just started holds back what may only be missing yet.
            envoys, kinds = subscriptions()
            return kinds if len(envoys) == len(self.envoys) and all(kind["state"] == "synced" for _, kind in kinds) else None

        kinds = self.until("every subscription synced", all_synced)
        for node, kind in kinds:
            if kind["nacks"]:
                found[f"{node} {kind['kind']}"] = kind
        if found:
            raise self.failure(f"{found}")
        for process, *_ in self.envoys.values():
            process.end()
        return f"{len(kinds)} subscriptions, all acked"
