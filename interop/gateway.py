"""A plain Envoy as a gateway, and the library's own in its place, told everything by mesh-control: Istio's own bookinfo behind
Istio's own Gateway, in Istio's form and in Gateway API's, and behind TLS in a real browser. The steps are those of docs/gateways.md.
"""

import base64
import hashlib
import http.client
import json
import pathlib
import socket
import ssl
import subprocess
import threading
import urllib.request

import authority
import browser
import envoy
from ports import free_ports

NAMESPACE = "istio-system"
# bookinfo's services, each with a version.
SERVICES = (("productpage", "v1"), ("details", "v1"), ("reviews", "v1"), ("ratings", "v1"))
# What a Service leads to the gateway: its own ports are free ones.
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  ports:
  - {name: http-bookinfo, port: 8080, targetPort: %(bookinfo)d}
  - {name: http, port: 80, targetPort: %(http)d}
  - {name: https, port: 443, targetPort: %(https)d}
"""
# The same for a gateway of Gateway API.
SERVICE_OF_GATEWAY_API = """\
apiVersion: v1
kind: Service
metadata: {name: bookinfo-gateway-istio}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: bookinfo-gateway}
  ports: [{name: http, port: 80, targetPort: %(kubernetes)d}]
"""
GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http-secure, protocol: HTTP}
    hosts: [bookinfo.example]
    tls: {httpsRedirect: true}
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [bookinfo.example]
    tls: {mode: SIMPLE, credentialName: bookinfo}
  - port: {number: 443, name: https-broken, protocol: HTTPS}
    hosts: [broken.example]
    tls: {mode: SIMPLE, credentialName: broken}
  - port: {number: 443, name: https-mutual, protocol: HTTPS}
    hosts: [mutual.example]
    tls: {mode: MUTUAL, credentialName: mutual}
  - port: {number: 443, name: tls, protocol: TLS}
    hosts: [raw.example]
    tls: {mode: PASSTHROUGH}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: secure}
spec:
  hosts: [bookinfo.example, broken.example, mutual.example]
  gateways: [secure]
  http: [{route: [{destination: {host: productpage, port: {number: 9080}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw}
spec:
  hosts: [raw.example]
  gateways: [secure]
  tls: [{match: [{sniHosts: [raw.example]}], route: [{destination: {host: raw.example, port: {number: 443}}}]}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: raw}
spec:
  hosts: [raw.example]
  ports: [{number: 443, targetPort: %(raw)d, name: tls, protocol: TLS}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
"""


def secret(name, **files):
    """A Secret with what these files hold."""
    encoded = {key.replace("_", "."): base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    meta = {"name": name, "namespace": NAMESPACE}
    return json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": encoded})


def start(suite, failure, by, xds, state, folder, name, namespace, labels):
    """A gateway of this namespace with these labels, told by this control plane."""
    [admin] = free_ports(1)
    own = ["--name", name, "--namespace", namespace, "--service-account", "edge"]
    own += [word for label in labels.items() for word in ("--label", "=".join(label))]
    if by == "envoy":
        certificates = authority.issue(suite, state, folder / name, namespace, "edge")
        command = [suite.args.bin / "mesh-control", "bootstrap", "--envoy", "gateway", "--server", xds, *own]
        command += ["--certificates", certificates, "--admin-port", str(admin)]
        config = folder / f"{name}.json"
        subprocess.run([*map(str, command), "--out", str(config)], check=True, timeout=30)
        command = [envoy.program(failure), "-c", config, *envoy.QUIET]
    else:
        command = [suite.args.bin / "mesh-gateway", "--control", xds, *own, "--admin-addr", f"127.0.0.1:{admin}"]
    return suite.start(f"{name} by {by}", command)


class Gateway:
    """The same for both: `by` is `envoy`, or `mesh-gateway`."""

    def __init__(self, suite, failure, by):
        self.suite, self.failure, self.by = suite, failure, by
        self.folder = suite.folder / f"gateway-{by}"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)

    def run(self):
        def check(name, holds):
            self.suite.check("gateway", f"{self.by}: {name}", holds)

        check("Istio's bookinfo is served by its own files, unchanged, over mutual TLS", self.plain)
        check("the same by its Gateway and HTTPRoute of Gateway API, unchanged", self.gateway_api)
        check("bookinfo opens over https in Chromium, by a certificate of a Secret", self.opens)
        check("plaintext is sent to https, and what no rule has is 404", self.redirects)
        check("a certificate without its key closes its own host, and no other", self.broken)
        check("clients show a certificate where they have to, and TLS passes by its name", self.others)
        check("a new certificate is shown without a restart, and connections stay", self.rotates)
        check("nothing was refused", self.none_refused)

    def write(self, name, text):
        temporary = self.folder / name
        temporary.write_text(text)
        temporary.rename(self.config / name)

    def plain(self):
        self.ports = dict(zip(("bookinfo", "http", "https", "raw", "kubernetes"), free_ports(5)))
        bookinfo = pathlib.Path(__file__).resolve().parent / "bookinfo"
        for name in ("bookinfo.yaml", "bookinfo-gateway.yaml"):
            self.write(name, (bookinfo / name).read_text())
        self.write("service.yaml", SERVICE % self.ports)
        self.state = self.folder / "state"
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.state, "--sds-private-keys"]
        control = self.suite.start("mesh-control of a gateway", command)
        xds = self.xds = control.wait_for_line("xds listening on ")
        self.status = control.wait_for_line("status listening on ")
        program = self.suite.args.bin
        services = [
            self.suite.start(f"{name} {version} behind it", [program / "bookinfo", "service", name, "--version", version, "--control", xds])
            for name, version in SERVICES
        ]
        for service in services:
            service.wait_for_line(" serving")
        self.gateway = self.start("edge-1", NAMESPACE, {"istio": "ingressgateway"})
        processes = (self.gateway, control)
        body = self.suite.until("bookinfo there", lambda: self.get("bookinfo", "any.example", "/productpage", 200), processes)
        if "productpage" not in body:
            raise self.failure(f"no product page: {body[:200]}")
        self.get("bookinfo", "any.example", "/nowhere", 404)

    def start(self, name, namespace, labels):
        return start(self.suite, self.failure, self.by, self.xds, self.state, self.folder, name, namespace, labels)

    def gateway_api(self):
        bookinfo = pathlib.Path(__file__).resolve().parent / "bookinfo"
        self.write("gateway-api.yaml", (bookinfo / "bookinfo-gateway-api.yaml").read_text())
        self.write("gateway-api-service.yaml", SERVICE_OF_GATEWAY_API % self.ports)
        gateway = self.start("edge-2", "default", {"gateway.networking.k8s.io/gateway-name": "bookinfo-gateway"})
        get = lambda path, status: self.get("kubernetes", "any.example", path, status)
        body = self.suite.until("bookinfo there", lambda: get("/productpage", 200), (gateway,))
        if "productpage" not in body:
            raise self.failure(f"no product page: {body[:200]}")
        if get("/nowhere", 404) is None:
            raise self.failure("what no rule has is not 404")
        gateway.end()

    def get(self, port, host, path, expected=None):
        """What a client in plaintext gets; nothing where it is not as expected."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=10)
        try:
            connection.request("GET", path, headers={"host": host})
            answer = connection.getresponse()
            body = answer.read().decode()
        finally:
            connection.close()
        if expected is None:
            return answer
        return body if answer.status == expected else None

    def certificate(self, name, host):
        return authority.self_signed(self.folder, name, "-addext", f"subjectAltName=DNS:{host}")

    def secured(self, host, roots, own=None, name=None):
        """A connection by TLS, with whom it trusts, and the certificate that it shows."""
        context = ssl.create_default_context(cafile=str(roots))
        if own:
            context.load_cert_chain(*map(str, own))
        raw = socket.create_connection(("127.0.0.1", self.ports["https"]), timeout=10)
        return context.wrap_socket(raw, server_hostname=name or host)

    def ask(self, connection, host, path="/productpage"):
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.read()
        return answer.status

    def opens(self):
        self.first, self.mutual = self.certificate("first", "bookinfo.example"), self.certificate("mutual", "mutual.example")
        self.client, clients = authority.signed(self.folder, "client")
        crt, key = self.first
        self.write("secret.yaml", secret("bookinfo", tls_crt=crt, tls_key=key))
        self.write("mutual.yaml", secret("mutual", tls_crt=self.mutual[0], tls_key=self.mutual[1], ca_crt=clients))
        # Of another pair.
        self.write("broken.yaml", secret("broken", tls_crt=self.mutual[0], tls_key=key))
        self.serve_raw()
        self.write("gateway.yaml", GATEWAY % self.ports)

        def is_there():
            with self.secured("bookinfo.example", crt) as connection:
                return self.ask(connection, "bookinfo.example") == 200

        self.suite.until("bookinfo there over TLS", is_there, (self.gateway,))
        # It has this certificate, or none that the browser takes.
        public = subprocess.run(["openssl", "x509", "-in", crt, "-pubkey", "-noout"], check=True, capture_output=True).stdout
        der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=public, check=True, capture_output=True).stdout
        pin = base64.b64encode(hashlib.sha256(der).digest()).decode()
        more = ["--host-resolver-rules=MAP bookinfo.example 127.0.0.1", f"--ignore-certificate-errors-spki-list={pin}"]
        page = browser.Browser(self.suite, self.failure, *more)
        page.go(f"https://bookinfo.example:{self.ports['https']}/productpage")
        page.until("the product page", "document.readyState === 'complete' && document.body.innerText.includes('productpage')")
        where, is_secure = page.value("location.protocol"), page.value("isSecureContext")
        page.end()
        if (where, is_secure) != ("https:", True):
            raise self.failure(f"{where}, {is_secure}")

    def serve_raw(self):
        """A server of TLS that knows nothing of any mesh."""
        self.raw = self.certificate("raw", "raw.example")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, self.raw))
        listening = socket.create_server(("127.0.0.1", self.ports["raw"]))

        def serve():
            while True:
                connection, _ = listening.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        secured.sendall(b"raw")
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()

    def redirects(self):
        answer = self.get("http", "bookinfo.example", "/productpage")
        to = answer.getheader("location")
        if (answer.status, to) != (301, "https://bookinfo.example/productpage"):
            raise self.failure(f"{answer.status}, {to}")
        if (status := self.get("http", "other.example", "/").status) != 404:
            raise self.failure(f"another host: {status}")
        with self.secured("bookinfo.example", self.first[0]) as connection:
            if (status := self.ask(connection, "other.example")) != 404:
                raise self.failure(f"another host over TLS: {status}")
        with self.secured("bookinfo.example", self.first[0]) as connection:
            # One that another certificate is for. Ours has the client ask again over a connection for it.
            expected = 404 if self.by == "envoy" else 421
            if (status := self.ask(connection, "mutual.example")) != expected:
                raise self.failure(f"the host of another server over TLS: {status}")

    def refused(self, host, roots, own=None):
        """Why no request is answered."""
        try:
            with self.secured(host, roots, own) as connection:
                raise self.failure(f"{host}: {self.ask(connection, host)}")
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__

    def broken(self):
        why = [self.refused("broken.example", self.mutual[0]), self.refused("unknown.example", self.first[0])]
        with self.secured("bookinfo.example", self.first[0]) as connection:
            if (status := self.ask(connection, "bookinfo.example")) != 200:
                raise self.failure(f"another host: {status}")
        return f"closed: {', '.join(why)}"

    def others(self):
        why = self.refused("mutual.example", self.mutual[0])
        stranger = self.refused("mutual.example", self.mutual[0], self.raw)
        with self.secured("mutual.example", self.mutual[0], self.client) as connection:
            if (status := self.ask(connection, "mutual.example")) != 200:
                raise self.failure(f"with a certificate: {status}")
        with self.secured("raw.example", self.raw[0]) as connection:
            if (got := connection.recv(10)) != b"raw":
                raise self.failure(f"what passes: {got}")
        return f"without a certificate: {why}, with another one: {stranger}"

    def rotates(self):
        crt, key = self.certificate("second", "bookinfo.example")
        before = self.secured("bookinfo.example", self.first[0])
        self.ask(before, "bookinfo.example")
        self.write("secret.yaml", secret("bookinfo", tls_crt=crt, tls_key=key))

        def is_new():
            with self.secured("bookinfo.example", crt) as connection:
                return self.ask(connection, "bookinfo.example") == 200

        self.suite.until("the new certificate", is_new, (self.gateway,))
        with before:
            if (status := self.ask(before, "bookinfo.example")) != 200:
                raise self.failure(f"a connection from before: {status}")
        # One that cannot be used is not: what was shown before still is.
        self.write("secret.yaml", secret("bookinfo", tls_crt=crt, tls_key=self.first[1]))
        self.suite.until("the fault told", lambda: "it cannot be used with" in json.dumps(self.read_status()))
        if not is_new():
            raise self.failure("what was shown before is shown no more")

    def read_status(self):
        with urllib.request.urlopen(f"http://{self.status}/status", timeout=10) as answer:
            return json.loads(answer.read())

    def none_refused(self):
        def is_synced():
            kinds = [kind for client in self.read_status()["clients"] if client["node"].startswith("router~") for kind in client["kinds"]]
            kinds = [kind for kind in kinds if kind["subscribed"]]
            return kinds if kinds and all(kind["state"] == "synced" for kind in kinds) else None

        kinds = self.suite.until("synced", is_synced)
        if refused := [f"{kind['kind']}: {kind['last_nack']['text']}" for kind in kinds if kind["nacks"]]:
            raise self.failure("; ".join(refused))
        self.gateway.end()
        return ", ".join(f"{kind['subscribed']} {kind['kind']}" for kind in kinds)
