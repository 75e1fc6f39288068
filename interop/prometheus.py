"""Istio's stock dashboards over a real Prometheus (Debian's package): every query of theirs has to find something.

Bookinfo, called over HTTP and over gRPC, and connections of bytes, by mutual TLS and in plaintext. What each query
finds is `docs/dashboards.md`; `bash interop/run --dashboards` writes it anew.
"""

import json
import pathlib
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

import dashboards
from ports import free_port

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "dashboards.md"
# Long enough for a busy machine; what is there is looked at as soon as it is.
PATIENCE = 40.0

NAMESPACE = "default"
MORE = """\
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: %d}, {name: tcp, port: 7, targetPort: %d}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {selector: {app: plain}, ports: [{name: http, port: 80, targetPort: %d}, {name: tcp, port: 7, targetPort: %d}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain}
spec: {host: plain, trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: plain}
spec: {selector: {matchLabels: {app: plain}}, mtls: {mode: PERMISSIVE}}
"""

# All labels of Istio's standard metrics. Connections have no response code, and only gRPC has a status of its own.
LABELS = (
    "reporter source_workload source_workload_namespace source_principal source_app source_version source_canonical_service "
    "source_canonical_revision source_cluster destination_workload destination_workload_namespace destination_principal "
    "destination_app destination_version destination_canonical_service destination_canonical_revision destination_cluster "
    "destination_service destination_service_name destination_service_namespace request_protocol response_flags "
    "connection_security_policy"
).split()


def variables(what, query):
    """What the dashboards' variables are set to: a service or a workload that has such traffic."""
    is_tcp, is_plain = "istio_tcp" in query, "not by mutual" in what
    server = ("plain" if is_plain else "echo") if is_tcp or is_plain else "reviews"
    is_client = what.startswith("outbound")
    caller = "mesh-curl-v1" if is_tcp or is_plain else "productpage-v1"
    names = {
        "$service": f"{server}.{NAMESPACE}.svc.cluster.local",
        "$workload": caller if is_client else f"{server}-v1",
        "$namespace": NAMESPACE,
        "$qrep": "source|destination|waypoint",
        "$srcwl": ".*",
        "$srcns": ".*",
        "$dstwl": ".*",
        "$dstns": ".*",
        "$dstsvc": ".*",
    }
    return re.sub(r"\$[a-z]+", lambda found: names[found.group()], query)


class Metrics:
    """A mesh under load, and a Prometheus that scrapes it."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "prometheus"
        self.bin = suite.args.bin
        self.scraped = []

    def start(self, name, command, line=None):
        """Starts a program with an admin port that is scraped; the rest of the line that it says next."""
        process = self.suite.start(name, [*command, "--control", self.xds, "--admin-addr", "127.0.0.1:0"])
        self.scraped.append(process.wait_for_line("admin listening on "))
        return process.wait_for_line(line) if line else None

    def programs(self):
        config = self.folder / "config"
        config.mkdir(parents=True)
        base = subprocess.run([self.bin / "bookinfo", "manifests"], check=True, capture_output=True, text=True, timeout=30)
        ports = [free_port() for _ in range(4)]
        (config / "mesh.yaml").write_text(base.stdout + MORE % tuple(ports))
        command = [*self.suite.serve(config, "127.0.0.1:0"), "--dev", "--state-dir", self.folder / "state"]
        control = self.suite.start("mesh-control that is scraped", command)
        self.xds = control.wait_for_line("xds listening on ")
        self.control = control.wait_for_line("status listening on ")
        services = [("details", "v1"), ("ratings", "v1"), ("reviews", "v1"), ("reviews", "v2"), ("reviews", "v3")]
        for app, version in [*services, ("productpage", "v1")]:
            service = [self.bin / "bookinfo", "service", app, "--version", version]
            self.start(f"{app} {version}", service, " serving")
        for name, (http, tcp) in (("echo", ports[:2]), ("plain", ports[2:])):
            echo = [self.bin / "mesh-echo", "--name", name, "--listen", f"127.0.0.1:{http}", "--tcp", f"127.0.0.1:{tcp}"]
            self.start(name, echo, " serving")
        forever = ["--duration", "60m", "--rate", "5", "--service-account", "caller"]
        for target, more in (
            ("http://productpage:9080/productpage", []),
            ("http://reviews:9080/nothing-of-the-kind", []),
            ("xds:///ratings:9080/bookinfo.v1.Ratings/Get", []),
            ("http://echo/", ["--data", "hello"]),
            ("http://echo/?x-echo-status=500", []),
            ("http://plain/", ["--data", "hello"]),
            ("tcp://echo:7", ["--data", "hello"]),
            ("tcp://plain:7", ["--data", "hello"]),
        ):
            self.start(target, [self.bin / "mesh-curl", target, *more, *forever])

    def prometheus(self):
        program = shutil.which("prometheus")
        if program is None:
            raise self.failure("no program `prometheus`: apt-get install prometheus")
        address = f"127.0.0.1:{free_port()}"
        jobs = [("workloads", "/stats/prometheus", self.scraped), ("mesh-control", "/metrics", [self.control])]
        scrape = [{"job_name": job, "metrics_path": path, "static_configs": [{"targets": targets}]} for job, path, targets in jobs]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": scrape}
        # JSON is YAML.
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        command = [program, f"--config.file={self.folder / 'prometheus.yml'}", f"--storage.tsdb.path={self.folder / 'tsdb'}"]
        self.suite.start("prometheus", [*command, f"--web.listen-address={address}", "--log.level=error"])
        self.address = address

    def ask(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query):
        """What a query finds, without what is no number: quantiles of nothing are."""
        found = self.ask("query", query=query)["result"]
        return [one for one in found if one["value"][1] != "NaN"]

    def found(self):
        """How many series each query finds, as soon as those of workloads have found something, and find no more."""
        queries = list(dashboards.all_queries())
        end, before = time.monotonic() + PATIENCE, None
        while True:
            try:
                found = [(*one, len(self.series(variables(one[1], one[2])))) for one in queries]
            except (OSError, ValueError):
                found = [(*one, 0) for one in queries]
            missing = [(dashboard, what) for dashboard, what, _, whose, count in found if whose == "data" and not count]
            is_late = time.monotonic() > end
            if not missing and (found == before or is_late):
                return found
            if is_late:
                raise self.failure(f"{len(missing)} queries find nothing: {missing[:8]}")
            before = found
            time.sleep(0.5 if missing else 3.0)

    def labels(self):
        wrong, count = set(), 0
        for series in self.ask("series", **{"match[]": '{__name__=~"istio_(requests|request|response|tcp).*"}'}):
            count += 1
            wrong |= {(series["__name__"], label) for label in LABELS if not series.get(label)}
            is_http = "tcp" not in series["__name__"]
            if is_http and not series.get("response_code"):
                wrong.add((series["__name__"], "response_code"))
            if series["request_protocol"] == "grpc" and not series.get("grpc_response_status"):
                wrong.add((series["__name__"], "grpc_response_status"))
        protocols = {one["metric"]["request_protocol"] for one in self.series("count(istio_requests_total) by (request_protocol)")}
        if wrong or protocols != {"http", "grpc"}:
            raise self.failure(f"labels that are missing: {sorted(wrong)[:8]}; protocols: {protocols}")
        return f"{count} series"

    def own(self):
        """The dashboard of `examples/observability` finds something with each query."""
        dashboard = json.loads((HERE.parent / "examples" / "observability" / "grafana-mesh.json").read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        empty = [query for query in queries if not self.series(query.replace("$__rate_interval", "1m"))]
        if empty or not queries:
            raise self.failure(f"nothing is found by {empty}")
        return f"{len(queries)} queries"

    def run(self, write=False):
        def stock():
            self.programs()
            self.prometheus()
            found = self.found()
            # How many there are depends on the moment; that there are some does not.
            page = render(found)
            if write:
                PAGE.write_text(page)
            elif shape(PAGE.read_text()) != shape(page):
                raise self.failure("docs/dashboards.md is not what was found: bash interop/run --dashboards")
            of_data = [count for *_, whose, count in found if whose == "data"]
            return f"{len(of_data)} queries of workloads find {sum(of_data)} series"

        done = self.suite.verdicts["ok"]
        self.suite.check("metrics", "Istio's stock dashboards find all that workloads are asked for", stock)
        if self.suite.verdicts["ok"] == done:
            return
        self.suite.check("metrics", "every series has all labels", self.labels)
        self.suite.check("metrics", "the dashboard of the examples finds all that it asks for", self.own)


HEAD = """\
# Istio's dashboards

What each query of Istio's stock dashboards (mesh, service, workload, control plane) finds in a Prometheus that scrapes the admin
ports of workloads and mesh-control's `/metrics`: how many series, in a mesh with bookinfo, called over HTTP and over gRPC, an echo
that is called over HTTP and by bytes, and another one in plaintext. A query that has a variable is asked with a service or a workload
that has such traffic. Each of p50 to p99 is a query of its own; `interop/dashboards.py` has their text. Written by
`bash interop/run --dashboards`, and held by `interop/run`, which fails where a query of workloads finds nothing.

The dashboards need nothing but a Prometheus that has these labels: import them as they are.
"""

TITLES = {
    "mesh": "The mesh",
    "service": "A service",
    "workload": "A workload",
    "control plane": "The control plane",
}


def render(found):
    page = [HEAD]
    for dashboard, title in TITLES.items():
        page.append(f"\n## {title}\n\n| what | series |\n| --- | --- |\n")
        rest = [one for one in found if one[0] == dashboard]
        page += [f"| {what} | {count} |\n" for _, what, _, whose, count in rest if whose != "machine"]
        machine = [what for _, what, _, whose, _ in rest if whose == "machine"]
        if machine:
            page.append(f"\nNot of the mesh, but of Kubernetes, Go and sidecars: {'; '.join(machine)}.\n")
    return "".join(page)


def shape(page):
    """A page without how many there are, but whether there are any."""
    return re.sub(r"\| [1-9][0-9]* \|\n", "| some |\n", page)
