"""Programs of Python and of Node.js in the mesh by mesh-sidecar: called by ours and calling ours, by nothing but mutual TLS."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

from ports import free_ports

PRINCIPAL = "spiffe://cluster.local/ns/default/sa/"

OBJECTS = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: python}
spec: {selector: {app: python}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec: {selector: {app: node}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec: {selector: {app: greeter}, ports: [{name: grpc, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: rust}
spec: {selector: {app: rust}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rust}
spec: {host: rust, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rust}
spec:
  hosts: [rust]
  http:
  - {match: [{headers: {x-user: {exact: jason}}}], route: [{destination: {host: rust, subset: v2}}]}
  - {route: [{destination: {host: rust, subset: v1}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: python}
spec:
  selector: {matchLabels: {app: python}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/shop, cluster.local/ns/default/sa/node]}}]}]
"""


class Beside:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "beside"
        self.folder.mkdir()
        self.bin = suite.args.bin

    def run(self):
        check = self.suite.check
        self.start()
        check("sidecar", "programs of Python, Node.js and grpcio are ready when they answer", self.ready)
        check("sidecar", "ours call them, and they are told who calls", self.called)
        check("sidecar", "they call ours, routed by header, and one another", self.calls)
        check("sidecar", "who comes without a certificate is not let in, nor whom no policy names", self.refused)
        check("sidecar", "what they do is counted as the mesh's", self.counted)
        check("sidecar", "a program ends when its sidecar is told to, and its exit code is the sidecar's", self.ended)

    def start(self):
        (self.folder / "config").mkdir()
        (self.folder / "config" / "objects.yaml").write_text(OBJECTS)
        control = self.suite.start("mesh-control of programs", [*self.suite.serve(self.folder / "config", "127.0.0.1:0"), "--dev"])
        self.xds = control.wait_for_line("xds listening on ")
        for version in ("v1", "v2"):
            command = [self.bin / "mesh-echo", "--name", "rust", "--version", version, "--listen", "127.0.0.1:0"]
            self.suite.start(f"rust {version}", [*command, "--control", self.xds]).wait_for_line(" serving")
        here = os.path.dirname(os.path.abspath(__file__))
        self.ports, self.sidecars = {}, {}
        [listen] = free_ports(1)
        method = "/mesh.echo.v1.Echo/Unary"
        self.beside("python", [sys.executable, f"{here}/python/plain.py", "PORT", "python"])
        self.beside("node", [shutil.which("node"), f"{here}/node/plain.js", "PORT", "node"])
        program = [sys.executable, f"{here}/python/greeter.py", "PORT", f"localhost:{listen}", method]
        self.beside("greeter", program, "--listen", f"{listen}=rust:80")

    def beside(self, name, program, *options):
        """A program, and its sidecar."""
        app, inbound, admin = self.ports[name] = free_ports(3)
        command = [self.bin / "mesh-sidecar", "--control", self.xds, "--name", name, "--service-account", name]
        command += ["--app-port", app, "--inbound", f"127.0.0.1:{inbound}", "--admin-addr", f"127.0.0.1:{admin}", *options]
        program = [str(app) if part == "PORT" else part for part in program]
        self.sidecars[name] = self.suite.start(f"{name} and its sidecar", [*command, "--", *program])

    def until(self, what, holds):
        return self.suite.until(what, holds, self.sidecars.values())

    def admin(self, name, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name][2]}{path}", timeout=10) as answer:
            return answer.read().decode()

    def ready(self):
        for name in self.ports:
            self.until(f"{name} ready", lambda name=name: self.admin(name, "/ready") == "ready\n")

    def ours(self, url, *options, account="shop"):
        """What a client of ours gets there."""
        command = [self.bin / "mesh-curl", "--control", self.xds, "--service-account", account, "-o", "json", *options, url]
        done = subprocess.run([*map(str, command)], capture_output=True, timeout=60, text=True)
        try:
            return json.loads(done.stdout.splitlines()[0])
        except (IndexError, ValueError):
            raise self.failure(f"{url}: {done.stdout} {done.stderr}") from None

    def got(self, url, *options):
        """The content of a good answer; a call that comes before its endpoints do is made again."""

        def holds():
            call = self.ours(url, *options)
            return json.loads(call["body"]) if call["status"] == 200 else None

        return self.until(f"an answer of {url}", holds)

    def called(self):
        for name in ("python", "node"):
            # Neither keeps what a client says of itself, nor what it would have its server forget.
            body = self.got(f"http://{name}/who", "-H", "x-forwarded-client-cert: URI=spiffe://evil")
            headers = {key.lower(): value for key, value in body["headers"].items()}
            told = headers["x-forwarded-client-cert"].split(";")
            wanted = (f"By={PRINCIPAL}{name}", 'Subject=""', f"URI={PRINCIPAL}shop")
            if (told[0], *told[2:]) != wanted or not told[1].startswith("Hash=") or headers["host"] != name:
                raise self.failure(f"{name} is told {headers}")
        greeted = self.until("greeted", lambda: self.greeted("Hello"))
        if f"URI={PRINCIPAL}shop" not in greeted:
            raise self.failure(f"the greeter is told {greeted}")
        return greeted

    def greeted(self, method):
        call = self.ours(f"xds:///greeter:80/mesh.test.Greeter/{method}", "-d", "hello")
        return str(call["body"]) if call["status"] == "OK" else None

    def calls(self):
        def calling(name, url):
            return f"http://{name}/call?url={urllib.parse.quote(url, safe='')}"

        for name in ("python", "node"):
            for header, version in (("x-user: jason", "v2"), ("x-user: guest", "v1")):
                called = self.got(calling(name, "http://rust/"), "-H", header)["called"]
                if (called["peer"], called["version"]) != (PRINCIPAL + name, version):
                    raise self.failure(f"{name} is {called['peer']} to {called['version']} with {header}")
        called = self.got(calling("node", calling("python", "http://rust/")))["called"]["called"]
        if called["peer"] != PRINCIPAL + "python":
            raise self.failure(f"at the end of a chain: {called}")
        echoed = self.until("an answer by way of the greeter", lambda: self.greeted("Call"))
        return f"node, python, rust; by gRPC {echoed[:60]!r}"

    def refused(self):
        for name, (_, inbound, _) in self.ports.items():
            with socket.create_connection(("127.0.0.1", inbound), timeout=10) as plain:
                plain.sendall(f"GET /who HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n".encode())
                try:
                    answer = plain.recv(1024)
                except ConnectionError:
                    answer = b""
            if answer:
                raise self.failure(f"{name} answers in plaintext: {answer}")
        if (status := self.ours("http://python/who", account="somebody")["status"]) != 403:
            raise self.failure(f"a policy lets in somebody else: {status}")

    def counted(self):
        def line(name, *labels):
            lines = self.admin(name, "/stats/prometheus").splitlines()
            found = [it for it in lines if it.startswith("istio_requests_total{") and all(label in it for label in labels)]
            return found[0] if found else None

        inbound = ('reporter="destination"', f'source_principal="{PRINCIPAL}shop"', 'response_code="200"')
        outbound = ('reporter="source"', 'destination_service_name="rust"', 'response_code="200"')
        self.until("a request to python counted", lambda: line("python", *inbound, 'connection_security_policy="mutual_tls"'))
        return self.until("a request of node counted", lambda: line("node", *outbound))[:60]

    def ended(self):
        child = self.sidecars["python"].child
        child.terminate()
        code = child.wait(60)
        # plain.py says so.
        if code != 3:
            raise self.failure(f"exit code {code}; {list(self.sidecars['python'].errors)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.ports["python"][0])) == 0:
                raise self.failure("the program is still there")
