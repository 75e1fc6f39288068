"""What policies say of requests: mesh-control's verdict against that of Envoy's RBAC filter, on random policies as
`mesh-control authz render` writes them for Envoy.

Every pair of a set of policies and a request goes both ways: through `mesh-control authz test`, which decides by what the
library decides by, and through a real Envoy, over mutual TLS or in plaintext. Where they differ, ours has to be the one that
refuses, for one of the reasons that stand in `reason`.
"""

import collections
import concurrent.futures
import json
import posixpath
import random
import re
import subprocess
import urllib.parse

import authority
import envoy
from ports import free_ports

SETS, CONNECTIONS, REQUESTS = 120, 6, 9
SEED = 20261128

ACCOUNTS = [("default", "web"), ("default", "admin"), ("shop", "web"), ("shop", "cert-manager.io"), ("shop", "cert-manager-io")]
ADDRESSES = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.5", "127.0.9.9"]
NETS = ["127.0.0.1", "127.0.0.0/30", "127.0.0.4/31", "127.0.9.0/24", "127.0.0.0/8", "10.0.0.0/8", "::1"]
PRINCIPALS = [
    "cluster.local/ns/shop/sa/web",
    "cluster.local/ns/default/sa/admin",
    "cluster.local/ns/shop/sa/cert-manager.io",
    "cluster.local/ns/shop/*",
    "cluster.local*",
    "*/sa/web",
    "*/sa/cert-manager-io",
    "other/ns/shop/sa/web",
    "*",
]
NAMESPACES = ["shop", "default", "sho*", "*ault", "hop", "*"]
SERVICE_ACCOUNTS = ["shop/web", "default/web", "default/admin", "shop/cert-manager.io", "web"]
TRUST_DOMAINS = ["cluster.local", "cluster*", "*.local", "cluster", "*"]
HOSTS = ["shop", "shop.example", "*.example", "shop*", "shop:80", "shop:*", "*:80", "SHOP.Example", "[::1]", "*"]
METHODS = ["GET", "POST", "DELETE", "P*", "*T", "*"]
PATHS = ["/admin", "/a", "/a/*", "/ad*", "*/b", "*min", "*", "/a/b;x=1", "/a*b"]
TEMPLATES = ["/{*}", "/a/{*}", "/a/{**}", "/{**}/b", "/{*}/b/{**}", "/a/{**}/c/d", "/{**}"]
ROLES = ["admin", "user", "ad*", "*er", "*", "user,admin", "a.min", "ädmin"]
NAMES = ["shop", "shop.example", "*.example", "sh*", "*"]

SAID_HOSTS = ["shop", "SHOP", "shop.", "shop:80", "shop.:80", "shop:", "shop:8080", "shop.example", "a.example:80", "[::1]:80"]
SAID_HOSTS += ["[::1]", "other", "user@shop", "shop..", "shop,other"]
SAID_METHODS = ["GET", "GET", "POST", "PUT", "DELETE", "PATCH", "get", "OPTIONS"]
SAID_PATHS = ["/", "/admin", "/admin/", "/admin?x=/a", "/ADMIN", "//admin", "/a/../admin", "/a/./b", "/%61dmin", "/a%62"]
SAID_PATHS += ["/admin%2Fb", "/admin%5Cb", "\\admin", "/a\\..\\admin", "/%2561dmin", "/admin%00", "/a/..;/admin", "/a;x/b"]
SAID_PATHS += ["/a", "/a/b", "/a/", "/a/b/", "/a/b/c", "/a/x/c/d", "/a/c/d", "/a/x/y/c/d", "/b", "/x/b", "/x/y/b", "/x/b/c"]
SAID_PATHS += ["/a/b;x=1", "/a*b", "/a/*", "/a/{*}", "/a/b%20c", "/a/\"b", "/a//b", "/%2e%2e/admin", "/a/%2E%2e/b", "/x/../b"]
SAID_PATHS += ["/a?", "/a?b#c", "/admin#b", "http://shop/admin", "http://other/a?b", "", "/%zz", "/a%"]
SAID_ROLES = ["admin", "user", "admi", "superuser", "user,admin", "Admin", "ädmin", "axmin", "", "guest"]
SAID_NAMES = [None, "shop", "shop.example", "other"]

# The lists of a source and of an operation, and the keys of `when`.
FROM = {
    "principals": PRINCIPALS,
    "namespaces": NAMESPACES,
    "serviceAccounts": SERVICE_ACCOUNTS,
    "trustDomains": TRUST_DOMAINS,
    "ipBlocks": NETS,
    "remoteIpBlocks": NETS,
}
TO = {"hosts": HOSTS, "ports": None, "methods": METHODS, "paths": PATHS + TEMPLATES}
WHEN = {
    "request.headers[x-role]": ROLES,
    "request.headers[X-Other]": ROLES,
    "request.headers[:method]": METHODS,
    "request.headers[:authority]": HOSTS,
    "request.headers[host]": HOSTS,
    "source.ip": NETS,
    "remote.ip": NETS,
    "source.principal": PRINCIPALS,
    "source.namespace": NAMESPACES,
    "source.serviceAccount": SERVICE_ACCOUNTS,
    "source.trustDomain": TRUST_DOMAINS,
    "destination.ip": NETS,
    "destination.port": None,
    "connection.sni": NAMES,
}


class Generator:
    """Random policies of one namespace, whose server bound this port."""

    def __init__(self, dice, port):
        self.dice, self.port = dice, port

    def values(self, known):
        known = known or [str(self.port), str(self.port), "9", "80"]
        return self.dice.sample(known, self.dice.choice([1, 1, 2, 3]))

    def lists(self, of):
        """An object of one or two lists, each as it is or negated."""
        chosen = self.dice.sample(sorted(of), self.dice.choice([1, 1, 2]))
        negated = (lambda name: f"not{name[0].upper()}{name[1:]}" if self.dice.random() < 0.25 else name)
        return {negated(name): self.values(of[name]) for name in chosen}

    def when(self):
        key = self.dice.choice(sorted(WHEN))
        # Mostly a header: it is what is told apart most finely.
        key = self.dice.choice([key, "request.headers[x-role]"])
        words = self.dice.choice([["values"], ["values"], ["notValues"], ["values", "notValues"]])
        return {"key": key, **{word: self.values(WHEN[key]) for word in words}}

    def rule(self):
        rule = {}
        if self.dice.random() < 0.5:
            rule["from"] = [{"source": self.lists(FROM)} for _ in range(self.dice.choice([1, 1, 2]))]
        if self.dice.random() < 0.6:
            rule["to"] = [{"operation": self.lists(TO)} for _ in range(self.dice.choice([1, 1, 2]))]
        if self.dice.random() < 0.4:
            rule["when"] = [self.when() for _ in range(self.dice.choice([1, 1, 2]))]
        return rule

    def policy(self, namespace, index):
        action = self.dice.choice(["ALLOW", "ALLOW", "DENY", "AUDIT"])
        # Only ALLOW means something without rules; the others are refused.
        may_be_empty = index > 0 and action == "ALLOW"
        rules = [self.rule() for _ in range(self.dice.choice([0, 1, 1, 2, 3] if may_be_empty else [1, 2, 3]))]
        metadata = {"name": f"p{index}", "namespace": namespace}
        if self.dice.random() < 0.1:
            metadata["annotations"] = {"istio.io/dry-run": "true"}
        spec = {"action": action, "rules": rules}
        return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}

    def connection(self):
        account = self.dice.choice([*ACCOUNTS, None])
        return account, self.dice.choice(SAID_NAMES) if account else None, self.dice.choice(ADDRESSES)

    def request(self):
        def header(name):
            return [(name, value) for value in self.dice.choices(SAID_ROLES, k=self.dice.choice([0, 1, 1, 2]))]

        headers = header("x-role") + header("x-other")
        if self.dice.random() < 0.1:
            headers.append(("x-forwarded-for", self.dice.choice(["10.0.0.1", "127.0.0.4, 10.1.1.1"])))
        return {
            "method": self.dice.choice(SAID_METHODS),
            "host": self.dice.choice(SAID_HOSTS),
            "path": self.dice.choice(SAID_PATHS),
            "headers": headers,
        }


def reason(policies, request, ours, status):
    """Why the two differ, where there is a good reason."""
    if ours["verdict"] == "allow":
        # Its connection manager refuses it before any policy is asked; ours takes the fragment off, and decides on the rest.
        return "envoy takes no fragment" if status == 400 and "#" in request["path"] else None
    note = ours.get("note") or ""
    if note.startswith("malformed: "):
        return note
    written = json.dumps(policies)
    for name in ("x-role", "x-other"):
        several = [value for key, value in request["headers"] if key == name]
        if len(several) > 1 and f"request.headers[{name}]" in written.lower():
            return "several values of a header: they count joined, too"
    path = urllib.parse.unquote(request["path"].split("?")[0]).replace("\\", "/")
    path = re.sub("^/+", "/", posixpath.normpath(path)).rstrip("/")
    for template in re.findall(r'"(/[^"]*\{\*\*\}[^"]*)"', written):
        expression = re.escape(template).replace(r"/\{\*\*\}", "(/.*)?").replace(r"\{\*\}", "[^/]+")
        if re.fullmatch(expression, path):
            return "{**} stands for no segment, or for some"
    return None


class Decisions:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "decisions"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)
        self.control = suite.args.bin / "mesh-control"

    def run(self):
        self.suite.check("envoy", "its verdicts are those of mesh-control, or less strict", self.compare)

    def issue(self, namespace, account):
        out = self.folder / f"{namespace}-{account}"
        return authority.issue(self.suite, self.folder / "state", out, namespace, account)

    def compare(self):
        dice = random.Random(SEED)
        ports = free_ports(SETS)
        sets = [(f"set-{index}", Generator(dice, port), []) for index, port in enumerate(ports)]
        for namespace, generator, policies in sets:
            policies += [generator.policy(namespace, index) for index in range(dice.choice([1, 1, 2, 2, 3]))]
            text = "\n---\n".join(json.dumps(policy) for policy in policies)
            (self.config / f"{namespace}.yaml").write_text(text)
            # Each by itself, too: it is written for Envoy by a process of its own.
            (self.folder / namespace).mkdir()
            (self.folder / namespace / "policies.yaml").write_text(text)
        server = self.issue("envoy", "envoy")
        contexts = {
            (namespace, name): envoy.client_context(self.issue(namespace, name))
            for namespace, name in ACCOUNTS
        }
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            listeners = list(pool.map(lambda it: self.listener(it[0], it[1].port, server), sets))
        process = envoy.start(self.suite, self.failure, self.folder, listeners)
        asked, theirs = [], []
        for namespace, generator, policies in sets:
            for _ in range(CONNECTIONS):
                account, server_name, source = generator.connection()
                context = contexts[account] if account else None
                connection = envoy.Connection(generator.port, context, server_name, source)
                for _ in range(REQUESTS):
                    request = generator.request()
                    headers = [("host", request["host"]), *request["headers"]]
                    status, body = connection.ask(request["method"], request["path"], headers)
                    if status != 400 and (status, body) not in [(200, ""), (403, "RBAC: access denied")]:
                        raise self.failure(f"envoy answers {status} {body} to {request}")
                    theirs.append(status)
                    line = self.line(len(asked), namespace, generator.port, request, account, server_name, source)
                    asked.append((policies, request, line))
                connection.close()
        process.kill()
        return self.judge(asked, theirs, self.ours([line for _, _, line in asked]))

    def listener(self, namespace, port, server):
        """A listener that guards nothing but the answer 200, as mesh-control says."""
        command = [self.control, "authz", "render", "--config", self.folder / namespace, "--to", f"{namespace}/app"]
        command += ["--label", "app=app"]
        done = subprocess.run([*command, "--port", str(port)], capture_output=True, timeout=60, text=True)
        if done.returncode != 0:
            raise self.failure(f"{namespace} is not rendered: {done.stderr}")
        answer = [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]
        # Nobody's word is taken for where a request comes from.
        http = envoy.manager(answer, use_remote_address=True, **json.loads(done.stdout))
        secured = {"filter_chain_match": {"transport_protocol": "tls"}, "transport_socket": envoy.downstream(server)}
        plain = {"filter_chain_match": {"transport_protocol": "raw_buffer"}}
        return envoy.listener(port, [{**chain, "filters": [http]} for chain in (secured, plain)])

    @staticmethod
    def line(number, namespace, port, request, account, server_name, source):
        headers = collections.defaultdict(list)
        for name, value in request["headers"]:
            headers[name].append(value)
        line = {
            "id": number,
            "workload": {"namespace": namespace, "labels": {"app": "app"}},
            "method": request["method"],
            "host": request["host"],
            "path": request["path"],
            "headers": headers,
            "source_ip": source,
            "destination_port": port,
            "sni": server_name,
            "principal": account and f"cluster.local/ns/{account[0]}/sa/{account[1]}",
        }
        return json.dumps(line)

    def ours(self, lines):
        command = [self.control, "authz", "test", "--config", self.config, "--requests", "-", "-o", "json"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, timeout=120, text=True)
        if done.returncode != 0:
            raise self.failure(f"authz test: {done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def judge(self, asked, theirs, ours):
        if len(ours) != len(asked):
            raise self.failure(f"{len(asked)} were asked, {len(ours)} answered")
        both, reasons, faults = collections.Counter(), collections.Counter(), []
        for (policies, request, line), status, answer in zip(asked, theirs, ours):
            verdicts = answer["verdict"] == "allow", status == 200
            both[verdicts] += 1
            if verdicts[0] == verdicts[1]:
                continue
            why = reason(policies, request, answer, status)
            if why:
                reasons[f"{'envoy' if verdicts[0] else 'ours'}: {why}"] += 1
            else:
                rules = json.dumps([policy["spec"] for policy in policies])
                faults.append(f"envoy says {status}, ours {json.dumps(answer)} of {line} under {rules}")
        if faults:
            raise self.failure(f"{len(faults)} of {len(asked)} are not explained; some:\n" + "\n".join(faults[:5]))
        for verdicts in ((True, True), (False, False)):
            if both[verdicts] < len(asked) / 10:
                raise self.failure(f"the pairs say little: {both}")
        told = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
        return f"{len(asked)} pairs of {SETS} sets: both allow {both[True, True]}, both deny {both[False, False]}; one alone denies: {told}"
