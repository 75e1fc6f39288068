"""Where requests go, and as what: mesh-control's answers (`route test`, which decides by what the library decides by) against what
a real Envoy does that mesh-control serves as a sidecar, on random route tables; and, of some of them, against what a request of
the library experiences.

Every pair of a table and a request goes each way. Where two differ, the difference has to be one of `reason`.
"""

import asyncio
import collections
import concurrent.futures
import json
import random
import re
import subprocess
import threading
import time

import authority
import envoy
import tables
from ports import free_ports

TABLES, REQUESTS = 100, 20
SEED = 20261129
# How many requests the library makes, each in a process of its own.
OF_LIBRARY = 60
PATIENCE = 120.0

# The headers that rules and requests have in common.
OF_REQUEST = {"host", "x-a", "x-b", "x-long-name", "cookie", "content-type", "origin", "x-set", "x-more"}
OF_ANSWER = {"x-up", "x-gone", "x-new", "x-more", "x-never"}
CASE = "x-case"


class Servers:
    """Servers that note what they are asked, by the number that each request has."""

    def __init__(self):
        self.ports, self.noted, self.loop = {}, {}, asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def listens(self, cluster):
        """The port of the server behind a cluster."""
        if cluster not in self.ports:
            server = asyncio.run_coroutine_threadsafe(self._start(cluster), self.loop).result(10)
            self.ports[cluster] = server.sockets[0].getsockname()[1]
        return self.ports[cluster]

    async def _start(self, cluster):
        return await asyncio.start_server(lambda reader, writer: self._serve(cluster, reader, writer), "127.0.0.1", 0)

    async def _serve(self, cluster, reader, writer):
        added = "".join(f"{name}: {value}\r\n" for name, value in tables.ANSWERED.items())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("utf-8", "replace").split("\r\n")[:-2]
                method, path, _ = line.split(" ")
                headers = [(name.lower(), value.strip()) for name, value in (line.split(":", 1) for line in lines)]
                number = dict(headers).get(CASE)
                self.noted[number] = {"to": cluster, "method": method, "path": path, "headers": picked(headers, OF_REQUEST)}
                writer.write(f"HTTP/1.1 200 OK\r\n{added}x-behind: {number}\r\ncontent-length: 0\r\n\r\n".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def picked(headers, names):
    """The values of these headers, by name, in their order."""
    values = collections.defaultdict(list)
    for name, value in headers:
        if name.lower() in names or name.lower().startswith("access-control-"):
            values[name.lower()].append(value)
    return dict(values)


def without_standard_port(told):
    location = re.sub(r"^(http://[^/?]*):80(?=[/?]|$)|^(https://[^/?]*):443(?=[/?]|$)", r"\1\2", told.get("location", ""))
    return {**told, "location": location} if location else told


def with_one_query(told):
    joined = {}
    for field in ("location", "path"):
        path, mark, query = told.get(field, "").partition("?")
        joined |= {field: path + mark + query.replace("?", "&")} if field in told else {}
    return {**told, **joined}


def with_one_type(told):
    values = [value for value in told.get("headers", {}).get("content-type", []) if value]
    return {**told, "headers": {**told["headers"], "content-type": [",".join(values)]}} if values else told


def without_status(told):
    if "to" in told:
        return told
    values = {name: ["0" if value == str(told["status"]) else value for value in of] for name, of in told["answer"].items()}
    return {**told, "answer": values}


def without_changes(told):
    answer = told["answer"]
    is_preflight = any(name not in OF_ANSWER for name in answer) and (told.get("status"), told.get("body")) == (200, "")
    return {**told, "answer": {name: of for name, of in answer.items() if name not in OF_ANSWER}} if is_preflight else told


# What they may differ in, and why (docs/envoy.md has it in a table).
DIFFERENCES = {
    "a location has no standard port": without_standard_port,
    "the queries of a rule and of a request are joined by &": with_one_query,
    "several content-type are several": with_one_type,
    "the answer to a preflight has what the route sets on answers": without_changes,
    "%RESPONSE_CODE% of an answer of the mesh's own is its status": without_status,
}


def reason(request, ours, theirs):
    """Why the two differ, where there is a good reason."""
    why = []
    for name, equal in DIFFERENCES.items():
        alike = [equal(one) for one in ours], equal(theirs)
        if alike != (ours, theirs):
            why.append(name)
            ours, theirs = alike
        if theirs in ours:
            return ", ".join(why)
    types = [value for name, value in request["headers"] if name.lower() == "content-type"]
    # Rules on it may be met by one of the values, or by all of them in one.
    return "several content-type are several" if len(types) > 1 else None


class Routing:
    def __init__(self, suite, failure, count=TABLES, seed=SEED):
        self.suite, self.failure, self.count, self.seed = suite, failure, count, seed
        self.folder = suite.folder / "routing"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)
        self.servers, self.asked = Servers(), []

    def run(self):
        check = self.suite.check
        check("envoy", f"routes of {self.count} random tables lead where mesh-control says (seed {self.seed})", self.of_envoy)
        if self.asked:
            check("library", f"and {OF_LIBRARY} requests of processes with the library", self.of_library)

    def start(self):
        dice = random.Random(self.seed)
        # Services are called at these ports of each sidecar's own address.
        self.ports = free_ports(2)
        maker = tables.Tables(dice, self.ports, self.servers.listens(tables.OWN))
        made = [maker.table(index) for index in range(self.count)]
        objects = [*tables.destinations(self.ports, self.servers.listens), *(one for table in made for one in table.objects)]
        (self.config / "all.yaml").write_text("\n---\n".join(json.dumps(one) for one in objects))
        command = [self.suite.args.bin / "mesh-control", "validate", self.config, "-o", "json"]
        done = subprocess.run(command, capture_output=True, timeout=120, text=True)
        if done.returncode != 0:
            errors = [line for line in done.stdout.splitlines() if '"error"' in line]
            raise self.failure("some of it is refused:\n" + "\n".join(errors[:SHOWN]) + done.stderr[-500:])
        asked = [(table, maker.request(table)) for table in made for _ in range(REQUESTS)]
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.folder / "state"]
        self.control = self.suite.start("mesh-control of routes", [*command, "--sds-private-keys"])
        self.xds = self.control.wait_for_line("xds listening on ")
        return asked

    def of_envoy(self):
        self.asked = self.start()
        self.ours = self.answers([request for _, request in self.asked])
        ways = {source: self.sidecar(source, number) for number, source in enumerate(sorted(tables.SOURCES))}
        theirs = []
        for number, (_, request) in enumerate(self.asked):
            connection = ways[request["source"]][self.ports.index(request["port"])]
            headers = [("host", request["host"]), *request["headers"], (CASE, str(number))]
            answer = connection.exchange(request["method"], request["path"], headers)
            theirs.append(self.told(str(number), *answer))
        outcomes = collections.Counter(answer["outcome"] for answer in self.ours)
        for outcome in ("forward", "redirect", "direct", "error"):
            if outcomes[outcome] < len(self.asked) / 50:
                raise self.failure(f"the pairs say little: {outcomes}")
        return self.judge(self.asked, self.ours, theirs)

    def sidecar(self, source, number):
        """An Envoy for a workload, and connections to its two ports."""
        namespace, labels = tables.SOURCES[source]
        [admin] = free_ports(1)
        folder = self.folder / source
        certificates = authority.issue(self.suite, self.folder / "state", folder, namespace, source)
        ip = f"127.0.2.{number + 1}"
        command = [self.suite.args.bin / "mesh-control", "bootstrap", "--envoy", "sidecar", "--server", self.xds, "--name", source]
        command += ["--namespace", namespace, "--service-account", source, "--certificates", certificates]
        command += ["--ip", f"127.0.3.{number + 1}", "--outbound-ip", ip, "--admin-port", str(admin)]
        command += [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        config = folder / "envoy.json"
        subprocess.run([*map(str, command), "--out", str(config)], check=True, timeout=30)
        process = self.suite.start(source, [envoy.program(self.failure), "-c", config, *envoy.QUIET])
        connections = [envoy.Connection(port, address=ip) for port in self.ports]
        end = time.monotonic() + PATIENCE
        for connection in connections:
            while True:
                try:
                    connection.exchange("GET", "/", [("host", tables.PLAIN[0])])
                    break
                except OSError:
                    if process.child.poll() is not None or time.monotonic() > end:
                        raise self.failure(f"the Envoy of {source} does not listen: {list(process.errors)}") from None
                    time.sleep(0.1)
        return connections

    def answers(self, requests):
        """What mesh-control says of requests."""
        lines = [json.dumps(self.line(number, request)) for number, request in enumerate(requests)]
        command = [self.suite.args.bin / "mesh-control", "route", "test", "--config", self.config, "--requests", "-", "-o", "json"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, timeout=300, text=True)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if len(answers) != len(requests):
            raise self.failure(f"route test: {len(answers)} answers to {len(requests)} requests: {done.stderr[-500:]}")
        return answers

    @staticmethod
    def line(number, request):
        headers = collections.defaultdict(list)
        for name, value in request["headers"]:
            headers[name].append(value)
        namespace, labels = tables.SOURCES[request["source"]]
        parts = {name: request[name] for name in ("method", "host", "port", "path")}
        return {"id": number, "source": {"namespace": namespace, "labels": labels}, "headers": headers, **parts}

    def told(self, number, status, headers, body):
        """What became of a request: who got it as what, or how it was answered."""
        fields = dict(headers)
        answer = picked(headers, OF_ANSWER)
        if fields.get("x-behind") == number:
            return {**self.servers.noted[number], "answer": answer}
        told = {"status": status, "answer": answer}
        return {**told, "location": fields["location"]} if "location" in fields else {**told, "body": body}

    def expected(self, request, ours):
        """What may become of a request by mesh-control's answer, in the same words: one for each cluster it may go to."""
        outcome, added = ours["outcome"], ours.get("response_headers", {})

        def answer(added, removed, before=()):
            return {
                **{name: [value] for name, value in before if name not in removed},
                **{name: listed(value) for name, value in added.items()},
            }

        if outcome != "forward":
            told = {"status": ours.get("status"), "answer": answer(added, ())}
            if outcome == "redirect":
                return [{**told, "location": ours["location"]}]
            said = ours.get("reason", "") if outcome == "direct" and "corsPolicy" not in ours.get("reason", "") else ""
            return [{**told, "body": "" if request["method"] == "HEAD" else said}]
        ways = []
        for to in ours["clusters"]:
            sent = to.get("request", ours["request"])
            headers = picked([(name, value) for name, values in sent["headers"].items() for value in listed(values)], OF_REQUEST)
            removed = to.get("response_headers_removed", ours.get("response_headers_removed", ()))
            ways.append(
                {
                    "to": to["name"] if to["name"] in self.servers.ports else tables.OWN,
                    "method": request["method"],
                    "path": sent["path"],
                    "headers": {**headers, "host": [sent["host"]]},
                    "answer": answer(to.get("response_headers", added), removed, tables.ANSWERED.items()),
                }
            )
        return ways

    def judge(self, asked, ours, theirs):
        outcomes, reasons, faults = collections.Counter(), collections.Counter(), []
        for (table, request), answer, told in zip(asked, ours, theirs, strict=True):
            expected = self.expected(request, answer)
            outcomes[answer["outcome"]] += 1
            if told in expected:
                continue
            if why := reason(request, expected, told):
                reasons[why] += 1
            else:
                faults.append(fault(table, request, answer, expected, told))
        if faults:
            raise self.failure(f"{len(faults)} of {len(asked)} differ for no known reason; some:\n" + "\n".join(faults[:SHOWN]))
        told = "".join(f"; {count}: {why}" for why, count in reasons.most_common())
        return f"{len(asked)} pairs, {dict(outcomes)}{told or '; no difference'}"

    def of_library(self):
        """Whole processes, which ask with the port in the host."""
        dice = random.Random(self.seed)
        chosen = dice.sample(self.asked, min(OF_LIBRARY, len(self.asked)))
        chosen = [(table, {**request, "host": f"{request['host'].split(':')[0]}:{request['port']}"}) for table, request in chosen]
        ours = self.answers([request for _, request in chosen])
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            theirs = list(pool.map(self.curl, range(len(chosen)), [request for _, request in chosen]))
        return self.judge(chosen, ours, theirs)

    def curl(self, number, request):
        number, (namespace, labels) = f"curl-{number}", tables.SOURCES[request["source"]]
        command = [self.suite.args.bin / "mesh-curl", "--control", self.xds, "--namespace", namespace, "-i", "-o", "json"]
        command += ["-X", request["method"], *(f"--label={name}={value}" for name, value in labels.items())]
        command += [word for name, value in [*request["headers"], (CASE, number)] for word in ("-H", f"{name}: {value}")]
        done = subprocess.run([*command, f"http://{request['host']}{request['path']}"], capture_output=True, timeout=60, text=True)
        call = json.loads(done.stdout.splitlines()[0])
        headers = [(name, value) for name, values in (call.get("headers") or {}).items() for value in values]
        return self.told(number, call["status"], headers, "" if call["error"] else call["body"] or "")


# How many differences are shown.
SHOWN = 5


def fault(table, request, answer, expected, told):
    """A difference, for people: the rule is that by which mesh-control says its request goes."""
    number = (answer.get("route") or "").removeprefix("r")
    rules = table.objects[-1]["spec"].get("http", [])
    by = rules[int(number)] if number.isdigit() and int(number) < len(rules) else [one["spec"] for one in table.objects[1:]]
    said = [("request", request), ("ours", expected), ("theirs", told), ("by", by)]
    return "\n".join(f"{name:>8} {json.dumps(what)}" for name, what in said) + f" {answer.get('reason', '')}"


def listed(values):
    return values if isinstance(values, list) else [values]
