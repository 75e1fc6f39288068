"""Envoy's secret discovery service, with Envoy itself: its certificate and whom it trusts are mesh-control's to tell, while it runs,
and the roots of a foreign trust domain vouch for nobody of the mesh.
"""

import ssl
import subprocess
import time

import envoy
from ports import free_ports

TLS = f"{envoy.TYPES}.transport_sockets.tls.v3"
OWN = "cluster.local"
PARTNER = "partner.example"


class Sds:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "sds"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)

    def run(self):
        self.suite.check("envoy", "secrets from mesh-control: its own, renewed, and roots by trust domain", self.all)

    def issue(self, state, domain, account):
        """A certificate of the authority in this folder, in a folder of its own."""
        out = self.folder / f"{state}-{account}"
        command = [self.suite.args.bin / "mesh-control", "ca", "issue", "--state-dir", self.folder / state, "--out", out]
        identity = f"spiffe://{domain}/ns/default/sa/{account}"
        subprocess.run([*command, "--identity", identity], check=True, timeout=30, capture_output=True)
        return out

    def control_cluster(self, address, folder):
        """mesh-control, by a certificate of the mesh on either side."""
        host, port = address.rsplit(":", 1)
        socket_address = {"socket_address": {"address": host, "port_value": int(port)}}
        http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
        options = {"@type": f"{envoy.TYPES}.upstreams.http.v3.HttpProtocolOptions", **http2}
        # A client, it speaks TLS 1.2 unless it is told otherwise.
        versions = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
        common = {**envoy.files(folder), "alpn_protocols": ["h2"], "tls_params": versions}
        context = {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": common}
        return {
            "name": "control",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            "load_assignment": {
                "cluster_name": "control",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address}}]}],
            },
            "transport_socket": {"name": "tls", "typed_config": context},
        }

    def listener(self, port):
        def secret(name):
            service = {"envoy_grpc": {"cluster_name": "control"}}
            source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
            return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}

        context = {
            "@type": f"{TLS}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [secret("default")],
                "validation_context_sds_secret_config": secret("ROOTCA"),
            },
        }
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "in"}}}
        chain = {"filters": [envoy.manager([answer])], "transport_socket": {"name": "tls", "typed_config": context}}
        return envoy.listener(port, [chain])

    def ask(self, port, folder):
        """The status, and the certificate of the server; or why there is none."""
        context = envoy.client_context(folder)
        context.verify_mode = ssl.CERT_NONE
        connection = envoy.Connection(port, context)
        try:
            status, _ = connection.ask("GET", "/", [("host", "sds")])
            return status, connection.stream.getpeercert(binary_form=True)
        except OSError as error:
            return error, None
        finally:
            connection.close()

    def all(self):
        own, partner = self.issue("state", OWN, "client"), self.issue("partner", PARTNER, "client")
        # Of another authority, which names a workload of the mesh, and stands in the partner's file all the same.
        forged = self.issue("forger", OWN, "client")
        bundle = self.folder / "partner.pem"
        bundle.write_text("".join((folder / "root-cert.pem").read_text() for folder in (partner, forged)))
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.folder / "state"]
        command += ["--sds-private-keys", "--certificate-ttl", "8", "--trust-bundle", f"{PARTNER}={bundle}"]
        control = self.suite.start("mesh-control of secrets", command)
        xds = control.wait_for_line("xds listening on ")
        [port] = free_ports(1)
        listeners, clusters = [self.listener(port)], [self.control_cluster(xds, self.issue("state", OWN, "sidecar"))]
        proxy = envoy.start(self.suite, self.failure, self.folder, listeners, clusters)
        end = time.monotonic() + 30
        while True:
            status, certificate = self.ask(port, own)
            if status == 200:
                break
            if time.monotonic() > end:
                raise self.failure(f"nobody is let in: {status}; {list(proxy.errors)}; {list(control.errors)}")
            time.sleep(0.2)
        verdicts = {name: self.ask(port, folder)[0] for name, folder in (("partner", partner), ("forged", forged))}
        if verdicts["partner"] != 200 or verdicts["forged"] == 200:
            raise self.failure(f"of each trust domain its own roots: {verdicts}")
        end = time.monotonic() + 30
        while self.ask(port, own)[1] in (certificate, None):
            if time.monotonic() > end:
                raise self.failure("it shows the same certificate for longer than that holds")
            time.sleep(0.2)
        proxy.end()
        control.end()
        return "let in: its own and the partner's, not who is named by the other's authority; a new certificate in time"
