"""Quotas: two replicas on a real Redis that share one among clients of both, and a real Envoy whose filter `rate_limit_quota` is
assigned shares by us. Clients speak the protocol as an Envoy does, which does not say by which share it goes.
"""

import concurrent.futures
import http.client
import queue
import time

import grpc

import envoy
from ports import free_ports
from protobuf import field, fields

METHOD = "/envoy.service.rate_limit_quota.v3.RateLimitQuotaService/StreamRateLimitQuotas"
QUOTA = 300
EACH = 20
MANY = 10_000
CLAIMANTS = 24
PATIENCE = 60
CONFIG = f"""
apiVersion: policy.mesh-control/v1alpha1
kind: Quota
metadata: {{name: calls}}
spec:
  failureMode: DENY
  rules:
  - {{name: shared, by: [{{header: x-user}}], limit: {{requests: {QUOTA}, per: MONTH}}}}
  - {{name: claimed, by: [{{header: x-user}}], limit: {{requests: {MANY}, per: MONTH}}}}
  - {{name: envoy, by: [{{header: x-user}}], limit: {{requests: {EACH}, per: MONTH}}}}
"""


def bucket(rule, user):
    entries = {"mesh/quota": "Quota default/calls", "mesh/rule": rule, "x-user": user}
    return b"".join(field(1, field(1, key.encode()) + field(2, value.encode())) for key, value in entries.items())


def report(rule, user, allowed, denied=0):
    usage = field(1, bucket(rule, user)) + field(2, field(1, 1)) + field(3, allowed) + field(4, denied)
    return field(1, b"mesh-control") + field(2, usage)


def assignments(message):
    """How many tokens each assignment of an answer has, and for how many seconds it holds."""
    for action in map(fields, fields(message).get(1, [])):
        for assigned in map(fields, action.get(2, [])):
            ttl = fields(assigned[2][0]).get(1, [0])[0]
            strategy = fields(assigned[3][0])
            tokens = fields(strategy[3][0]).get(1, [0])[0] if 3 in strategy else 0
            yield tokens, ttl


def use_up(address, user):
    """Uses every share as it comes, until there is nothing for the rest of the month; how many requests that was."""
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    reports, used = queue.SimpleQueue(), 0
    reports.put(report("shared", user, 0, 1))
    answers = channel.stream_stream(METHOD, None, None)(iter(reports.get, None), timeout=PATIENCE)
    try:
        for answer in answers:
            for tokens, ttl in assignments(answer):
                used += tokens
                if tokens == 0 and ttl > PATIENCE:
                    return used
                # It is used up, and more was wanted.
                reports.put(report("shared", user, tokens, 1))
    finally:
        reports.put(None)
        channel.close()
    return used


def claim(address, user):
    """Only says that it wants more; how much it holds then."""
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    reports = queue.SimpleQueue()
    reports.put(report("claimed", user, 0, 1_000_000))
    answers = channel.stream_stream(METHOD, None, None)(iter(reports.get, None), timeout=PATIENCE)
    tokens = sum(tokens for tokens, _ in assignments(next(answers)))
    # Whoever drops the answers ends the stream, and gives back what it holds.
    return channel, reports, answers, tokens


class Quotas:
    """See the module."""

    def __init__(self, suite, failure, redis):
        self.suite, self.failure, self.redis = suite, failure, redis
        self.folder = suite.folder / "quotas"

    def ours(self, name, *more):
        """A mesh-control of ours with these quotas: where its xDS is, and where its status is."""
        config = self.folder / "config"
        process = self.suite.start(name, [*self.suite.serve(config, "127.0.0.1:0"), *more])
        return process.wait_for_line("xds listening on "), process.wait_for_line("status listening on ")

    def shared(self, replicas):
        """Three clients of two replicas use what there is, and no more than that."""
        users = ["ada", "bob"]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            work = [pool.submit(use_up, replicas[number % 2][0], user) for number in range(3) for user in users]
            used = [one.result() for one in work]
        sums = {user: sum(used[index :: len(users)]) for index, user in enumerate(users)}
        if any(not 0.98 * QUOTA <= total <= QUOTA for total in sums.values()):
            raise self.failure(f"{sums} were used where each has {QUOTA}")
        return f"{sums} of {QUOTA} each, by three clients of two replicas"

    def claimed(self, address):
        """Streams that only ask for more hold a quarter, and one request each, however many they are."""
        claims = [claim(address, "eve") for _ in range(CLAIMANTS)]
        held = sum(tokens for *_, tokens in claims)
        for channel, reports, *_ in claims:
            reports.put(None)
            channel.close()
        if not 0 < held <= MANY // 4 + CLAIMANTS:
            raise self.failure(f"{CLAIMANTS} streams hold {held} of {MANY}")
        return f"{CLAIMANTS} streams hold {held} of {MANY}"

    def envoy(self, address):
        """An Envoy that reports to us and is assigned shares."""
        listens, answers = free_ports(2)
        cluster = envoy.cluster_of_grpc("quotas", address)
        kind = f"{envoy.TYPES}.filters.http.rate_limit_quota.v3"
        user = {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": "x-user"}
        deny = {"fallback_rate_limit": {"blanket_rule": "DENY_ALL"}}
        settings = {
            "@type": f"{kind}.RateLimitQuotaBucketSettings",
            "bucket_id_builder": {
                "bucket_id_builder": {
                    "mesh/quota": {"string_value": "Quota default/calls"},
                    "mesh/rule": {"string_value": "envoy"},
                    "x-user": {"custom_value": {"name": "user", "typed_config": user}},
                }
            },
            "reporting_interval": "1s",
            "no_assignment_behavior": deny,
            "expired_assignment_behavior": {"expired_assignment_behavior_timeout": "600s", **deny},
        }
        quota = {
            "@type": f"{kind}.RateLimitQuotaFilterConfig",
            "rlqs_server": {"envoy_grpc": {"cluster_name": "quotas"}},
            "domain": "mesh-control",
            "bucket_matchers": {"on_no_match": {"action": {"name": "quota", "typed_config": settings}}},
        }
        anything = {"match": {"prefix": "/"}}
        behind = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": answers}}}}
        upstream = {"name": "upstream", "type": "STATIC"}
        upstream["load_assignment"] = {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [behind]}]}
        hosts = [{"name": "all", "domains": ["*"], "routes": [{**anything, "route": {"cluster": "upstream"}}]}]
        chain = envoy.manager([], route_config={"virtual_hosts": hosts}, http_filters=[{"name": "quota", "typed_config": quota}])
        answer = envoy.manager([{**anything, "direct_response": {"status": 200}}])
        listeners = [envoy.listener(at, [{"filters": [one]}]) for at, one in ((listens, chain), (answers, answer))]
        envoy.start(self.suite, self.failure, self.folder, listeners, [cluster, upstream])
        end, passed, asked = time.monotonic() + PATIENCE, 0, 0
        # It reports once a second, so that shares take their time.
        while passed < EACH and time.monotonic() < end:
            connection = http.client.HTTPConnection("127.0.0.1", listens, timeout=10)
            connection.request("GET", "/", headers={"x-user": "ada"})
            status = connection.getresponse().status
            connection.close()
            if status not in (200, 429):
                raise self.failure(f"it answers {status}")
            passed, asked = passed + (status == 200), asked + 1
            time.sleep(0.05)
        more = 0
        for _ in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", listens, timeout=10)
            connection.request("GET", "/", headers={"x-user": "ada"})
            more += connection.getresponse().status == 200
            connection.close()
            time.sleep(0.03)
        if passed != EACH or more:
            raise self.failure(f"{passed} passed, and {more} more, where there is room for {EACH}")
        return f"{passed} of {asked} passed, and none after them"

    def run(self):
        config = self.folder / "config"
        config.mkdir(parents=True)
        (config / "quota.yaml").write_text(CONFIG)
        replicas = [self.ours(f"mesh-control with quotas, {name}", "--redis-url", self.redis) for name in "ab"]
        memory = self.ours("mesh-control with quotas")
        self.suite.check("quotas", "two replicas on Redis never grant more than there is", lambda: self.shared(replicas))
        self.suite.check("quotas", "who only asks for more holds little, in Redis", lambda: self.claimed(replicas[0][0]))
        self.suite.check("quotas", "who only asks for more holds little, in memory", lambda: self.claimed(memory[0]))
        self.suite.check("envoy", "is assigned shares of a quota by us", lambda: self.envoy(memory[0]))
