"""Holds mesh-control against gRPC's own xDS clients, grpcio, @grpc/grpc-js-xds, grpc-go and grpc-java, and against Envoy.

Real processes throughout: mesh-control on a folder of YAML, instances of a service that register themselves, and
one client of each kind that calls without pause. The driver changes files, kills and restarts, and looks at every
single call. Ports are free ones, every wait has an end, and what was started is ended.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import copy
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

import beside
import cluster_large
import console
import corpus
import decisions
import edge
import egress
import etcd
import gateway
import hashing
import kubernetes
import large
import limits
import matrix
import mutual
import opa
import prometheus
import quotas
import routing
import scan
import sds
import sidecar

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = ["mesh-control", "bookinfo", "mesh-curl", "mesh-echo", "mesh-sidecar"]
SERVICE = "ratings"
TARGET = f"xds:///{SERVICE}:9080"
METHOD = "/bookinfo.v1.Ratings/Get"
PAUSE = 0.01
# How long a change may take to be felt. Generous: the machine may be busy.
PATIENCE = 20.0
# How many calls in a row have to show a state for it to be there.
WINDOW = 90

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec:
  selector: {app: ratings}
  ports: [{name: grpc, port: 9080}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ratings}
spec:
  host: ratings
%s  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
"""


def routes(*rules):
    """A VirtualService of these rules, each the text of a map."""
    head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ratings}\nspec:\n"
    return head + "  hosts: [ratings]\n  http:\n" + "".join(f"  - {rule}\n" for rule in rules)


V1 = "{route: [{destination: {host: ratings, subset: v1}}]}"
V2 = "{route: [{destination: {host: ratings, subset: v2}}]}"
HALF = (
    "{route: [{destination: {host: ratings, subset: v1}, weight: 50},"
    " {destination: {host: ratings, subset: v2}, weight: 50}]}"
)
JASON = "match: [{headers: {end-user: {exact: jason}}}]"
JASON_V2 = "{%s, route: [{destination: {host: ratings, subset: v2}}]}" % JASON
JASON_FAILS = (
    "{%s, fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}},"
    " route: [{destination: {host: ratings, subset: v1}}]}" % JASON
)
# What a gRPC client can be told in a route, in one file: none of it may make a client refuse the resource. Most
# rules match nothing; guest's calls end at the last one.
EVERYTHING = (
    "{name: regex, match: [{uri: {regex: '/never[0-9]+'}}], route: [{destination: {host: ratings, subset: v1}}]}",
    "{name: case, match: [{uri: {prefix: /NEVER}, ignoreUriCase: true}], route: [{destination: {host: ratings}}]}",
    "{name: headers, match: [{headers: {a: {prefix: x}, b: {regex: '.+'}, c: {exact: y}, d: {}}}],"
    " route: [{destination: {host: ratings}}]}",
    "{name: without, match: [{withoutHeaders: {end-user: {}, e: {exact: z}, f: {regex: 'g.*'}}}],"
    " route: [{destination: {host: ratings}}]}",
    "{name: method, match: [{method: {exact: GET}}], route: [{destination: {host: ratings}}]}",
    "{name: query, match: [{queryParams: {q: {exact: x}}}], route: [{destination: {host: ratings}}]}",
    "{name: binary, match: [{headers: {trace-bin: {exact: x}}}], route: [{destination: {host: ratings}}]}",
    "{name: redirect, match: [{uri: {exact: /r}}], redirect: {uri: /s, redirectCode: 302}}",
    "{name: answer, match: [{uri: {exact: /d}}], directResponse: {status: 418, body: {string: tea}}}",
    "{name: delay, match: [{uri: {exact: /s}}], fault: {delay: {fixedDelay: 1s, percentage: {value: 50}},"
    " abort: {httpStatus: 503, percentage: {value: 0.5}}}, route: [{destination: {host: ratings}}]}",
    "{name: cors, match: [{uri: {exact: /c}}], corsPolicy: {allowOrigins: [{regex: '.*'}], allowMethods: [GET]},"
    " route: [{destination: {host: ratings}}]}",
    "{name: rewrite, match: [{uri: {prefix: /w}}], rewrite: {uri: /x, authority: y.example},"
    " headers: {request: {set: {a: b}, remove: [c]}, response: {add: {d: e}}},"
    " route: [{destination: {host: ratings}}]}",
    "{name: mirror, match: [{uri: {prefix: /m}}], mirror: {host: ratings, subset: v1},"
    " mirrorPercentage: {value: 10}, route: [{destination: {host: ratings}}]}",
    "{name: unknown, match: [{uri: {exact: /u}}], route: [{destination: {host: ratings, subset: v9}, weight: 1},"
    " {destination: {host: nobody}, weight: 1}]}",
    "{name: last, timeout: 3s, retries: {attempts: 3, perTryTimeout: 1s, backoff: 10ms,"
    " retryOn: '5xx,connect-failure,refused-stream,unavailable,cancelled,deadline-exceeded,internal,503'},"
    " route: [{destination: {host: ratings, subset: v1}, weight: 99},"
    " {destination: {host: ratings, subset: v2}, weight: 1, headers: {request: {set: {a: b}}}}]}",
)
# The same for a cluster.
POLICY = """\
  trafficPolicy:
    loadBalancer: {%s}
    connectionPool:
      tcp: {maxConnections: 100, connectTimeout: 1s, tcpKeepalive: {time: 10s}}
      http: {http2MaxRequests: 1000, http1MaxPendingRequests: 100, idleTimeout: 60s, maxRetries: 3}
    outlierDetection: {consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: 1s}
"""
TLS = "  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n"


class Failure(Exception):
    """Something that should hold does not."""


class Process:
    """A child whose lines are read as they come."""

    def __init__(self, name, command, env=None, quiet=False):
        self.name = name
        self.lines = queue.SimpleQueue()
        self.errors = collections.deque(maxlen=15)
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            text=True,
        )
        self.readers = [
            threading.Thread(target=self._read, args=(self.child.stdout, self.lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.child.stderr, self.errors.append), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def _read(stream, take):
        for line in stream:
            take(line.rstrip("\n"))

    def wait_for_line(self, start, patience=60.0):
        """The rest of the first line that starts like this."""
        end = time.monotonic() + patience
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, min(0.2, end - time.monotonic())))
            except queue.Empty:
                if self.child.poll() is not None or time.monotonic() >= end:
                    raise Failure(f"{self.name} never said {start!r}; its last words: {list(self.errors)}") from None
                continue
            if start in line:
                return line.split(start, 1)[1].strip()

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait(10)

    def end(self, how=signal.SIGTERM, patience=20.0):
        """Ends it; a process that does not listen is killed."""
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            self.child.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"{self.name} does not end") from None


class Client:
    """A gRPC client of another language, and every call it made."""

    def __init__(self, name, process):
        self.name = name
        self.process = process
        self.calls = []
        self.unexpected = []
        self.expects_failures = False
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        while True:
            call = json.loads(self.process.lines.get())
            call["expected"] = call["status"] == "OK" or self.expects_failures
            self.calls.append(call)

    def failures(self):
        return [call for call in self.calls if not call["expected"]]

    def since(self, start):
        return self.calls[start:]

    def shows(self, what, holds, size=WINDOW):
        """Waits until `holds` is true of so many calls in a row, and gives them."""
        start, end = len(self.calls), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.child.poll() is not None:
                raise Failure(f"{self.name} ended: {list(self.process.errors)}")
            window = self.since(max(start, len(self.calls) - size))
            if len(window) >= size and holds(window):
                return window
            time.sleep(0.05)
        window = self.since(max(start, len(self.calls) - size))
        raise Failure(f"not {what}: of the last {len(window)} calls {told(window)}")


def backends(calls, user=None):
    """How many calls each backend answered."""
    chosen = [call for call in calls if user in (None, call["user"])]
    return collections.Counter(call["backend"] for call in chosen if call["status"] == "OK")


def told(calls):
    """Calls by what came of them, in words."""
    ends = collections.Counter(
        f"{call['user']}: {call['backend'] or call['status'] + ' ' + call['error']}" for call in calls
    )
    return ", ".join(f"{count} {end[:160]}" for end, count in ends.most_common(6))


def all_ok(calls):
    return all(call["status"] == "OK" for call in calls)


def versions(calls, user=None):
    """The versions that answered: backends are called `name-version-address`."""
    return {backend.split("-")[1] for backend in backends(calls, user)}


def on_both_of_v1(calls):
    counts = backends(calls)
    even = counts and min(counts.values()) * 5 >= len(calls)
    return all_ok(calls) and versions(calls) == {"v1"} and len(counts) == 2 and even


class Suite:
    def __init__(self, args, folder, stack):
        self.args = args
        self.stack = stack
        self.config = folder / "config"
        self.config.mkdir()
        self.folder = folder
        self.control = None
        self.xds = "127.0.0.1:0"
        self.here = HERE
        # Shared by its parts.
        self.verdicts = collections.Counter()
        self.telling = threading.Lock()

    @contextlib.contextmanager
    def part(self):
        """The same suite, but what is started by it is ended with it."""
        with contextlib.ExitStack() as stack:
            part = copy.copy(self)
            part.stack = stack
            yield part

    def write(self, name, text):
        """Replaces a file of the configuration at once, as an editor or a deployment does."""
        temporary = self.folder / name
        temporary.write_text(text)
        temporary.rename(self.config / name)

    def start(self, name, command, env=None):
        process = Process(name, command, env)
        self.stack.callback(process.kill)
        return process

    def start_control(self):
        self.control = self.start("mesh-control", self.serve(self.config, self.xds))
        self.xds = self.control.wait_for_line("xds listening on ")
        self.status_addr = self.control.wait_for_line("status listening on ")

    def serve(self, config, xds):
        command = [self.args.bin / "mesh-control", "serve", "--config", config]
        return [*command, "--xds-addr", xds, "--secure-addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"]

    def start_instance(self, version):
        command = [self.args.bin / "bookinfo", "service", SERVICE, "--version", version]
        process = self.start(f"{SERVICE} {version}", [*command, "--control", self.xds])
        process.wait_for_line(" serving")
        return process

    def start_client(self, name, command, env=None):
        env = {**self.bootstrap(self.xds, name, "default"), **(env or {})}
        return Client(name, self.start(name, [*command, TARGET, METHOD, PAUSE], env))

    def start_client_at(self, name, env):
        """A client of Python, with this bootstrap."""
        return Client(name, self.start(name, [sys.executable, HERE / "python" / "client.py", TARGET, METHOD, PAUSE], env))

    def until(self, what, holds, processes=(), patience=60.0):
        """Waits until this is true, and gives it. Where it never is, what it last was is told, and the last words of some processes."""
        end, last = time.monotonic() + patience, None
        while time.monotonic() < end:
            try:
                if last := holds():
                    return last
            except (OSError, ValueError, KeyError) as error:
                last = error
            time.sleep(0.05)
        words = {process.name: list(process.errors)[-3:] for process in processes}
        raise Failure(f"not {what}: {last!r}; {words}")

    def bootstrap(self, xds, name, namespace):
        """The environment of a client of that name."""
        path = self.folder / f"{name}.json"
        command = [self.args.bin / "mesh-control", "bootstrap", "--server", xds, "--name", name]
        subprocess.run([*command, "--namespace", namespace, "--out", path], check=True, timeout=30)
        return {"GRPC_XDS_BOOTSTRAP": str(path)}

    def status(self, addr=None):
        command = [self.args.bin / "mesh-control", "status", "--json", "--addr", addr or self.status_addr]
        done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
        return json.loads(done.stdout)

    def refusals(self):
        return [
            f"{client['node']}: {kind['kind']}: {kind['last_nack']['text']}"
            for client in self.status()["clients"]
            for kind in client["kinds"]
            if kind["nacks"]
        ]

    def check(self, client, what, run):
        """One line for one promise."""
        started = time.monotonic()
        try:
            detail, verdict = run(), "ok"
        except Failure as failure:
            detail, verdict = failure, "FAILED"
        told = f"{verdict:<6} {client:<8} {what} ({time.monotonic() - started:.1f} s)"
        if detail:
            told += f"\n       {'':<8} {detail}"
        with self.telling:
            self.verdicts[verdict] += 1
            print(told, flush=True)

    def each(self, clients, what, holds, window=WINDOW):
        """The same promise for every client, waited for side by side."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            shown = [pool.submit(client.shows, what, holds, window) for client in clients]
            for client, calls in zip(clients, shown):
                self.check(client.name, what, lambda calls=calls: told(calls.result()))

    def edges(self, addr=None):
        """What goes from whom to whom, as mesh-control tells it."""
        command = [self.args.bin / "mesh-control", "top", "-o", "json", "--addr", addr or self.status_addr]
        done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
        return json.loads(done.stdout)["edges"]

    def reported(self, client):
        """Waits until what a client calls is an edge of the graph."""
        end = time.monotonic() + PATIENCE
        wanted = (f"default/{client.name}", f"{SERVICE}.default.svc.cluster.local/v1", "grpc")
        while time.monotonic() < end:
            for edge in self.edges():
                is_it = (edge["source"], edge["destination"], edge["class"]) == wanted
                if is_it and edge["requests_per_second"] > 1 and edge["error_rate"] == 0:
                    return f"{edge['requests']} calls, {edge['requests_per_second']:.0f} a second"
            time.sleep(0.2)
        raise Failure(f"no edge {wanted}: {self.edges()}")

    def none_refused(self, what):
        def run():
            time.sleep(1)
            if refused := self.refusals():
                raise Failure("; ".join(refused))

        self.check("control", f"no client refuses {what}", run)

    def run(self):
        self.write("services.yaml", SERVICES % "")
        self.write("routes.yaml", routes(V1))
        self.start_control()
        instances = [self.start_instance(version) for version in ("v1", "v1", "v2")]
        clients = [
            self.start_client("python", [sys.executable, HERE / "python" / "client.py"]),
            self.start_client(
                "node", ["node", HERE / "node" / "client.js"], {"NODE_PATH": str((self.args.peers / "node" / "node_modules").resolve())}
            ),
        ]
        self.each(clients, "calls are balanced over both endpoints of v1", on_both_of_v1)
        for client in clients:
            self.check(client.name, "its calls are in the graph, by its load reports", lambda client=client: self.reported(client))

        self.write("routes.yaml", routes(V2))
        self.each(clients, "a changed route moves every call to v2", lambda it: all_ok(it) and versions(it) == {"v2"})
        self.write("routes.yaml", routes(HALF))
        self.each(
            clients,
            "weights split calls over both versions",
            lambda it: all_ok(it) and versions(it) == {"v1", "v2"} and len(backends(it)) == 3,
        )
        self.write("routes.yaml", routes(JASON_V2, V1))
        self.each(
            clients,
            "a header sends one user to v2",
            lambda it: all_ok(it) and versions(it, "jason") == {"v2"} and versions(it, "guest") == {"v1"},
        )

        self.faults(clients)
        self.everything(clients)
        self.restart(clients)
        self.instances(clients, instances)
        self.security(clients)
        self.corpus()
        mutual.Mutual(self, Failure).run()
        matrix.Matrix(self, Failure).run()
        decisions.Decisions(self, Failure).run()
        routing.Routing(self, Failure).run()
        sds.Sds(self, Failure).run()
        sidecar.Sidecar(self, Failure).run()
        egress.Egress(self, Failure).run()
        self.gateways()
        beside.Beside(self, Failure).run()
        prometheus.Metrics(self, Failure).run()
        self.hashing_beside_kubernetes()
        limited = limits.Limits(self, Failure)
        limited.run()
        quotas.Quotas(self, Failure, f"redis://127.0.0.1:{limited.port}").run()
        etcd.Etcd(self, Failure).run()
        scan.Scan(self, Failure).run()
        console.Console(self, Failure).run()

        for client in clients:
            self.check(client.name, "no call failed that should not", lambda client=client: unfailing(client))
            self.check(client.name, "it ends when told", lambda client=client: ended(client))

    def hashing_beside_kubernetes(self):
        """The one waits for the processors, the other for elections and watches, and neither minds the other."""
        with self.part() as part, concurrent.futures.ThreadPoolExecutor() as pool:
            parts = [hashing.Hashing(self, Failure), kubernetes.Kubernetes(part, Failure)]
            list(pool.map(lambda one: one.run(), parts))

    def gateways(self):
        for by in ("envoy", "mesh-gateway"):
            gateway.Gateway(self, Failure, by).run()
        edge.Edge(self, Failure).run()

    def faults(self, clients):
        for client in clients:
            client.expects_failures = True
        self.write("routes.yaml", routes(JASON_FAILS, V1))
        self.each(
            clients,
            "a fault fails one user's calls with its status",
            lambda it: all((call["status"] == "RESOURCE_EXHAUSTED") == (call["user"] == "jason") for call in it),
        )
        self.write("routes.yaml", routes(V1))
        self.each(clients, "and without it none", on_both_of_v1)
        for client in clients:
            client.expects_failures = False

    def everything(self, clients):
        """What can be said to a gRPC client is accepted, and goes on being accepted, by every client."""
        self.write("routes.yaml", routes(*EVERYTHING))
        self.each(clients, "routes of every kind are taken", all_ok)
        self.none_refused("routes of every kind")
        for balancer in ("simple: LEAST_REQUEST", "simple: RANDOM", "consistentHash: {httpHeaderName: end-user}"):
            self.write("services.yaml", SERVICES % (POLICY % balancer))
            self.each(clients, f"a cluster with limits and {balancer} is taken", all_ok)
        self.none_refused("clusters of every kind")
        self.write("services.yaml", SERVICES % "")
        self.write("routes.yaml", routes(V1))
        self.each(clients, "back to where it was", on_both_of_v1)

    def restart(self, clients):
        """Nothing is lost while mesh-control is dead, nor when it is back."""
        self.control.end(signal.SIGKILL)
        self.each(clients, "mesh-control killed: calls go on", on_both_of_v1)
        time.sleep(3)
        self.each(clients, "and still do, seconds later", on_both_of_v1)
        self.start_control()
        started = time.monotonic()

        def caught_up():
            while time.monotonic() - started < PATIENCE:
                seen = self.status()["clients"]
                states = [kind["state"] for client in seen for kind in client["kinds"] if kind["subscribed"]]
                if len(seen) == 5 and states and all(state == "synced" for state in states):
                    return f"{len(seen)} clients after {time.monotonic() - started:.1f} s"
                time.sleep(0.1)
            raise Failure(f"after {PATIENCE} s there are {[(it['node'], it['kinds']) for it in seen]}")

        self.check("control", "restarted: every client is back and caught up", caught_up)
        self.each(clients, "and calls go on", on_both_of_v1)
        self.write("routes.yaml", routes(V2))
        self.each(clients, "the restarted one moves calls", lambda it: all_ok(it) and versions(it) == {"v2"})
        self.write("routes.yaml", routes(V1))
        self.each(clients, "and moves them back", on_both_of_v1)

    def instances(self, clients, instances):
        """An endpoint leaves and another comes without a lost call."""
        instances[0].end()
        self.each(
            clients, "an instance drains: the other one answers", lambda it: all_ok(it) and len(backends(it)) == 1
        )
        self.start_instance("v1")
        self.each(clients, "a new instance takes its share", on_both_of_v1)

    def write_corpus(self):
        """Every field of every kind in one folder, as far as `validate` passes it; and what there is to ask for."""
        folder = self.folder / "corpus"
        if folder.exists():
            return folder, (self.folder / "targets").read_text().splitlines()
        folder.mkdir()
        (folder / "base.yaml").write_text(corpus.base())

        def passes(name, outcome, text):
            path = folder / f"{name}.yaml"
            path.write_text(text)
            if outcome == "any":
                command = [self.args.bin / "mesh-control", "validate", path]
                outcome = "ok" if subprocess.run(command, capture_output=True, timeout=30).returncode == 0 else "error"
            is_passed = outcome not in ("error", "unenforced")
            if not is_passed:
                path.unlink()
            return is_passed

        targets = [target for name, outcome, text, target in corpus.cases() if passes(name, outcome, text)]
        if len(targets) < 200:
            raise Failure(f"only {len(targets)} of the manifests pass")
        (self.folder / "targets").write_text("\n".join(dict.fromkeys(targets)))
        return folder, targets

    def corpus(self):
        """Whatever `validate` passes is accepted by gRPC's clients: every field of every kind, in one go."""
        folder, targets = self.write_corpus()
        control = self.start("mesh-control of the corpus", self.serve(folder, "127.0.0.1:0"))
        xds = control.wait_for_line("xds listening on ", 240)
        status = control.wait_for_line("status listening on ")
        peers = self.args.peers
        commands = {
            "python": [sys.executable, HERE / "python" / "corpus.py"],
            "go": [peers / "go" / "corpus"],
            "java": ["java", "-cp", peers / "java" / "lib" / "*", HERE / "java" / "Corpus.java"],
        }
        # Side by side: each of them mostly waits for itself.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            accepted = {name: pool.submit(self.accepts, name, command, xds, status) for name, command in commands.items()}
            for name, running in accepted.items():
                self.check(name, "whatever validate passes is accepted", running.result)
        control.end()

    def accepts(self, name, command, xds, status):
        env = self.bootstrap(xds, f"corpus-{name}", "corpus")
        client = self.start(f"corpus {name}", [*command, self.folder / "targets"], env)
        # What it was told and cannot bear, though it has refused nothing.
        if broken := client.wait_for_line("all asked", 600):
            raise Failure(broken)
        end = time.monotonic() + PATIENCE
        while True:
            clients = [one for one in self.status(status)["clients"] if f"corpus-{name}" in one["node"]]
            kinds = [kind for one in clients for kind in one["kinds"] if kind["subscribed"]]
            refused = [f"{kind['kind']}: {kind['last_nack']['text']}" for kind in kinds if kind["nacks"]]
            if refused:
                raise Failure("; ".join(dict.fromkeys(refused)))
            if kinds and all(kind["state"] == "synced" for kind in kinds):
                break
            if time.monotonic() > end:
                raise Failure(f"not synced: {kinds}")
            time.sleep(0.1)
        client.child.stdin.close()
        client.child.wait(30)
        return f"{len(kinds)} subscriptions of {len(clients)} targets, all acked"

    def security(self, clients):
        """No certificates are issued here: a rule that asks for it must not be met by plaintext."""
        for client in clients:
            client.expects_failures = True
        self.write("services.yaml", SERVICES % TLS)
        self.each(
            clients,
            "where TLS is asked for, nothing travels in plaintext",
            lambda it: all(call["status"] == "UNAVAILABLE" and not call["backend"] for call in it),
            # Each of them is tried again, with a pause, before it fails.
            window=30,
        )
        self.none_refused("what it is told of TLS")
        self.write("services.yaml", SERVICES % "")
        self.each(clients, "and without the rule calls work again", on_both_of_v1)
        for client in clients:
            client.expects_failures = False


def unfailing(client):
    if failures := client.failures():
        raise Failure(f"{len(failures)} of {len(client.calls)}: {told(failures)}")
    slowest = max(call["ms"] for call in client.calls)
    return f"{len(client.calls)} calls, the slowest {slowest} ms"


def ended(client):
    client.process.child.stdin.close()
    try:
        code = client.process.child.wait(15)
    except subprocess.TimeoutExpired:
        raise Failure("it hangs") from None
    if code != 0:
        raise Failure(f"exit code {code}: {list(client.process.errors)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, help="the folder of " + ", ".join(PROGRAMS))
    parser.add_argument("--peers", type=pathlib.Path, required=True, help="where interop/run has put other people's clients")
    parser.add_argument("--dashboards", action="store_true", help="write docs/dashboards.md anew, and do nothing else")
    parser.add_argument("--screenshots", type=pathlib.Path, help="looks at the console only, and writes its pictures to this folder")
    parser.add_argument("--egress", action="store_true", help="only calls that leave the mesh through an Envoy")
    parser.add_argument("--beside", action="store_true", help="only programs of other languages by mesh-sidecar")
    parser.add_argument("--gateway", action="store_true", help="only gateways: an Envoy, our own, and both asked the same")
    parser.add_argument("--large", action="store_true", help="only the console, with 500 services and 2,000 workloads: what it costs; with --kubernetes what 500 Services of a cluster do")
    parser.add_argument("--kubernetes", action="store_true", help="only what there is with the API server of Kubernetes: tokens, and a cluster as the configuration")
    parser.add_argument("--etcd", action="store_true", help="only what there is with an etcd of three members")
    parser.add_argument("--opa", action="store_true", help="only a policy of Open Policy Agent")
    parser.add_argument("--tables", type=int, help="compares routes with Envoy's only, of so many random tables")
    parser.add_argument("--seed", type=int, default=routing.SEED, help="what these are made from")
    args = parser.parse_args()
    target = HERE.parent / "target"
    built = [args.bin] if args.bin else [target / "release", target / "debug"]
    args.bin = next((folder.resolve() for folder in built if all((folder / name).exists() for name in PROGRAMS)), None)
    if args.bin is None:
        sys.exit("interop: build first: cargo build --release --features mesh-tower/sidecar " + " ".join(f"--bin {name}" for name in PROGRAMS))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        suite = Suite(args, pathlib.Path(folder), stack)
        try:
            if args.dashboards:
                prometheus.Metrics(suite, Failure).run(write=True)
            elif args.screenshots:
                console.Console(suite, Failure, args.screenshots.resolve()).run()
            elif args.beside:
                beside.Beside(suite, Failure).run()
            elif args.egress:
                egress.Egress(suite, Failure).run()
            elif args.gateway:
                suite.gateways()
            elif args.kubernetes and args.large:
                cluster_large.Large(suite, Failure).run()
            elif args.large:
                large.Large(suite, Failure).run()
            elif args.kubernetes:
                kubernetes.Kubernetes(suite, Failure).run(with_chart=True)
            elif args.etcd:
                etcd.Etcd(suite, Failure).run()
            elif args.opa:
                opa.Opa(suite, Failure).run()
            elif args.tables:
                routing.Routing(suite, Failure, args.tables, args.seed).run()
            else:
                suite.run()
        except Failure as failure:
            suite.verdicts["FAILED"] += 1
            print(f"FAILED {failure}", flush=True)
    passed, failed = suite.verdicts["ok"], suite.verdicts["FAILED"]
    print(f"interop: {passed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
