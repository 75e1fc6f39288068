"""etcd as the store of a mesh: three members of the real thing (Debian's 3.4) with mutual TLS, two replicas of mesh-control, a server that
is registered at each, and two clients that call without pause, while objects are applied, broken and mended, and the leader of etcd is killed and stopped.
"""

import collections
import concurrent.futures
import json
import os
import signal
import subprocess
import threading
import time

import grpc

from protobuf import field, fields
from ports import free_ports

MEMBERS = 3
PATIENCE = 20
RATE = 50
# How many calls in a row have to go one way.
WINDOW = 20
SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
"""


def rule(subset, words="route"):
    return f"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: shop}}
spec: {{hosts: [reviews], http: [{{{words}: [{{destination: {{host: reviews, subset: {subset}}}}}]}}]}}
"""


class Member:
    """One etcd."""

    def __init__(self, etcd, number, client, peer):
        self.etcd, self.name, self.client, self.peer = etcd, f"m{number}", client, peer
        self.process = None

    def start(self):
        tls = self.etcd.tls
        command = ["etcd", "--name", self.name, "--data-dir", self.etcd.folder / self.name, "--log-outputs", "stderr"]
        command += ["--initial-cluster", ",".join(f"{one.name}=http://127.0.0.1:{one.peer}" for one in self.etcd.members)]
        command += ["--listen-peer-urls", f"http://127.0.0.1:{self.peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{self.peer}"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--client-cert-auth"]
        command += ["--trusted-ca-file", tls / "ca.pem", "--cert-file", tls / "leaf.pem", "--key-file", tls / "leaf.key"]
        command += ["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "error"]
        # The name that 3.4 wants to be told by whoever runs it there; elsewhere it says nothing.
        self.process = self.etcd.suite.start(f"etcd {self.name}", command, {"ETCD_UNSUPPORTED_ARCH": "arm64"})

    @property
    def url(self):
        return f"https://127.0.0.1:{self.client}"

    def call(self, method, message=b"", timeout=5):
        """A method of etcd's own, with the fields of its answer by number."""
        read = lambda name: (self.etcd.tls / name).read_bytes()
        credentials = grpc.ssl_channel_credentials(read("ca.pem"), read("leaf.key"), read("leaf.pem"))
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{self.client}", credentials, options) as channel:
            answer = channel.unary_unary(f"/etcdserverpb.{method}")(message, timeout=timeout, wait_for_ready=True)
        return fields(answer)

    def leads(self):
        """Whether it is the leader; `None` where nobody is known to be."""
        try:
            status = self.call("Maintenance/Status", timeout=0.5)
        except grpc.RpcError:
            return None
        leader = status.get(4, [0])[0]
        return leader == fields(status[1][0])[2][0] if leader else None


class Load:
    """A client that calls without pause, and how each of its calls ended."""

    def __init__(self, etcd, name, xds):
        self.etcd = etcd
        self.process = etcd.suite.start(name, etcd.curl(xds, "--rate", RATE, "--duration", "300s"))
        self.versions, self.lost, self.count, self.summary = collections.deque(maxlen=WINDOW), [], 0, None
        self.reader = threading.Thread(target=self.take, daemon=True)
        self.reader.start()

    def take(self):
        for call in map(json.loads, iter(self.process.lines.get, None)):
            if "summary" in call:
                self.summary = call["summary"]
                return
            if call["status"] == 200:
                self.versions.append(json.loads(call["body"])["version"])
            else:
                self.lost.append(call)
            self.count += 1

    def end(self):
        """Ends it. Every call that it says it made was looked at."""
        self.process.child.send_signal(signal.SIGTERM)
        self.reader.join(PATIENCE)
        if not self.summary or self.summary["requests"] != self.count:
            raise self.etcd.failure(f"{self.process.name}: {self.count} calls were seen of {self.summary}: {list(self.process.errors)}")


# A mesh-control: its process, where its xDS is, and where its status is.
Replica = collections.namedtuple("Replica", "process xds status")


class Etcd:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "etcd"
        self.tls = self.folder / "tls"
        self.loads = []

    def run(self):
        """Whatever becomes of one of these, the next one begins with three members and two replicas."""
        check = self.suite.check
        check("etcd", "three members, two replicas: what is applied is served by both", self.prepare)
        if not self.loads:
            return
        check("etcd", "what validate refuses is refused, a change moves every call, and what was got in all the same is held", self.changes)
        check("etcd", "the leader is killed: what is applied meanwhile is served by both", lambda: self.without_leader(signal.SIGKILL))
        check("etcd", "the leader is stopped: the same", lambda: self.without_leader(signal.SIGSTOP))
        check("etcd", "a replica whose revision is compacted away lists anew: what came is there, and what went is not", self.compacted)
        check("etcd", "a replica is killed: who is registered with it is called by clients of the other, and it comes back", self.without_replica)
        check("etcd", "a token is good at one of two replicas, once, and at none while there is no quorum", self.tokens)
        check("etcd", "no quorum: what was known is served, and said to be old", self.without_quorum)
        check("etcd", "the history says who did what, and a change is taken back", self.history)
        check("etcd", "no call was lost, and replicas end when told", self.unfailing)

    def prepare(self):
        self.tls.mkdir(parents=True)
        self.certificates()
        ports = iter(free_ports(2 * MEMBERS))
        self.members = [Member(self, number, next(ports), next(ports)) for number in range(MEMBERS)]
        for member in self.members:
            member.start()
        self.leader()
        self.controls = [self.replica(f"mesh-control {name} of etcd", self.members) for name in "ab"]
        self.apply(SERVICES + "---\n" + rule("v1"), "the shop")
        # Each is registered at one replica, and called by clients of both.
        for version, control in zip(("v1", "v2"), self.controls):
            self.server(version, control.xds)
        for control in self.controls:
            self.until("a call", lambda: self.call(control.xds) == 200)
        self.loads = [Load(self, f"load {name}", control.xds) for name, control in zip("ab", self.controls)]
        self.converge("v1")
        return f"{len(self.loads)} clients at {RATE} calls a second each"

    def certificates(self):
        def openssl(*command):
            subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60, cwd=self.tls)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=etcd of the suite", "-out", "ca.pem", "-keyout", "ca.key")
        openssl("req", *key, "-subj", "/CN=mesh-control", "-out", "leaf.csr", "-keyout", "leaf.key")
        (self.tls / "leaf.ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "leaf.ext"]
        openssl("x509", "-req", "-in", "leaf.csr", "-out", "leaf.pem", *sign)

    def options(self, members):
        return ["--etcd", ",".join(member.url for member in members), "--etcd-ca", self.tls / "ca.pem",
                "--etcd-cert", self.tls / "leaf.pem", "--etcd-key", self.tls / "leaf.key"]

    def replica(self, name, members, xds="127.0.0.1:0", more=()):
        """A mesh-control without a file."""
        command = [self.suite.args.bin / "mesh-control", "serve", *self.options(members)]
        command += ["--xds-addr", xds, "--status-addr", "127.0.0.1:0", *more]
        process = self.suite.start(name, command)
        return Replica(process, process.wait_for_line("xds listening on "), process.wait_for_line("status listening on "))

    def server(self, version, xds):
        """A process that answers for a version."""
        echo = [self.suite.args.bin / "mesh-echo", "--name", "reviews", "--version", version, "--listen", "127.0.0.1:0"]
        self.suite.start(f"reviews {version}", [*echo, "--control", xds, "--namespace", "shop"]).wait_for_line(" serving")

    def curl(self, xds, *more):
        """The command of a client of a replica."""
        curl = [self.suite.args.bin / "mesh-curl", "--control", xds, "--namespace", "shop", "-o", "json", *more, "http://reviews:9080/"]
        return [str(part) for part in curl]

    def call(self, xds):
        """The status of one call by a client of a replica."""
        done = subprocess.run(self.curl(xds), capture_output=True, timeout=60, text=True)
        return json.loads(done.stdout.splitlines()[0])["status"]

    def command(self, name, *more, text=None):
        command = [self.suite.args.bin / "mesh-control", name, *more, *self.options(self.members)]
        return subprocess.run(command, input=text, capture_output=True, timeout=60, text=True)

    def change(self, name, *more, text=None):
        """A command that changes objects, and has to."""
        done = self.command(name, *more, "--author", "the suite", text=text)
        if done.returncode != 0:
            raise self.failure(f"{name}: exit code {done.returncode}: {done.stderr}")

    def apply(self, text, message):
        self.change("apply", "-f", "-", "-m", message, text=text)

    def converge(self, version, loads=None):
        """Waits until every call of each client goes to a version; how long that takes."""
        began = time.monotonic()
        at_it = lambda load: len(load.versions) == WINDOW and set(load.versions) == {version}
        self.until(f"every call at {version}", lambda: all(at_it(load) for load in loads or self.loads))
        return time.monotonic() - began

    def until(self, what, holds, patience=PATIENCE):
        return self.suite.until(what, holds, patience=patience)

    def leader(self):
        """The member that leads, once there is one."""
        found = []
        self.until("a leader", lambda: found.extend(member for member in self.members if member.leads()) or found)
        return found[0]

    def told(self, key):
        """What each replica says of itself."""
        return [self.suite.status(control.status).get(key) for control in self.controls]

    def standing(self):
        """What each replica has in force in the place of what is wrong."""
        return [[one["standing"] for one in wrong] for wrong in self.told("wrong")]

    def put(self, value):
        """Writes the rule to etcd, past everything that would refuse it."""
        key = "/mesh/objects/virtualservices.networking.istio.io/shop/reviews"
        self.members[0].call("KV/Put", field(1, key) + field(2, value))

    def changes(self):
        refused = self.command("apply", "-f", "-", text=rule("v2", "rout"))
        if refused.returncode != 3 or "did you mean `route`?" not in refused.stderr:
            raise self.failure(f"exit code {refused.returncode}: {refused.stderr}")
        differs = self.command("diff", "-f", "-", text=rule("v2"))
        if differs.returncode != 1 or "-        subset: v1\n+        subset: v2\n" not in differs.stdout:
            raise self.failure(f"diff: exit code {differs.returncode}: {differs.stdout} {differs.stderr}")
        self.apply(rule("v2"), "to v2")
        took = self.converge("v2")
        self.put("{}")
        self.until("it is held", lambda: self.standing() == [["held"], ["held"]])
        self.apply(rule("v1"), "back to v1")
        self.converge("v1")
        self.until("it is mended", lambda: self.standing() == [[], []])
        return f"every call after {took:.2f} s"

    def without_leader(self, how):
        leader = self.leader()
        leader.process.child.send_signal(how)
        began = time.monotonic()
        try:
            self.apply(rule("v2"), f"without {leader.name}")
            applied = time.monotonic() - began
            took = self.converge("v2")
        finally:
            if how == signal.SIGKILL:
                leader.process.child.wait(10)
                leader.start()
            else:
                leader.process.child.send_signal(signal.SIGCONT)
        self.until("it is back", lambda: leader.leads() is not None)
        self.apply(rule("v1"), "and with it")
        self.converge("v1")
        return f"{leader.name}: applied after {applied:.1f} s, every call {took:.1f} s later"

    def compacted(self):
        """A replica that knows one member only, which is away while others change and forget."""
        member = next(member for member in self.members if not member.leads())
        self.apply(SERVICES.replace("shop", "brief"), "not for long")
        replica = self.replica("mesh-control c of etcd", [member])
        services = lambda: self.suite.status(replica.status)["services"]
        self.until("what there is", lambda: services() == 2)
        member.process.kill()
        try:
            for number in range(3):
                self.apply(SERVICES.replace("shop", f"shop-{number}"), "more of it")
            self.change("delete", "-f", "-", text=SERVICES.replace("shop", "brief"))
            other = next(one for one in self.members if one is not member)
            revision = fields(other.call("KV/Range", field(1, "/mesh/last"))[1][0])[3][0]
            other.call("KV/Compact", field(1, revision) + field(2, 1))
        finally:
            member.start()
        self.until("what came meanwhile", lambda: services() == 4)
        if not any("listed anew" in line for line in replica.process.errors):
            raise self.failure(f"it did not list anew: {list(replica.process.errors)}")
        replica.process.end()
        return f"up to revision {revision}"

    def without_replica(self):
        """The second server is registered with the second replica alone."""
        killed = self.controls[1]
        killed.process.kill()
        try:
            self.apply(rule("v2"), "without a replica")
            took = self.converge("v2", self.loads[:1])
        finally:
            self.controls[1] = self.replica("mesh-control b of etcd, again", self.members, killed.xds)
        self.converge("v2")
        self.apply(rule("v1"), "and with it")
        self.converge("v1")
        return f"every call of the other's client after {took:.2f} s"

    def tokens(self):
        """Two more replicas, which sign for who brings a token."""
        csr = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/", "-keyout", os.devnull]
        self.csr = subprocess.run(csr, check=True, capture_output=True, timeout=30, text=True).stdout
        own = lambda name: ["--state-dir", self.folder / f"state-{name}"]
        signing = [self.replica(f"mesh-control {name} of etcd, which signs", self.members, more=own(name)) for name in "cd"]
        good, bad, away = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, self.members[1:]
        try:
            token = self.token()
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                codes = list(pool.map(lambda number: self.sign(signing[number % 2], token), range(16)))
            if codes.count(good) != 1 or codes.count(bad) != 15:
                raise self.failure(f"of sixteen who bring a token at once: {codes}")
            token = self.token()
            for member in away:
                member.process.child.send_signal(signal.SIGSTOP)
            try:
                if (code := self.sign(signing[0], token)) != grpc.StatusCode.UNAVAILABLE:
                    raise self.failure(f"without a quorum: {code}")
            finally:
                for member in away:
                    member.process.child.send_signal(signal.SIGCONT)
            self.until("the token is good again", lambda: self.sign(signing[0], token) == good)
            if (code := self.sign(signing[1], token)) != bad:
                raise self.failure(f"a token that was used at the other replica: {code}")
        finally:
            for replica in signing:
                replica.process.kill()
        self.until("all are well", lambda: self.told("config_stale_reason") == [None, None])
        return "and of sixteen who bring one at once, one"

    def token(self):
        done = self.command("token", "create", "--identity", "spiffe://cluster.local/ns/shop/sa/web")
        if done.returncode != 0:
            raise self.failure(f"token create: exit code {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    def sign(self, replica, token):
        """How a request for a certificate with a token ends."""
        with grpc.insecure_channel(replica.xds) as channel:
            call = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
            try:
                call(field(1, self.csr), timeout=30, metadata=[("authorization", f"Bearer {token}")])
                return grpc.StatusCode.OK
            except grpc.RpcError as error:
                return error.code()

    def without_quorum(self):
        away, began = self.members[1:], time.monotonic()
        for member in away:
            member.process.child.send_signal(signal.SIGSTOP)
        try:
            self.until("both say it", lambda: all(reason and "etcd" in reason for reason in self.told("config_stale_reason")), 30)
            said = time.monotonic() - began
            counts = [load.count for load in self.loads]
            self.until("calls go on", lambda: all(load.count > count + RATE for load, count in zip(self.loads, counts)))
        finally:
            for member in away:
                member.process.child.send_signal(signal.SIGCONT)
        began = time.monotonic()
        self.until("both are well", lambda: self.told("config_stale_reason") == [None, None])
        return f"said after {said:.1f} s, and well {time.monotonic() - began:.1f} s after it is back"

    def history(self):
        done = self.command("history", "-o", "json", "--limit", "200")
        entries = [json.loads(line) for line in done.stdout.splitlines()]
        if [entry["number"] for entry in entries] != list(range(len(entries), 0, -1)):
            raise self.failure(f"not every change is there once: {[entry['number'] for entry in entries]}")
        if {entry["author"] for entry in entries} != {"the suite"} or entries[-1]["message"] != "the shop":
            raise self.failure(f"who did what: {entries[-1]}")
        self.apply(rule("v2"), "a mistake")
        self.converge("v2")
        self.change("rollback", "-m", "it was one")
        self.converge("v1")
        return f"{len(entries)} changes"

    def unfailing(self):
        for load in self.loads:
            load.end()
        lost = [call for load in self.loads for call in load.lost]
        if lost:
            raise self.failure(f"{len(lost)} calls: {lost[:3]}")
        for control in self.controls:
            control.process.end()
        for member in self.members:
            member.process.kill()
        return f"{sum(load.count for load in self.loads)} calls, 0 lost"
