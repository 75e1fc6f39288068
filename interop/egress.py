"""Calls that leave the mesh through an Envoy beside a workload: a certificate from a Secret, hosts by a wildcard, a way through an
HTTP proxy, and nothing but what is described. Those of the library are in mesh-tower/tests/security/egress.rs.
"""

import base64
import hashlib
import http.server
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request

import authority
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
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  ports: [{number: %(api)d, name: http, protocol: HTTP, targetPort: %(server)d}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
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
kind: ServiceEntry
metadata: {name: proxy}
spec:
  hosts: [proxy.example.com]
  ports: [{number: %(way)d, name: tcp, protocol: TCP, targetPort: %(proxy)d}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: proxy}
spec:
  host: proxy.example.com
  subsets: [{name: db, trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: db.example.com, targetPort: 5432}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec: {hosts: [db.example.com], ports: [{number: %(db)d, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 127.0.0.1}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db.example.com]
  tcp: [{route: [{destination: {host: proxy.example.com, subset: db, port: {number: %(way)d}}}]}]
"""


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
        check("envoy", "what nothing describes is refused", self.nothing_else)
        check("envoy", "the Envoy of egress refused nothing", self.none_refused)

    def start(self):
        names = ("api", "server", "passed", "way", "proxy", "db")
        self.ports = dict(zip(names, free_ports(len(names))))
        names = "subjectAltName=DNS:api.example.com,DNS:a.cloud.localhost"
        self.outside = authority.self_signed(self.folder, "outside", "-addext", names)
        self.clients = [authority.self_signed(self.folder, f"client-{index}") for index in range(2)]
        for port in (self.ports["server"], self.ports["passed"]):
            threading.Thread(target=self.serve, args=(port,), daemon=True).start()
        threading.Thread(target=self.lead, args=(socket.create_server(("127.0.0.1", self.ports["proxy"])),), daemon=True).start()
        self.write("objects.yaml", OBJECTS % self.ports)
        self.secret(0)
        self.xds = "127.0.0.1:0"
        self.start_control()
        self.sidecar("egress", "egress", "v1", IP)

    def secret(self, index):
        certificate, key = self.clients[index]
        texts = (path.read_bytes() for path in (certificate, key, self.outside[0]))
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

    def by_secret(self):
        def is_shown(index):
            der = ssl.PEM_cert_to_DER_cert(self.clients[index][0].read_text())
            expected = {"name": "api.example.com", "client": hashlib.sha256(der).hexdigest()}
            return lambda: self.get("api", "api.example.com") == (200, expected)

        self.until("the first certificate", is_shown(0))
        self.secret(1)
        self.until("the second one", is_shown(1))
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
        context = ssl.create_default_context(cafile=self.outside[0])
        with socket.create_connection((AT, self.ports["passed"]), timeout=10) as raw:
            with context.wrap_socket(raw, server_hostname="a.cloud.localhost") as stream:
                stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                said = everything(stream)
        if b"a.cloud.localhost" not in said:
            raise self.failure(f"through TLS that passes: {said}")

    def through_proxy(self):
        def answered():
            with socket.create_connection((AT, self.ports["db"]), timeout=10) as stream:
                stream.sendall(b"hello")
                return everything(stream)

        expected = b"CONNECT db.example.com:5432 HTTP/1.1\nhello"
        self.until("the way through the proxy", lambda: answered() == expected)

    def nothing_else(self):
        status, _ = self.get("api", "nobody.example.com")
        if status != 502:
            raise self.failure(f"a host that nothing describes: {status}")
