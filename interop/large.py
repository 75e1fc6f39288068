"""The console with 500 services and 2,000 workloads: how long until its first view is there, and what its updates cost.

The workloads are made up: each is a stream of xDS that asks for its own listener, which makes it an endpoint, and 500 of them report
load. The first view and the cost of an update are those of a machine that does little else.
"""

import asyncio
import os
import pathlib
import threading
import time

import browser
import grpc.aio

from protobuf import field, fields

SERVICES, WORKLOADS, CALLERS = 500, 2000, 500
# Two services each: as many edges as there are for one address.
CALLED = 2
FIRST_VIEW, SHARE = 1.0, 0.05
# So many rows a table shows.
ROWS = 500
# So long updates are watched.
WATCHED = 20.0
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
LRS = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: s%d, namespace: n%d}
spec: {selector: {app: s%d}, ports: [{name: http, port: 80}]}
"""


def namespace(service):
    return service % 10


def struct(pairs):
    """`google.protobuf.Struct` of texts and of structs."""
    value = lambda it: field(3, it) if isinstance(it, str) else field(5, struct(it))
    return b"".join(field(1, field(1, key) + field(2, value(it))) for key, it in pairs.items())


def node(workload):
    service = workload % SERVICES
    name, space = f"s{service}-{workload // SERVICES}", f"n{namespace(service)}"
    labels = {"app": f"s{service}", "version": f"v{1 + workload // SERVICES % 2}"}
    metadata = {"NAMESPACE": space, "WORKLOAD_NAME": name, "LABELS": labels}
    identity = f"mesh~127.0.0.1~{name}.{space}~{space}.svc.cluster.local"
    features = field(10, "envoy.lrs.supports_send_all_clusters")
    return field(1, identity) + field(3, struct(metadata)) + field(6, "mesh-core") + features


def report(workload):
    """Two seconds of calls to the services that this one calls."""
    clusters = b""
    for call in range(CALLED):
        called = (workload * 7 + 1 + call * 131) % SERVICES
        name = f"outbound|80||s{called}.n{namespace(called)}.svc.cluster.local"
        load = field(2, 20) + field(4, workload % 3) + field(8, 20 + workload % 3)
        clusters += field(2, field(1, name) + field(2, load) + field(4, field(1, 2)))
    return clusters


class Fleet:
    """Workloads that are there until the end."""

    def __init__(self, xds):
        self.xds, self.served, self.reporting, self.faults = xds, 0, 0, []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop)

    async def start(self):
        # Each has a connection of its own, as processes have; not all begin at once.
        self.tasks = []
        for workload in range(WORKLOADS):
            self.tasks.append(asyncio.create_task(self.guarded(workload)))
            if workload % 100 == 99:
                await asyncio.sleep(0.2)

    async def guarded(self, workload):
        try:
            await self.live(workload)
        except grpc.aio.AioRpcError as error:
            self.faults.append(error.details())

    async def live(self, workload):
        channel = grpc.aio.insecure_channel(self.xds, options=[("grpc.use_local_subchannel_pool", 1)])
        stream = channel.stream_stream(ADS, request_serializer=bytes, response_deserializer=bytes)()
        own = node(workload)
        name = f"xds.istio.io/grpc/lds/inbound/127.0.0.1:{20_000 + workload}"
        await stream.write(field(2, own) + field(3, name) + field(4, LISTENER))
        if workload < CALLERS:
            self.tasks.append(asyncio.create_task(self.reports(channel, own, workload)))
        while (message := await stream.read()) is not grpc.aio.EOF:
            told = fields(message)
            await stream.write(field(1, told.get(1, [b""])[0]) + field(3, name) + field(4, LISTENER) + field(5, told.get(5, [b""])[0]))
            self.served += 1

    async def reports(self, channel, own, workload):
        stream = channel.stream_stream(LRS, request_serializer=bytes, response_deserializer=bytes)()
        await stream.write(field(1, own))
        await stream.read()
        self.reporting += 1
        while True:
            await stream.write(report(workload))
            await asyncio.sleep(2)


def cpu(process):
    """Seconds of processor time of a process and of all that it has started."""
    children = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            after = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(after[1]), []).append((int(folder.name), int(after[11]) + int(after[12])))
        if int(folder.name) == process:
            own = int(after[11]) + int(after[12])
    total, left = own, [process]
    while left:
        for child, ticks in children.get(left.pop(), []):
            total += ticks
            left.append(child)
    return total / os.sysconf("SC_CLK_TCK")


# Notes when the page first has so many edges drawn, in milliseconds since the navigation.
WATCH = """
new MutationObserver((_, watch) => {
    if (document.querySelectorAll('[data-edge]').length >= %d) {
        watch.disconnect();
        requestAnimationFrame(() => setTimeout(() => { window.firstView = performance.now(); }));
    }
}).observe(document, {childList: true, subtree: true});
"""


class Large:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure

    def run(self):
        check = self.suite.check
        check("console", f"{SERVICES} services and {WORKLOADS} workloads are there", self.starts)
        check("chromium", f"the first view is there within {FIRST_VIEW} s", self.opens)
        check("chromium", f"updates take at most {SHARE:.0%} of a core", self.updates)
        check("chromium", f"the table of workloads has the first {ROWS} of them, and any by its name", self.tables)

    def starts(self):
        config = self.suite.folder / "large"
        config.mkdir()
        (config / "services.yaml").write_text("---\n".join(SERVICE % (one, namespace(one), one) for one in range(SERVICES)))
        self.control = self.suite.start("mesh-control", [*self.suite.serve(config, "127.0.0.1:0"), "--settle", "0"])
        xds = self.control.wait_for_line("xds listening on ")
        self.status = self.control.wait_for_line("status listening on ")
        self.fleet = Fleet(xds)
        end = time.monotonic() + 120
        while self.fleet.served < WORKLOADS or self.fleet.reporting < CALLERS:
            if time.monotonic() > end:
                raise self.failure(f"{self.fleet.served} are served, {self.fleet.reporting} report; {self.fleet.faults[:3]}")
            time.sleep(0.1)
        # All have reported at least twice: there are rates.
        time.sleep(6)
        return f"{self.fleet.served} served, {self.fleet.reporting} report"

    def opens(self):
        self.page = browser.Browser(self.suite, self.failure)
        self.page.size(1280, 860)
        # What a browser does once in its life is not the console's.
        self.page.go(f"http://{self.status}/status?names=none")
        self.page.until("a page", "document.body.innerText.length > 10")
        self.page.ask("Page.addScriptToEvaluateOnNewDocument", source=WATCH % (SERVICES // 2))
        self.page.go(f"http://{self.status}/")
        took = self.page.until("a graph", "window.firstView", 60) / 1000
        shown = self.page.value("`${document.querySelectorAll('[data-node]').length} nodes, ${document.querySelectorAll('[data-edge]').length} edges`")
        if took > FIRST_VIEW:
            raise self.failure(f"{took:.2f} s ({shown})")
        return f"{took:.2f} s ({shown})"

    def updates(self):
        of = [self.control.child.pid, self.page.process.pid]
        time.sleep(3)
        before, began = [cpu(one) for one in of], time.monotonic()
        time.sleep(WATCHED)
        passed = time.monotonic() - began
        # What mesh-control does anyway, with nobody looking, is no update of the console's.
        control, page = [(cpu(one) - start) / passed for one, start in zip(of, before)]
        self.page.value("location.href = 'about:blank'")
        time.sleep(1)
        before, began = cpu(of[0]), time.monotonic()
        time.sleep(WATCHED / 2)
        idle = (cpu(of[0]) - before) / (time.monotonic() - began)
        told = f"mesh-control {control:.1%}, of which {idle:.1%} without anybody who looks; the page {page:.1%}"
        if control - idle + page > SHARE:
            raise self.failure(told)
        return told

    def tables(self):
        shown = "document.querySelectorAll('[data-workload]').length"
        self.page.go(f"http://{self.status}/#workloads")
        self.page.until("the first rows", f"{shown} === {ROWS} && document.body.innerText.includes('The first {ROWS} of {WORKLOADS}')", 30)
        # One of those that are left out.
        last = self.page.value(
            f"fetch('/status?names=none').then((answer) => answer.json()).then((said) => said.clients[{WORKLOADS - 1}].node)"
        )
        self.page.value(f"(() => {{ const words = document.querySelector('input[type=search]'); words.value = '{last}'; words.dispatchEvent(new Event('input')); }})()")
        self.page.until("the one that is looked for", f"{shown} === 1 && document.querySelector('[data-workload]').dataset.workload === '{last}'", 30)
        if faults := self.page.faults():
            raise self.failure(f"the page did wrong: {faults[:3]}")
