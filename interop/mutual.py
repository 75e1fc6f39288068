"""Mutual TLS between gRPC's own programs and the library's, with certificates of mesh-control's authority."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time

import authority
from ports import free_port

OURS = "spiffe://cluster.local/ns/default/sa/default"
PYTHON = "spiffe://cluster.local/ns/default/sa/python"

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: grpc, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: foreign}
spec: {selector: {app: foreign}, ports: [{name: grpc, port: 9081}]}
"""

# Only who is named may call.
ONLY_PYTHON = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings}
spec:
  selector: {matchLabels: {app: ratings}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/%s]}}]}]
"""

NOBODY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: foreign}
spec: {selector: {matchLabels: {app: foreign}}}
"""

# A server of another trust domain.
ABROAD = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: abroad}
spec:
  hosts: [abroad.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9082, name: grpc, protocol: GRPC, targetPort: %d}]
  subjectAltNames: ['spiffe://partner.example/ns/default/sa/server']
  endpoints: [{address: 127.0.0.1, labels: {security.istio.io/tlsMode: istio}}]
"""

# gRPC reads bundles by trust domain (A87) only if it is told so.
MAPS = {"GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE": "true"}


class Mutual:
    """One control plane that gives identities, and programs of both kinds."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "mutual"
        self.config, self.state = self.folder / "config", self.folder / "state"
        self.config.mkdir(parents=True)
        (self.config / "services.yaml").write_text(SERVICES)
        self.bin = suite.args.bin

    def issue(self, account):
        return authority.issue(self.suite, self.state, self.folder / account, "default", account)

    def bootstrap(self, name, *options):
        path = self.folder / f"{name}.json"
        command = [self.bin / "mesh-control", "bootstrap", "--server", self.xds, "--name", name, *options]
        subprocess.run([*command, "--out", path], check=True, timeout=30)
        return {"GRPC_XDS_BOOTSTRAP": str(path)}

    def run(self):
        suite = self.suite
        python = self.issue("python")
        command = [*suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.state]
        control = suite.start("mesh-control with identities", command)
        self.xds = control.wait_for_line("xds listening on ")
        instance = [self.bin / "bookinfo", "service", "ratings", "--version", "v1", "--control", self.xds]
        suite.start("ratings by mutual TLS", instance).wait_for_line(" serving")

        certified = ["--service-account", "python", "--certificates", python]
        client = suite.start_client_at("certified", self.bootstrap("certified", *certified))
        suite.each([client], "a client with a certificate calls a server that takes nothing but mutual TLS", self.is_ok)
        plain = suite.start_client_at("plain", self.bootstrap("plain"))
        plain.expects_failures = True
        suite.each([plain], "and one without is not let in", self.is_refused, window=20)
        (self.config / "policy.yaml").write_text(ONLY_PYTHON % "other")
        client.expects_failures = True
        suite.each([client], "a policy names somebody else: it is denied", self.is_denied)
        (self.config / "policy.yaml").write_text(ONLY_PYTHON % "python")
        suite.each([client], "a policy names it: it is let in", self.is_ok)
        suite.check("python", "its server takes nothing but mutual TLS, and knows who calls", self.foreign_server)
        suite.check("python", "its client verifies each trust domain of a bundle map by that one's roots", self.federated)

    @staticmethod
    def is_ok(calls):
        return all(call["status"] == "OK" for call in calls)

    @staticmethod
    def is_refused(calls):
        return all(call["status"] == "UNAVAILABLE" for call in calls)

    @staticmethod
    def is_denied(calls):
        return all(call["status"] == "PERMISSION_DENIED" for call in calls)

    def abroad(self, state, identity, *more):
        """A certificate of an authority of its own."""
        out = self.folder / f"{state}-{identity.rsplit('/', 1)[1]}"
        command = [self.bin / "mesh-control", "ca", "issue", "--state-dir", self.folder / state, "--out", out, *more]
        subprocess.run([*command, "--identity", identity], check=True, timeout=30, capture_output=True)
        return out

    def federated(self):
        """Python's client, with bundles of two trust domains, and a server of the other one: called by its own roots, and not in
        the name of somebody whose domain has others. (Python's server fails every handshake once it has bundles.)"""
        partner = self.abroad("partner", "spiffe://partner.example/ns/default/sa/server")
        forged = self.abroad("forger", "spiffe://cluster.local/ns/default/sa/server")
        bundle = self.folder / "partner.pem"
        bundle.write_text("".join((folder / "root-cert.pem").read_text() for folder in (partner, forged)))
        account = self.folder / "federated"
        command = [self.bin / "mesh-control", "ca", "issue", "--state-dir", self.state, "--out", account]
        command += ["--identity", "spiffe://cluster.local/ns/default/sa/federated", "--trust-bundle", f"partner.example={bundle}"]
        subprocess.run(command, check=True, timeout=30, capture_output=True)
        found = {name: self.is_called(account, folder) for name, folder in {"the partner's": partner, "forged": forged}.items()}
        if found != {"the partner's": True, "forged": False}:
            raise self.failure(f"{found}")
        return "the partner's is called, and the forged one is not"

    def is_called(self, account, folder):
        """Whether a client of Python speaks HTTP/2 with a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert-chain.pem", folder / "key.pem")
        context.set_alpn_protocols(["h2"])
        seen = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(30)

            def serve():
                while not seen:
                    stream, _ = listener.accept()
                    stream.settimeout(20)
                    try:
                        with context.wrap_socket(stream, server_side=True) as secured:
                            seen.append(secured.recv(3) == b"PRI")
                    except OSError:
                        seen.append(False)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            (self.config / "abroad.yaml").write_text(ABROAD % listener.getsockname()[1])
            env = {**self.bootstrap("federated-client", "--service-account", "federated", "--certificates", account), **MAPS}
            script = self.suite.here / "python" / "client.py"
            client = self.suite.start("federated client", [sys.executable, script, "xds:///abroad.example:9082", "/a.B/C", "0.1"], env)
            thread.join(30)
            client.kill()
        if not seen:
            raise self.failure(f"nobody called: {list(client.errors)}")
        return seen[0]

    def foreign_server(self):
        account = self.issue("foreign")
        address = f"127.0.0.1:{free_port()}"
        options = ["--service-account", "foreign", "--certificates", account, "--label", "app=foreign"]
        env = self.bootstrap("foreign", *options)
        method = "/bookinfo.v1.Ratings/Get"
        server = self.suite.start(
            "python's server", [sys.executable, self.suite.here / "python" / "server.py", address, method], env
        )
        server.wait_for_line("listening on ")
        command = [self.bin / "mesh-curl", "--control", self.xds, "-o", "json", f"xds:///foreign:9081{method}"]

        def answers(status):
            """Waits until a call to it has this status."""
            end = time.monotonic() + 20
            while True:
                done = subprocess.run([str(part) for part in command], capture_output=True, timeout=60, text=True)
                if f'"status":"{status}"' in done.stdout.split("\n")[0].replace(" ", ""):
                    return
                if time.monotonic() > end:
                    raise self.failure(f"never {status}: {done.stdout[-300:]} {done.stderr[-300:]} {list(server.errors)}")
                time.sleep(0.2)

        answers("OK")
        peer = json.loads("{" + server.wait_for_line("{"))["peer"]
        if peer != [OURS]:
            raise self.failure(f"the server takes the caller for {peer}")
        with socket.create_connection(address.rsplit(":", 1), timeout=10) as stream:
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            try:
                if answer := stream.recv(9):
                    # A TLS alert is no word of HTTP/2.
                    if answer[0] != 21:
                        raise self.failure(f"the server answers plaintext: {answer!r}")
            except ConnectionResetError:
                pass
        # Without rules a policy lets nobody in: not for a gRPC server either.
        (self.config / "foreign.yaml").write_text(NOBODY)
        answers("PERMISSION_DENIED")
        (self.config / "foreign.yaml").unlink()
        answers("OK")
        return f"called by {peer[0]}, and by nobody under a policy without rules"
