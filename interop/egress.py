"""Calls that leave the mesh through an Envoy beside a workload: a certificate from a Secret, hosts by a wildcard, a way through an
HTTP proxy, by a gateway of the mesh, and nothing but what is described. The gateway is an Envoy, and then mesh-gateway, and the library
calls both, too. What else it does is in mesh-tower/tests/security/egress.rs.
"""

import base64
import hashlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request

import authority
import edge_objects
import gateway
import sidecar
from ports import free_ports

IP = "127.0.0.9"
AT = sidecar.outbound(IP)

SECRET = """\
apiVersion: v1
kind: Secret
metadata: {name: api-client}
type: kubernetes.io/tls
data:
  tls.crt: %s
  tls.key: %s
  ca.crt: %s
"""

OBJECTS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api.example.com
  workloadSelector: {matchLabels: {app: egress}}
  trafficPolicy: {tls: {mode: MUTUAL, credentialName: api-client}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cloud}
spec:
  hosts: ['*.cloud.localhost']
  ports: [{number: %(server)d, name: http, protocol: HTTP}, {number: %(passed)d, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cloud}
spec:
  host: '*.cloud.localhost'
  workloadSelector: {matchLabels: {app: egress}}
  trafficPolicy: {portLevelSettings: [{port: {number: %(server)d}, tls: {mode: SIMPLE, credentialName: api-client}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: proxy}
spec:
  host: proxy.example.com
  subsets: [{name: db, trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: db.example.com, targetPort: 5432}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db.example.com]
  tcp: [{route: [{destination: {host: proxy.example.com, subset: db, port: {number: %(way)d}}}]}]
"""


GATEWAY = """\
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec: {selector: {istio: egressgateway}, ports: [{name: https, port: %(edge)d, targetPort: %(bound)d}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  selector: {istio: egressgateway}
  servers:
  - port: {number: %(edge)d, name: https, protocol: HTTPS}
    hosts: [partner.example.com]
    tls: {mode: ISTIO_MUTUAL}
  - port: {number: %(edge)d, name: tls, protocol: TLS}
    hosts: [bank.example.com]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  host: istio-egressgateway
  subsets:
  - name: partner
    trafficPolicy: {portLevelSettings: [{port: {number: %(edge)d}, tls: {mode: ISTIO_MUTUAL, sni: partner.example.com}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: partner}
spec:
  host: partner.example.com
  trafficPolicy: {portLevelSettings: [{port: {number: %(secure)d}, tls: {mode: SIMPLE, caCertificates: %(root)s}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: partner}
spec:
  hosts: [partner.example.com]
  gateways: [mesh, istio-system/istio-egressgateway]
  http:
  - match: [{gateways: [mesh], port: %(partner)d}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: partner, port: {number: %(edge)d}}}]
  - match: [{gateways: [istio-system/istio-egressgateway], port: %(edge)d}]
    route: [{destination: {host: partner.example.com, port: {number: %(secure)d}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  gateways: [mesh, istio-system/istio-egressgateway]
  tls:
  - match: [{gateways: [mesh], port: %(bank)d, sniHosts: [bank.example.com]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, port: {number: %(edge)d}}}]
  - match: [{gateways: [istio-system/istio-egressgateway], port: %(edge)d, sniHosts: [bank.example.com]}]
    route: [{destination: {host: bank.example.com, port: {number: %(bank)d}}}]
"""


def entries(api, server, way, proxy, db, partner, secure, outer, bank, **_):
    """Who is outside, at these ports."""
    return [
        edge_objects.entry("api.example.com", (api, server, "HTTP")),
        edge_objects.entry("proxy.example.com", (way, proxy, "TCP")),
        edge_objects.entry("db.example.com", (db, db, "TCP")),
        edge_objects.entry("partner.example.com", (partner, partner, "HTTP"), (secure, outer, "HTTPS")),
        edge_objects.entry("bank.example.com", (bank, outer, "TLS")),
    ]


class Outside(http.server.BaseHTTPRequestHandler):
    """Says by which name it was asked for, and who was shown to it. Each request has a connection of its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        shown = self.connection.getpeercert(binary_form=True)
        seen = {"name": self.connection.asked, "client": shown and hashlib.sha256(shown).hexdigest()}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def everything(stream):
    """What comes until the other side ends."""
    said = b""
    while more := stream.recv(4096):
        said += more
    return said


class Egress(sidecar.Sidecar):
    def __init__(self, suite, failure):
        super().__init__(suite, failure, "egress")

    def run(self):
        self.start()
        check = self.suite.check
        check("envoy", "a certificate from a Secret is shown, and a new one when it changes", self.by_secret)
        check("envoy", "a host of a wildcard is looked up when it is called, in HTTP and in TLS", self.by_wildcard)
        check("envoy", "a connection goes through an HTTP proxy to where its tunnel leads", self.through_proxy)
        for by in ("envoy", "mesh-gateway"):
            check("envoy", f"calls leave by a gateway ({by}), which ends their TLS or passes it on", lambda by=by: self.by_gateway(by))
        check("envoy", "what nothing describes is refused", self.nothing_else)
        check("envoy", "the Envoy of egress refused nothing", self.none_refused)

    def start(self):
        names = ("api", "server", "passed", "way", "proxy", "db", "edge", "bound", "partner", "secure", "outer", "bank")
        self.ports = dict(zip(names, free_ports(len(names))))
        hosts = ("api.example.com", "a.cloud.localhost", "partner.example.com", "bank.example.com")
        names = "subjectAltName=" + ",".join(f"DNS:{host}" for host in hosts)
        self.outside, self.root = authority.signed(self.folder, "outside", "-addext", names)
        self.clients = [authority.self_signed(self.folder, f"client-{index}") for index in range(2)]
        for port in ("server", "passed", "outer"):
            threading.Thread(target=self.serve, args=(self.ports[port],), daemon=True).start()
        threading.Thread(target=self.lead, args=(socket.create_server(("127.0.0.1", self.ports["proxy"])),), daemon=True).start()
        self.write("entries.yaml", "\n---\n".join(map(json.dumps, entries(**self.ports))))
        self.write("objects.yaml", OBJECTS % self.ports)
        self.write("gateway.yaml", GATEWAY % {**self.ports, "root": self.root})
        self.xds = "127.0.0.1:0"
        self.start_control()
        self.sidecar("egress", "egress", "v1", IP)

    def secret(self, index):
        certificate, key = self.clients[index]
        texts = (path.read_bytes() for path in (certificate, key, self.root))
        self.write("secret.yaml", SECRET % tuple(base64.b64encode(text).decode() for text in texts))

    def serve(self, port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.outside)
        context.verify_mode = ssl.CERT_OPTIONAL
        for certificate, _ in self.clients:
            context.load_verify_locations(certificate)

        def note(connection, name, _):
            connection.asked = name

        context.sni_callback = note
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Outside)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.serve_forever()

    def lead(self, listener):
        """A proxy whose every tunnel ends at a server that says what it was asked for, and then what it hears."""
        while True:
            stream, _ = listener.accept()
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += stream.recv(1)
            stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + head.split(b"\r\n")[0] + b"\n")
            stream.sendall(stream.recv(100))
            stream.close()

    def get(self, port, host):
        request = urllib.request.Request(f"http://{AT}:{self.ports[port]}/", headers={"host": host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return None, str(error)

    def ours(self, port, host):
        """The same by the library."""
        command = [self.bin / "mesh-curl", "--control", self.xds, "--service-account", "library", "--label", "app=egress", "-o", "json"]
        done = subprocess.run([*map(str, command), f"http://{host}:{self.ports[port]}/"], capture_output=True, timeout=60, text=True)
        call = json.loads(done.stdout.split("\n")[0])
        return call["status"], json.loads(call["body"]) if call["status"] == 200 else call["error"]

    def by_secret(self):
        def shown(index):
            der = ssl.PEM_cert_to_DER_cert(self.clients[index][0].read_text())
            return (200, {"name": "api.example.com", "client": hashlib.sha256(der).hexdigest()})

        for index, which in enumerate(("first", "second")):
            self.secret(index)
            self.until(f"the {which} certificate", lambda: self.get("api", "api.example.com") == shown(index))
            self.until(f"the {which} one, shown by the library", lambda: self.ours("api", "api.example.com") == shown(index))
        key = "".join(self.clients[1][1].read_text().splitlines()[1:3])
        for text in (self.admin("egress", "/config_dump?include_eds"), json.dumps(self.read_status())):
            if key in text or base64.b64encode(key.encode()).decode()[:40] in text:
                raise self.failure("a key is in a dump")

    def by_wildcard(self):
        host = f"a.cloud.localhost:{self.ports['server']}"
        self.until("the host", lambda: self.get("server", host) == (200, {"name": "a.cloud.localhost", "client": None}))
        status, why = self.get("server", f"b.cloud.localhost:{self.ports['server']}")
        if status != 503:
            raise self.failure(f"a server that is not who was asked for: {status} {why}")
        said = self.over_tls("passed", "a.cloud.localhost")
        if b"a.cloud.localhost" not in said:
            raise self.failure(f"through TLS that passes: {said}")

    def over_tls(self, port, name):
        """What a server of this name says over TLS of the workload's own."""
        context = ssl.create_default_context(cafile=self.root)
        with socket.create_connection((AT, self.ports[port]), timeout=10) as raw:
            with context.wrap_socket(raw, server_hostname=name) as stream:
                stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return everything(stream)

    def through_proxy(self):
        def answered():
            with socket.create_connection((AT, self.ports["db"]), timeout=10) as stream:
                stream.sendall(b"hello")
                return everything(stream)

        expected = b"CONNECT db.example.com:5432 HTTP/1.1\nhello"
        self.until("the way through the proxy", lambda: answered() == expected)

    def by_gateway(self, by):
        host, expected = "partner.example.com", {"name": "partner.example.com", "client": None}
        # There is no other way.
        self.until("no gateway yet", lambda: self.get("partner", host)[0] == 503)
        labels = {"istio": "egressgateway"}
        state, name = self.folder / "state", f"egress-{by}"
        process = gateway.start(self.suite, self.failure, by, self.xds, state, self.folder, name, "istio-system", labels)

        self.until(f"the Envoy's call by {by}", lambda: self.get("partner", host) == (200, expected))
        self.until(f"the library's call by {by}", lambda: self.ours("partner", host) == (200, expected))
        self.until(f"TLS that passes {by}", lambda: b"bank.example.com" in self.over_tls("bank", "bank.example.com"))
        process.end()

    def nothing_else(self):
        status, _ = self.get("api", "nobody.example.com")
        if status != 502:
            raise self.failure(f"a host that nothing describes: {status}")
