"""Mutual TLS between gRPC's own programs and the library's, with certificates of mesh-control's authority."""

import json
import socket
import subprocess
import sys
import time

import authority

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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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

    @staticmethod
    def is_ok(calls):
        return all(call["status"] == "OK" for call in calls)

    @staticmethod
    def is_refused(calls):
        return all(call["status"] == "UNAVAILABLE" for call in calls)

    @staticmethod
    def is_denied(calls):
        return all(call["status"] == "PERMISSION_DENIED" for call in calls)

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
