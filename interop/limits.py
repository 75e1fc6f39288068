"""The rate limit service against envoyproxy/ratelimit (a Go module), a real Envoy and a real Redis (Debian's package).

The same random questions go to both services, with the same rules, and have to be answered alike, status by status. Three clients
ask two replicas at once, which share a Redis: as many requests pass as the limit has room for. Redis is killed and comes back
meanwhile: nothing hangs, nobody gets a wrong verdict, and what was used stays used.
"""

import concurrent.futures
import json
import random
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

import envoy
import grpc
from ports import free_port, free_ports
from protobuf import field, fields

METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
OK, OVER = 1, 2
PATIENCE = 20.0
# How far the number of those let through may be from the limit.
ACCURACY = 0.02
LIMIT = 2000

# Years have no end while this runs, but for once.
RULES = f"""\
domain: shop
descriptors:
- key: user
  rate_limit: {{unit: year, requests_per_unit: 20}}
- key: user
  value: ada
  rate_limit: {{unlimited: true}}
- key: user
  value: bot*
  rate_limit: {{unit: month, requests_per_unit: 30, name: bots}}
  descriptors:
  - key: path
    rate_limit: {{unit: year, requests_per_unit: 5}}
- key: crowd
  value: c*
  share_threshold: true
  rate_limit: {{unit: year, requests_per_unit: 50}}
- key: seen
  rate_limit: {{unit: year, requests_per_unit: 3}}
  shadow_mode: true
- key: instead
  rate_limit: {{unit: year, requests_per_unit: 40, replaces: [{{name: bots}}]}}
- key: x-user
  rate_limit: {{unit: year, requests_per_unit: 20}}
- key: x-user
  value: ada
  rate_limit: {{unlimited: true}}
- key: nobody
  rate_limit: {{unit: year, requests_per_unit: 0}}
- key: load
  rate_limit: {{unit: year, requests_per_unit: {LIMIT}}}
- key: generic_key
  value: envoy
  rate_limit: {{unit: year, requests_per_unit: 5}}
"""

# Two workloads that ask a service about their requests, which are counted by its rules.
ASKING = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ratelimit}
spec:
  hosts: [ratelimit.default.svc.cluster.local]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 8081, name: grpc, protocol: GRPC}]
  endpoints: [{address: 127.0.0.1, ports: {grpc: %d}}]
---
apiVersion: policy.mesh-control/v1alpha1
kind: RateLimit
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  service: {host: ratelimit.default.svc.cluster.local, port: 8081, domain: shop, timeout: 5s, failureMode: DENY}
  rules: [{name: users, by: [{header: x-user}]}]
"""


def question(*descriptors, hits=0, domain="shop"):
    """A RateLimitRequest; a descriptor is a list of pairs, or such a list and its own hits."""
    message = field(1, domain)
    for descriptor in descriptors:
        entries, own = descriptor if isinstance(descriptor, tuple) else (descriptor, None)
        body = b"".join(field(1, field(1, key) + field(2, value)) for key, value in entries)
        if own is not None:
            body += field(3, field(1, own) if own else b"")
        message += field(2, body)
    return message + (field(3, hits) if hits else b"")


def answer(data):
    """The code of a RateLimitResponse; of each descriptor the code, the limit and what is left."""
    message = fields(data)
    statuses = []
    for status in map(fields, message.get(2, [])):
        limit = fields(status[2][0]) if 2 in status else {}
        about = (limit.get(1, [0])[0], limit.get(2, [0])[0], limit.get(3, [b""])[0]) if 2 in status else None
        statuses.append((status.get(1, [0])[0], about, status.get(3, [0])[0]))
    return message.get(1, [0])[0], statuses


class Client:
    """Who asks a rate limit service."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.call = self.channel.unary_unary(METHOD, None, answer)

    def ask(self, *descriptors, timeout=5.0, **more):
        return self.call(question(*descriptors, **more), timeout=timeout, wait_for_ready=False)

    def verdict(self, *descriptors):
        """`None` where there is none."""
        try:
            return self.ask(*descriptors)[0]
        except grpc.RpcError:
            return None


class Limits:
    """See the module."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "limits"
        self.rules = self.folder / "config"
        self.port = free_port()

    def redis(self):
        """A Redis that forgets nothing, not even where it is killed."""
        program = shutil.which("redis-server")
        if program is None:
            raise self.failure("no program `redis-server`: apt-get install redis-server")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder, "--save", ""]
        self.server = self.suite.start("redis", [*command, "--appendonly", "yes", "--appendfsync", "always"])
        self.server.wait_for_line("Ready to accept connections")

    def ours(self, name, *more):
        """A mesh-control of ours with these rules: who asks it, and where its status is."""
        config = self.folder / "empty"
        config.mkdir(exist_ok=True)
        own = ["--ratelimit-addr", "127.0.0.1:0", "--ratelimit-config", self.rules]
        process = self.suite.start(name, [*self.suite.serve(config, "127.0.0.1:0"), *own, *more])
        address = process.wait_for_line("rate limits listening on ")
        return Client(address), address, process.wait_for_line("status listening on ")

    def theirs(self, redis):
        """envoyproxy/ratelimit with these rules."""
        runtime = self.folder / "runtime" / "ratelimit"
        (runtime / "config").mkdir(parents=True)
        (runtime / "config" / "rules.yaml").write_text(RULES)
        grpc_port, port, debug = free_ports(3)
        environment = {
            "RUNTIME_ROOT": str(self.folder / "runtime"),
            "RUNTIME_SUBDIRECTORY": "ratelimit",
            "RUNTIME_WATCH_ROOT": "false",
            "USE_STATSD": "false",
            "LOG_LEVEL": "error",
            "BACKEND_TYPE": "redis",
            "REDIS_SOCKET_TYPE": "tcp",
            "REDIS_TYPE": "SINGLE",
            "REDIS_URL": redis,
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": str(grpc_port),
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DEBUG_HOST": "127.0.0.1",
            "DEBUG_PORT": str(debug),
            "LOCAL_CACHE_SIZE_IN_BYTES": "1048576",
        }
        set_each = ["env", *(f"{name}={value}" for name, value in environment.items())]
        self.suite.start("envoyproxy/ratelimit", [*set_each, self.suite.args.peers / "go" / "ratelimit"])
        self.their_address = f"127.0.0.1:{grpc_port}"
        client = Client(self.their_address)
        end = time.monotonic() + PATIENCE
        while client.verdict([("user", "ada")]) is None:
            if time.monotonic() > end:
                raise self.failure("envoyproxy/ratelimit does not answer")
            time.sleep(0.1)
        return client

    def alike(self, ours, theirs):
        """Random questions, each answered the same by both."""
        chance = random.Random(7)
        values = ["ada", "eve", "bot1", "bot2", "bots", "", "c1", "c2", "x"]
        keys = ["user", "user", "crowd", "seen", "instead", "nobody", "unknown"]
        for number in range(2000):
            descriptors = []
            for _ in range(chance.randint(1, 3)):
                entries = [(chance.choice(keys), chance.choice(values))]
                if chance.random() < 0.3:
                    entries.append(("path", chance.choice(["/a", "/b"])))
                own = chance.choice([None, None, None, 0, 2])
                descriptors.append((entries, own))
            hits = chance.choice([0, 0, 1, 3])
            domain = chance.choice(["shop"] * 9 + ["other"])
            asked = (descriptors, hits, domain)
            said = [client.ask(*descriptors, hits=hits, domain=domain) for client in (ours, theirs)]
            if said[0] != said[1]:
                raise self.failure(f"question {number}, {asked}: we say {said[0]}, and they {said[1]}")
        return "2,000 random questions, status by status"

    def shared(self, replicas):
        """Three clients ask two replicas at once: as many pass as there is room for."""
        clients = [Client(replicas[number % 2][1]) for number in range(3)]

        def each(client):
            verdicts = [client.verdict([("load", "shared")]) for _ in range(LIMIT)]
            return verdicts.count(OK), verdicts.count(None)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            counts = list(pool.map(each, clients))
        passed, failed = (sum(one) for one in zip(*counts))
        if failed or abs(passed - LIMIT) > ACCURACY * LIMIT:
            raise self.failure(f"{passed} passed where there is room for {LIMIT}, and {failed} were not answered")
        return f"{passed} of {3 * LIMIT} passed, where there is room for {LIMIT}"

    def killed(self, replicas):
        """Redis is killed under load and comes back: errors meanwhile, soon, and nothing that was used is forgotten."""
        clients = [Client(replicas[number % 2][1]) for number in range(3)]
        stop, longest = time.monotonic() + 8, 0.0

        def each(client):
            counts, longest = {OK: 0, OVER: 0, None: 0}, 0.0
            while time.monotonic() < stop:
                before = time.monotonic()
                counts[client.verdict([("load", "killed")])] += 1
                longest = max(longest, time.monotonic() - before)
                time.sleep(0.006)
            return counts, longest

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            work = [pool.submit(each, client) for client in clients]
            time.sleep(1)
            self.server.end(signal.SIGKILL)
            time.sleep(1.5)
            self.redis()
            results = [one.result() for one in work]
        counts = {code: sum(result[0][code] for result in results) for code in (OK, OVER, None)}
        longest = max(result[1] for result in results)
        if not counts[None]:
            raise self.failure("nobody noticed that Redis was away")
        if longest > 2:
            raise self.failure(f"a request hung for {longest:.1f} s")
        # What is left of the limit comes by itself, and nothing beyond it: an answer that was lost may have been counted.
        left = [client.verdict([("load", "killed")]) for client in clients for _ in range(LIMIT)]
        passed = counts[OK] + left.count(OK)
        if left.count(None) or not LIMIT * (1 - ACCURACY) <= passed <= LIMIT * (1 + ACCURACY):
            raise self.failure(f"{passed} passed where there is room for {LIMIT}: {counts}, and then {left.count(None)} without answer")
        return f"{passed} passed where there is room for {LIMIT}, {counts[None]} errors, the longest answer {longest * 1000:.0f} ms"

    def envoy(self, address):
        """An Envoy that asks us: five requests pass, and the others are told what they ran into."""
        listens, answers = free_ports(2)
        cluster = envoy.cluster_of_grpc("limits", address)
        limit = {
            "@type": f"{envoy.TYPES}.filters.http.ratelimit.v3.RateLimit",
            "domain": "shop",
            "failure_mode_deny": True,
            "timeout": "2s",
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            "rate_limit_service": {
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "limits"}},
            },
        }
        anything = {"match": {"prefix": "/"}}
        behind = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": answers}}}}
        upstream = {"name": "upstream", "type": "STATIC"}
        upstream["load_assignment"] = {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [behind]}]}
        limits = [{"actions": [{"generic_key": {"descriptor_value": "envoy"}}]}]
        routes = [{**anything, "route": {"cluster": "upstream"}}]
        hosts = [{"name": "all", "domains": ["*"], "routes": routes, "rate_limits": limits}]
        chain = envoy.manager(
            [], route_config={"virtual_hosts": hosts}, http_filters=[{"name": "limits", "typed_config": limit}]
        )
        answer = envoy.manager([{**anything, "direct_response": {"status": 200}}])
        listeners = [envoy.listener(port, [{"filters": [one]}]) for port, one in ((listens, chain), (answers, answer))]
        envoy.start(self.suite, self.failure, self.folder, listeners, [cluster, upstream])
        said = []
        for _ in range(7):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{listens}/", timeout=10) as response:
                    said.append((response.status, response.headers["x-ratelimit-remaining"]))
            except urllib.error.HTTPError as error:
                said.append((error.code, error.headers["x-ratelimit-remaining"]))
        expected = [(200, str(left)) for left in (4, 3, 2, 1, 0)] + [(429, "0")] * 2
        if said != expected:
            raise self.failure(f"{said}, and not {expected}")
        return "5 pass, then 429, with x-ratelimit-remaining"

    def library(self, name, address, user):
        """Two workloads with our library, which ask this service: 20 of 60 requests pass, whichever of them takes them."""
        config = self.folder / f"asking-{name}"
        config.mkdir()
        (config / "asking.yaml").write_text(ASKING % int(address.rsplit(":", 1)[1]))
        xds = self.suite.start(f"mesh-control of those who ask {name}", self.suite.serve(config, "127.0.0.1:0"))
        xds, program = xds.wait_for_line("xds listening on "), self.suite.args.bin
        for number in range(2):
            echo = [program / "mesh-echo", "--name", "web", "--version", f"v{number}", "--listen", "127.0.0.1:0"]
            self.suite.start(f"web {number} that asks {name}", [*echo, "--control", xds]).wait_for_line(" serving")

        def asked(user, count):
            curl = [program / "mesh-curl", "--control", xds, "-n", count, "-o", "json", "-H", f"x-user: {user}", "http://web/"]
            done = subprocess.run([str(part) for part in curl], capture_output=True, timeout=60, text=True)
            return [call for call in map(json.loads, done.stdout.splitlines()) if "summary" not in call]

        # Both are known, and have their connections: who is `ada` has no limit.
        end = time.monotonic() + PATIENCE
        while len({call.get("backend") for call in asked("ada", 20) if call["status"] == 200}) < 2:
            if time.monotonic() > end:
                raise self.failure("both workloads are not called")
        calls = asked(user, 60)
        statuses = [call["status"] for call in calls]
        backends = {call["backend"] for call in calls if call["status"] == 200}
        if (statuses.count(200), statuses.count(429), len(backends)) != (20, 40, 2):
            raise self.failure(f"{statuses} of {backends}")
        return "20 of 60 requests pass at two workloads, and 40 are answered with 429"

    def run(self):
        self.rules.mkdir(parents=True)
        (self.rules / "rules.yaml").write_text(RULES)
        self.redis()
        check = self.suite.check
        memory = self.ours("mesh-control that limits in memory")
        redis = f"redis://127.0.0.1:{self.port}"
        replicas = [self.ours(f"mesh-control that limits, {name}", "--redis-url", redis) for name in "ab"]
        for client, _, _ in replicas:
            end = time.monotonic() + PATIENCE
            while client.verdict([("load", "ready")]) is None and time.monotonic() < end:
                time.sleep(0.05)
        theirs = self.theirs(f"127.0.0.1:{self.port}")
        check("limits", "in Redis, we answer as envoyproxy/ratelimit does", lambda: self.alike(replicas[0][0], theirs))
        ask = "is asked by workloads with our library"
        check("limits", f"envoyproxy/ratelimit {ask}", lambda: self.library("theirs", self.their_address, "eve"))
        check("limits", f"mesh-control on Redis {ask}", lambda: self.library("ours", replicas[0][1], "eva"))
        check("limits", "two replicas on Redis are one limit to three clients", lambda: self.shared(replicas))
        check("limits", "Redis killed and back under load", lambda: self.killed(replicas))
        check("envoy", "is limited by our service", lambda: self.envoy(memory[1]))
