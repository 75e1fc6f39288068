"""Connections between the library's programs and Envoy as Istio's sidecars set it up, in every mode of a PeerAuthentication
and from every kind of client, over real sockets; and with certificates that must not count.
"""

import json
import subprocess

import authority
import envoy
from ports import free_ports

MODES = ["STRICT", "PERMISSIVE", "DISABLE"]
OURS = "spiffe://cluster.local/ns/default/sa/default"
SIDECAR = "spiffe://cluster.local/ns/default/sa/sidecar"

# A server of ours: what a client of ours, an Envoy with Istio's TLS, and a client without TLS get of it, each as who they are
# for it, or an error.
INBOUND = {
    "STRICT": (OURS, SIDECAR, "error"),
    "PERMISSIVE": (OURS, SIDECAR, None),
    "DISABLE": (None, "error", None),
}
# A server that is an Envoy in that mode: what a client of ours gets of it whose DestinationRule says ISTIO_MUTUAL with the
# right name, with another one, or nothing.
OUTBOUND = {"STRICT": (200, "error", "error"), "PERMISSIVE": (200, "error", 200), "DISABLE": ("error", "error", 200)}
RULES = ["mutual", "other", "none"]


def object_of(kind, group, name, spec):
    return {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def istio_upstream(folder, server):
    """Istio's TLS of a sidecar that calls: its own certificate, one name that the server may have, Istio's ALPN and SNI."""
    context = envoy.files(folder)
    context["validation_context"]["match_typed_subject_alt_names"] = [{"san_type": "URI", "matcher": {"exact": server}}]
    config = {
        "@type": f"{envoy.TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "outbound_.80_._.server.default.svc.cluster.local",
        "common_tls_context": {
            **context,
            "alpn_protocols": ["istio-peer-exchange", "istio"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
        },
    }
    return {"name": "tls", "typed_config": config}


def only_ours():
    """Lets in whom Envoy takes for our client."""
    name = {"authenticated": {"principal_name": {"exact": OURS}}}
    policies = {"ours": {"permissions": [{"any": True}], "principals": [name]}}
    config = {"@type": f"{envoy.TYPES}.filters.http.rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": policies}}
    return {"name": "rbac", "typed_config": config}


class Matrix:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "matrix"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)
        self.bin = suite.args.bin

    def run(self):
        self.suite.check("envoy", "mutual TLS with it, both ways, in every mode", self.all)

    def issue(self, state, account):
        return authority.issue(self.suite, self.folder / state, self.folder / f"{state}-{account}", "default", account)

    def all(self):
        good, foreign = self.issue("state", "sidecar"), self.issue("foreign", "sidecar")
        ports = dict(zip([*MODES, "FOREIGN"], free_ports(4)))
        self.write(ports)
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.folder / "state"]
        self.xds = self.suite.start("mesh-control of the matrix", command).wait_for_line("xds listening on ")
        servers = {mode: self.server(mode.lower()) for mode in MODES}
        callers = {}
        for mode in MODES:
            for name, files, server in (
                ("good", good, mode.lower()),
                ("foreign", foreign, mode.lower()),
                ("misled", good, "somebody"),
            ):
                callers[mode, name] = (servers[mode], istio_upstream(files, f"spiffe://cluster.local/ns/default/sa/{server}"))
        entries = dict(zip(callers, free_ports(len(callers))))
        listeners = [self.sidecar(ports[mode], mode, good) for mode in MODES]
        listeners.append(self.sidecar(ports["FOREIGN"], "STRICT", foreign))
        clusters = []
        for (mode, name), (address, socket) in callers.items():
            cluster = f"{mode}-{name}"
            route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
            listeners.append(envoy.listener(entries[mode, name], [{"filters": [envoy.manager([route])]}]))
            host, port = address.rsplit(":", 1)
            endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
            assignment = {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [endpoint]}]}
            clusters.append({"name": cluster, "type": "STATIC", "load_assignment": assignment, "transport_socket": socket})
        process = envoy.start(self.suite, self.failure, self.folder, listeners, clusters)
        found, expected = {}, {}
        for mode in MODES:
            for who, outcome in zip(("ours", "envoy", "plaintext"), INBOUND[mode]):
                expected[f"{who} to ours, {mode}"] = outcome
            found[f"ours to ours, {mode}"] = self.as_ours(f"http://{mode.lower()}:80/", lambda body: json.loads(body)["peer"])
            found[f"envoy to ours, {mode}"] = self.in_plaintext(entries[mode, "good"])
            found[f"plaintext to ours, {mode}"] = self.in_plaintext(int(servers[mode].rsplit(":", 1)[1]))
            for name in ("foreign", "misled"):
                expected[f"envoy ({name}) to ours, {mode}"] = "error"
                found[f"envoy ({name}) to ours, {mode}"] = self.in_plaintext(entries[mode, name])
            for rule, outcome in zip(RULES, OUTBOUND[mode]):
                expected[f"ours to envoy in {mode}, {rule}"] = outcome
                host = f"{rule}.{mode.lower()}.example"
                found[f"ours to envoy in {mode}, {rule}"] = self.as_ours(f"http://{host}:80/", lambda _: 200)
        expected["ours to envoy with a foreign certificate"] = "error"
        found["ours to envoy with a foreign certificate"] = self.as_ours("http://mutual.foreign.example:80/", lambda _: 200)
        process.kill()
        # An error says more than that it is one.
        short = {what: "error" if str(it).startswith("error") else it for what, it in found.items()}
        if wrong := [f"{what}: {found[what]!r} and not {it!r}" for what, it in expected.items() if short[what] != it]:
            raise self.failure("; ".join(wrong))
        return f"{len(expected)} ways to call"

    def write(self, ports):
        """A service and its mode for each server of ours; a host for each Envoy and each rule."""
        objects = []
        for mode in MODES:
            name, labels = mode.lower(), {"app": mode.lower()}
            ports_of = [{"name": "http", "port": 80}]
            objects.append({**object_of("Service", "", name, {"selector": labels, "ports": ports_of}), "apiVersion": "v1"})
            spec = {"selector": {"matchLabels": labels}, "mtls": {"mode": mode}}
            objects.append(object_of("PeerAuthentication", "security.istio.io", name, spec))
        for mode, port in ports.items():
            for rule in RULES:
                host = f"{rule}.{mode.lower()}.example"
                spec = {
                    "hosts": [host],
                    "ports": [{"name": "http", "number": 80, "targetPort": port, "protocol": "HTTP"}],
                    "resolution": "STATIC",
                    "location": "MESH_INTERNAL",
                    "endpoints": [{"address": "127.0.0.1"}],
                }
                objects.append(object_of("ServiceEntry", "networking.istio.io", host.replace(".", "-"), spec))
                if rule != "none":
                    name = SIDECAR if rule == "mutual" else f"{SIDECAR}-2"
                    tls = {"mode": "ISTIO_MUTUAL", "subjectAltNames": [name]}
                    spec = {"host": host, "trafficPolicy": {"tls": tls}}
                    objects.append(object_of("DestinationRule", "networking.istio.io", host.replace(".", "-"), spec))
        (self.config / "all.yaml").write_text("\n---\n".join(json.dumps(one) for one in objects))

    def server(self, name):
        """A server of ours; where it listens."""
        command = [self.bin / "mesh-echo", "--name", name, "--service-account", name, "--listen", "127.0.0.1:0"]
        process = self.suite.start(name, [*command, "--control", self.xds])
        address = process.wait_for_line(" listening on ")
        process.wait_for_line(" serving")
        return address

    @staticmethod
    def sidecar(port, mode, files):
        """An Envoy that answers 200 in this mode, over TLS only to our client."""
        answer = [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]
        socket = envoy.downstream(files)
        socket["typed_config"]["common_tls_context"]["alpn_protocols"] = ["istio", "h2", "http/1.1"]
        secured = {"filter_chain_match": {"transport_protocol": "tls"}, "transport_socket": socket}
        secured["filters"] = [envoy.manager(answer, http_filters=[only_ours()])]
        plain = {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": [envoy.manager(answer)]}
        chains = {"STRICT": [secured], "PERMISSIVE": [secured, plain], "DISABLE": [plain]}
        return envoy.listener(port, chains[mode])

    def as_ours(self, url, of):
        """What a client of the mesh gets: `of` a good answer, else `error`."""
        command = [self.bin / "mesh-curl", "--control", self.xds, "--service-account", "default", "-o", "json", url]
        done = subprocess.run(command, capture_output=True, timeout=60, text=True)
        answer = json.loads(done.stdout.splitlines()[0])
        return of(answer["body"]) if done.returncode == 0 else f"error {answer['error']}"

    @staticmethod
    def in_plaintext(port):
        """Who a client without TLS is to the server behind this port, else `error`."""
        connection = envoy.Connection(port)
        try:
            status, body = connection.ask("GET", "/", [("host", "server")])
        except OSError:
            return "error"
        finally:
            connection.close()
        return json.loads(body)["peer"] if status == 200 else "error"
