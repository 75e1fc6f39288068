"""Consistent hashing: 10,000 keys through mesh-control and the library, and through an Envoy with the same endpoints, have to
come out at the same endpoint."""

import asyncio
import json
import subprocess
import threading

import envoy
from ports import free_ports

KEYS = 10_000
HOSTS = 10

# How many of a million keys may differ: 99.9 % have to agree.
DIFFERING = 1_000

ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hashed}
spec:
  hosts: [hashed.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: %s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hashed}
spec:
  host: hashed.example.com
  trafficPolicy: {loadBalancer: {consistentHash: {%s, %s}}}
"""

HEADER, COOKIE = "httpHeaderName: x-user", "httpCookie: {name: user}"

# What is said to the mesh, and what to Envoy.
ALGORITHMS = {
    "a ring": ("ringHash: {minimumRingSize: 1024}", "RING_HASH", {"ring_hash_lb_config": {"minimum_ring_size": 1024}}),
    "a large ring": ("ringHash: {minimumRingSize: 65536}", "RING_HASH", {"ring_hash_lb_config": {"minimum_ring_size": 65536}}),
    "Maglev's table": ("maglev: {tableSize: 65537}", "MAGLEV", {"maglev_lb_config": {"table_size": 65537}}),
    "a small table": ("maglev: {tableSize: 1009}", "MAGLEV", {"maglev_lb_config": {"table_size": 1009}}),
}
KEYED = {
    "header": (HEADER, {"header": {"header_name": "x-user"}}, "x-user", "user-{n}"),
    "cookie": (COOKIE, {"cookie": {"name": "user"}}, "cookie", "a=b; user={n}"),
}
WEIGHTS = {"equal weights": [1] * HOSTS, "weights": [1, 2, 3, 1, 5, 1, 1, 8, 2, 1]}

# (algorithm, weights, key)
CASES = [
    *((algorithm, weights, "header") for algorithm in ALGORITHMS for weights in WEIGHTS),
    ("a ring", "equal weights", "cookie"),
]


class Backends:
    """Servers that say who they are."""

    def __init__(self):
        self.ports, self.loop = [], asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()

    def _run(self, started):
        asyncio.set_event_loop(self.loop)
        for _ in range(HOSTS):
            server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
            self.ports.append(server.sockets[0].getsockname()[1])
        started.set()
        self.loop.run_forever()

    @staticmethod
    async def _serve(reader, writer):
        port = str(writer.get_extra_info("sockname")[1])
        answer = f"HTTP/1.1 200 OK\r\nx-mesh-backend: {port}\r\ncontent-length: {len(port)}\r\n\r\n{port}".encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class Hashing:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "hashing"
        self.folder.mkdir()

    def run(self):
        self.backends = Backends()
        for algorithm, weights, keyed in CASES:
            what = f"{KEYS} keys in a {keyed} come out where Envoy's do: {algorithm}, {weights}"
            self.suite.check("library", what, lambda case=(algorithm, weights, keyed): self.compare(*case))

    def compare(self, algorithm, weights, keyed):
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        (folder / "config").mkdir(parents=True)
        hosts = list(zip(self.backends.ports, WEIGHTS[weights]))
        ours, theirs = self.ours(folder, hosts, algorithm, keyed), self.theirs(folder, hosts, algorithm, keyed)
        differing = sum(one != other for one, other in zip(ours, theirs, strict=True))
        if differing * 1_000_000 > DIFFERING * KEYS:
            raise self.failure(f"{differing} of {KEYS} differ")
        if len(set(ours)) != HOSTS:
            raise self.failure(f"only {len(set(ours))} of {HOSTS} endpoints have keys")
        return f"{KEYS - differing} of {KEYS} agree"

    def ours(self, folder, hosts, algorithm, keyed):
        endpoints = [f"{{address: 127.0.0.1, ports: {{http: {port}}}, weight: {weight}}}" for port, weight in hosts]
        text = ENTRY % (f"[{', '.join(endpoints)}]", KEYED[keyed][0], ALGORITHMS[algorithm][0])
        (folder / "config" / "hashed.yaml").write_text(text)
        control = self.suite.start("mesh-control for hashing", self.suite.serve(folder / "config", "127.0.0.1:0"))
        xds = control.wait_for_line("xds listening on ")
        _, _, name, value = KEYED[keyed]
        command = [self.suite.args.bin / "mesh-curl", "--control", xds, "-n", str(KEYS), "-o", "json"]
        command += ["-H", f"{name}: {value}", "http://hashed.example.com/"]
        done = subprocess.run([str(part) for part in command], capture_output=True, timeout=300, text=True)
        control.end()
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        picked = [line["backend"] for line in lines if "backend" in line]
        if len(picked) != KEYS or done.returncode != 0:
            raise self.failure(f"{len(picked)} answers: {done.stdout[-300:]} {done.stderr[-300:]}")
        return picked

    def theirs(self, folder, hosts, algorithm, keyed):
        _, policy, name, value = KEYED[keyed]
        _, lb_policy, config = ALGORITHMS[algorithm]
        endpoints = [
            {
                "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}},
                "load_balancing_weight": weight,
            }
            for port, weight in hosts
        ]
        cluster = {
            "name": "hashed",
            "connect_timeout": "5s",
            "lb_policy": lb_policy,
            "load_assignment": {"cluster_name": "hashed", "endpoints": [{"lb_endpoints": endpoints}]},
            **config,
        }
        route = {"match": {"prefix": "/"}, "route": {"cluster": "hashed", "hash_policy": [policy]}}
        [port] = free_ports(1)
        listener = envoy.listener(port, [{"filters": [envoy.manager([route])]}])
        process = envoy.start(self.suite, self.failure, folder, [listener], [cluster])
        connection = envoy.Connection(port)
        headers = [("host", "hashed.example.com")]
        asked = (connection.ask("GET", "/", [*headers, (name, value.replace("{n}", str(n)))]) for n in range(1, KEYS + 1))
        picked = [body for _, body in asked]
        connection.close()
        process.kill()
        return picked
