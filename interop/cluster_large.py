"""What mesh-control costs with 500 Services of a cluster, by the real Kubernetes API server, and what istiod does. One client, which asks
for everything as an Envoy beside a workload does, says when it has it.
"""

import concurrent.futures
import pathlib
import queue
import threading
import time

import grpc

import kubernetes
from authority import plugged_in
from large import ADS, cpu, struct
from protobuf import field, fields

SERVICES, ENDPOINTS = 500, 10
# Of istiod with as many services on two cores: megabytes that are resident, seconds from its start until one client has everything, and
# seconds of a processor until then.
ISTIOD = {"memory": 167.0, "start": 1.86, "processor": 2.3}
# How much less it has to be here.
BARS = {"memory": 5, "start": 1, "processor": 10}
# After that long what was needed for the start alone is given back.
SETTLES = 5.0
TYPES = {
    "cluster": "envoy.config.cluster.v3.Cluster",
    "endpoints": "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "listener": "envoy.config.listener.v3.Listener",
    "route": "envoy.config.route.v3.RouteConfiguration",
}
EDS = 3


def one(message, number, default=b""):
    return message.get(number, [default])[0]


class Holder:
    """A client that asks for everything and keeps the stream. What it knows of each kind is counted."""

    def __init__(self, xds):
        self.counts, self.fault = {}, None
        # Of names that are asked for, an answer has some.
        self.endpoints, self.hosts = {}, {}
        self.asked = queue.SimpleQueue()
        self.channel = grpc.insecure_channel(xds, options=[("grpc.max_receive_message_length", -1)])
        metadata = {"NAMESPACE": "default", "SERVICE_ACCOUNT": "default", "LABELS": {"app": "caller"}}
        self.node = field(1, "sidecar~127.0.0.1~caller.default~default.svc.cluster.local") + field(3, struct(metadata)) + field(6, "envoy")
        # Which of each kind are asked for; none are all.
        self.names = {kind: [] for kind in TYPES}
        threading.Thread(target=self.read, daemon=True).start()

    def ask(self, kind, version=b"", nonce=b""):
        names = b"".join(field(3, name) for name in self.names[kind])
        request = field(1, version) + field(2, self.node) + names + field(4, f"type.googleapis.com/{TYPES[kind]}") + field(5, nonce)
        self.asked.put(request)

    def read(self):
        stream = self.channel.stream_stream(ADS)(iter(self.asked.get, None))
        self.ask("cluster")
        self.ask("listener")
        try:
            for message in stream:
                told = fields(message)
                kind = next(kind for kind, name in TYPES.items() if one(told, 4).decode().endswith(f"/{name}"))
                resources = [fields(one(fields(resource), 2)) for resource in told.get(2, [])]
                self.take(kind, resources)
                self.ask(kind, one(told, 1), one(told, 5))
        except grpc.RpcError as error:
            self.fault = error

    def take(self, kind, resources):
        if kind == "cluster":
            names = [resource[1][0] for resource in resources if one(resource, 2, 0) == EDS]
            self.counts["clusters"] = len(names)
            self.then("endpoints", names)
        elif kind == "listener":
            chains = [fields(chain) for resource in resources for chain in [*resource.get(3, []), *resource.get(25, [])]]
            filters = [fields(one(fields(one(fields(one_filter), 4)), 2)) for chain in chains for one_filter in chain.get(3, []) if is_http(one_filter)]
            routes = [one(fields(rds), 2) for manager in filters for rds in manager.get(3, [])]
            self.then("route", sorted(set(routes)))
        elif kind == "endpoints":
            count = lambda resource: sum(len(fields(near).get(2, [])) for near in resource.get(2, []))
            self.endpoints |= {resource[1][0]: count(resource) for resource in resources}
            self.counts["endpoints"] = sum(self.endpoints.values())
        else:
            self.hosts |= {resource[1][0]: len(resource.get(2, [])) for resource in resources}
            self.counts["hosts"] = sum(self.hosts.values())

    def then(self, kind, names):
        """Asks for names that others lead to, where they are others than before."""
        if names and names != self.names[kind]:
            self.names[kind] = names
            self.ask(kind)

    def has_all(self):
        wanted = {"clusters": SERVICES, "endpoints": SERVICES * ENDPOINTS, "hosts": SERVICES}
        return all(self.counts.get(what, 0) >= count for what, count in wanted.items())


def is_http(one_filter):
    """Whether a filter of connections is the one of HTTP."""
    return b"HttpConnectionManager" in one(fields(one(fields(one_filter), 4)), 1)


def resident(process):
    """Megabytes of a process that are in memory, and how many of them are files: the program itself."""
    lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    of = lambda key: next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6
    return of("VmRSS:"), of("RssFile:")


class Large:
    def __init__(self, suite, failure):
        self.suite, self.failure, self.seen = suite, failure, {}
        self.kubernetes = kubernetes.Kubernetes(suite, failure)

    def run(self):
        check = self.suite.check
        check("cluster", f"{SERVICES} Services with {ENDPOINTS} endpoints each are in the API server", self.fill)
        check("cluster", "one client has all of them", self.hold)
        check("cluster", f"a {BARS['memory']}th of the memory of istiod at most", lambda: self.held("memory", "MB"))
        check("cluster", "no longer from the start than istiod", lambda: self.held("start", "s"))
        check("cluster", f"a {BARS['processor']}th of the processor time of istiod at most", lambda: self.held("processor", "s"))

    def fill(self):
        self.kubernetes.start()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(self.service, range(SERVICES)))

    def service(self, number):
        name = f"s{number}"
        spec = {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        self.kubernetes.make("/api/v1/namespaces/default/services", "Service", name, spec=spec)
        endpoint = lambda at: {"addresses": [f"10.{at}.{number // 250}.{number % 250 + 1}"], "conditions": {"ready": True}}
        self.kubernetes.ask(
            "POST",
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [endpoint(at) for at in range(1, ENDPOINTS + 1)],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            },
        )

    def hold(self):
        authority = plugged_in(self.kubernetes.folder)
        kubeconfig = self.kubernetes.kubeconfig("kubeconfig", {"token": kubernetes.ADMIN})
        command = [self.suite.args.bin / "mesh-control", "serve", "--kubernetes", "--kubeconfig", kubeconfig, "--ca-dir", authority]
        command += ["--xds-addr", "127.0.0.1:0", "--secure-addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"]
        began = time.monotonic()
        process = self.suite.start("mesh-control of a large cluster", command)
        holder = Holder(process.wait_for_line("xds listening on "))
        while not holder.has_all():
            if holder.fault or time.monotonic() > began + 60:
                raise self.failure(f"it has {holder.counts}; {holder.fault}; {list(process.errors)}")
            time.sleep(0.005)
        took, used = time.monotonic() - began, cpu(process.child.pid)
        time.sleep(SETTLES)
        memory, program = resident(process.child.pid)
        self.seen = {"memory": memory, "start": took, "processor": used}
        counts = ", ".join(f"{count} {what}" for what, count in holder.counts.items())
        return f"{counts}; {program:.1f} MB of the memory are the program itself"

    def held(self, what, unit):
        if what not in self.seen:
            raise self.failure("nothing was measured")
        seen, theirs = self.seen[what], ISTIOD[what]
        told = f"{seen:.2f} {unit}, of istiod {theirs:.2f} {unit}: {theirs / seen:.1f} times as much"
        if seen * BARS[what] > theirs:
            raise self.failure(f"missed: {told}")
        return f"met: {told}"
