"""The console of mesh-control in a real Chromium, with bookinfo behind it: real traffic over mutual TLS, a split that is moved, an
object that is wrong, and a client that refuses what it is told.
"""

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request

import browser
import grpc
from protobuf import field, fields

MANIFESTS = "examples/manifests/bookinfo"
HOST = "%s.default.svc.cluster.local"
SERVICES = [("productpage", "v1"), ("details", "v1"), ("reviews", "v1"), ("reviews", "v2"), ("reviews", "v3"), ("ratings", "v1")]

SPLIT = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: %d}
    - {destination: {host: reviews, subset: v2}, weight: %d}
"""
BROKEN = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: broken}
spec:
  hosts: [ratings]
  http:
  - rout: [{destination: {host: ratings}}]
"""
# Nobody may get a browser to take this for anything but text.
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> refused by the client"


class Refuser:
    """A client of xDS that refuses the first cluster that it is told of."""

    TYPE = "type.googleapis.com/envoy.config.cluster.v3.Cluster"

    def __init__(self, xds, node):
        self.stop = threading.Event()
        self.channel = grpc.insecure_channel(xds)
        path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
        stream = self.channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)
        self.nonce, self.came = b"", threading.Event()
        first = field(2, field(1, node) + field(6, "gRPC C-core")) + field(3, "outbound|9080|v1|" + HOST % "reviews") + field(4, self.TYPE)

        def requests():
            yield first
            self.came.wait(20)
            status = b"\x08\x03" + field(2, HOSTILE)
            yield field(3, "outbound|9080|v1|" + HOST % "reviews") + field(4, self.TYPE) + field(5, self.nonce) + field(6, status)
            self.stop.wait(120)

        self.responses = stream(requests())
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            for response in self.responses:
                self.nonce = fields(response).get(5, [b""])[0]
                self.came.set()
        except grpc.RpcError:
            pass

    def end(self):
        self.stop.set()
        self.channel.close()


class Console:
    def __init__(self, suite, failure, shots=None):
        self.suite, self.failure, self.shots = suite, failure, shots
        self.folder = suite.folder / "console"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)

    def run(self):
        check = self.suite.check
        check("chromium", "the console opens, and its graph shows bookinfo with padlocks", self.opens)
        check("chromium", "a canary split is seen while it moves", self.moves)
        check("chromium", "a broken VirtualService shows its diagnostic", self.broken)
        check("chromium", "a NACK shows its text, as text", self.refused)
        check("chromium", "the form explains a request", self.explains)
        check("chromium", "the limits of bookinfo show how much of them is used", self.limits)
        check("control", "top and describe say the same on a terminal", self.says)
        check("chromium", "a keyboard reaches everything, and nothing went wrong in the page", self.behaves)

    def write(self, name, text):
        temporary = self.folder / name
        temporary.write_text(text)
        temporary.rename(self.config / name)

    def shot(self, name):
        if self.shots:
            self.page.screenshot(self.shots / name)

    def opens(self):
        manifests = self.suite.here.parent / MANIFESTS
        for name in ("services.yaml", "subsets.yaml"):
            self.write(name, (manifests / "base" / name).read_text())
        self.write("reviews.yaml", SPLIT % (90, 10))
        program = self.suite.args.bin
        control = self.suite.start("mesh-control of the console", [*self.suite.serve(self.config, "127.0.0.1:0"), "--dev"])
        self.xds = control.wait_for_line("xds listening on ")
        self.status = control.wait_for_line("status listening on ")
        services = [
            self.suite.start(f"{name} {version}", [program / "bookinfo", "service", name, "--version", version, "--control", self.xds])
            for name, version in SERVICES
        ]
        for service in services:
            service.wait_for_line(" serving")
        load = ["--control", self.xds, "--namespace", "default", "--service-account", "loadtest"]
        load += ["--label", "app=loadtest", "--rate", "40", "--duration", "300s", "-o", "json"]
        self.suite.start("load", [program / "mesh-curl", *load, "http://productpage:9080/productpage"])
        self.page = browser.Browser(self.suite, self.failure)
        self.page.size(1280, 860)
        self.page.go(f"http://{self.status}/")
        self.page.until("a graph", "document.querySelectorAll('[data-edge]').length >= 5")
        for node in (HOST % "productpage" + "/v1", HOST % "reviews" + "/v1", HOST % "ratings"):
            self.page.until(f"a node {node}", f"!!document.querySelector('[data-node=\"{node}\"]')")
        edge = f"{HOST % 'productpage'}/v1 {HOST % 'reviews'}/v1"
        self.page.until("mutual TLS", f"document.querySelector('[data-edge=\"{edge}\"] .lock')?.getAttribute('class') === 'lock closed'")
        return f"{self.page.value('document.querySelectorAll(`[data-node]`).length')} nodes"

    def shares(self):
        """The shares of both versions of reviews, as the page has them, in percent."""
        of = f"{HOST % 'productpage'}/v1 {HOST % 'reviews'}"
        script = f"""JSON.stringify(['v1', 'v2'].map((version) => {{
            const text = document.querySelector(`[data-edge="{of}/${{version}}"] text`)?.textContent || '';
            return Number((/\\(([0-9.]+) %\\)/.exec(text) || [])[1] || 0);
        }}))"""
        return json.loads(self.page.value(script))

    def moves(self):
        def come_to(least, most):
            end = time.monotonic() + 40
            while time.monotonic() < end:
                v1, v2 = self.shares()
                if least <= v2 <= most and abs(v1 + v2 - 100) <= 2:
                    return f"{v1} % and {v2} %"
                time.sleep(0.2)
            raise self.failure(f"v2 has not between {least} and {most} %: {self.shares()}")

        before = come_to(3, 20)
        self.shot("console-graph.png")
        self.write("reviews.yaml", SPLIT % (30, 70))
        after = come_to(60, 80)
        return f"{before}, then {after}"

    def broken(self):
        self.write("broken.yaml", BROKEN)
        self.page.value("location.hash = '#configuration'")
        row = "document.querySelector('[data-object=\"VirtualService default/broken\"]')?.innerText || ''"
        told = self.page.until("the finding", f"/rout/.test({row}) && /broken.yaml:7/.test({row}) && {row}")
        self.page.until("effective routes", "/subset v2/.test(document.body.innerText) || (document.querySelector('select').value = 'reviews.default.svc.cluster.local:9080', document.querySelector('select').dispatchEvent(new Event('change')), false)")
        self.shot("console-configuration.png")
        return " ".join(told.split())[:160]

    def refused(self):
        refuser = Refuser(self.xds, "sidecar~10.0.0.9~refuser.default~default.svc.cluster.local")
        self.page.value("location.hash = '#workloads'")
        row = "document.querySelector('[data-workload*=\"refuser\"]')?.innerText || ''"
        self.page.until("the refusal", f"/onerror=/.test({row}) && /refused by the client/.test({row})")
        self.shot("console-workloads.png")
        if self.page.value("document.title") != "mesh-control" or self.page.value("document.querySelectorAll('main img').length"):
            raise self.failure("what a client says has become more than text")
        told = self.command("describe", "workload", "refuser")
        refuser.end()
        if "refused by the client" not in told:
            raise self.failure(f"describe has no refusal: {told}")
        return None

    def explains(self):
        self.page.value("location.hash = '#explain'")
        self.page.until("a form", "!!document.querySelector('form.ask')")
        self.page.value("document.getElementById('ask-url').value = 'http://reviews:9080/', document.querySelector('form.ask button').click()")
        told = self.page.until("an answer", "document.querySelector('main pre')?.textContent")
        if "VirtualService default/reviews" not in told or "reviews.yaml" not in told:
            raise self.failure(f"it does not say where the route is written: {told}")
        self.page.value("location.hash = '#certificates'")
        self.page.until("certificates", "/spiffe:\\/\\/cluster.local\\/ns\\/default\\/sa\\//.test(document.body.innerText)")
        return told.splitlines()[0]

    def limits(self):
        """Those of `examples/manifests/limits`, of a bookinfo in one process: a local one, one by the service, and a quota."""
        manifests = self.suite.here.parent / "examples/manifests/limits"
        program = [self.suite.args.bin / "bookinfo", manifests, "--serve", "--listen", "127.0.0.1:0"]
        bookinfo = self.suite.start("bookinfo with limits", program)
        page = bookinfo.wait_for_line("product page   ")
        console = bookinfo.wait_for_line("console        ")
        answers = {}

        def ask(user):
            try:
                with urllib.request.urlopen(f"{page}?user={user}", timeout=10) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        end = time.monotonic() + 40
        while answers.get(429, 0) < 3:
            if time.monotonic() > end:
                raise self.failure(f"nobody is refused: {answers}")
            for user in ("jason", "alice"):
                status = ask(user)
                answers[status] = answers.get(status, 0) + 1
        self.page.go(f"{console}#limits")
        for what, wanted in (
            ("the quota of each reader", ("default/pages", "query.user=jason", "query.user=alice", "a month")),
            ("the rules that the service counts by", ("bookinfo", "limits of requests")),
            ("the objects", ("RateLimit default/pages", "RateLimit default/reviews", "Quota default/pages", "in-force")),
        ):
            told = "(document.querySelector('main')?.innerText || '')"
            self.page.until(what, " && ".join(f"{told}.includes({json.dumps(text)})" for text in wanted))
        self.page.until("what is used", "[...document.querySelectorAll('[data-quota] td')].some((cell) => Number(cell.textContent) > 0)")
        self.shot("console-limits.png")
        self.page.go(f"http://{self.status}/#graph")
        self.page.until("the first console again", "document.querySelectorAll('[data-edge]').length >= 5")
        bookinfo.end()
        return f"{answers.get(200, 0)} pages, {answers[429]} refused"

    def command(self, *words):
        """What mesh-control says of this server."""
        command = [self.suite.args.bin / "mesh-control", *words, "--status-addr", self.status]
        done = subprocess.run(command, timeout=30, capture_output=True, text=True)
        if done.returncode:
            raise self.failure(f"{words}: {done.stderr}")
        return done.stdout

    def says(self):
        reviews, page = HOST % "reviews", HOST % "productpage"
        for words, wanted in (
            (("top",), (f"{page}/v1", f"{reviews}/v2", "mutual", "library")),
            (("describe", "service", "reviews"), (f"70% {reviews} subset v2", "reviews.yaml:7", f"{page}/v1", "9080")),
            (("describe", "object", "VirtualService/default/broken"), ("fails-closed", "broken.yaml:7", "`route`")),
        ):
            told = self.command(*words)
            if missing := [text for text in wanted if text not in told]:
                raise self.failure(f"{' '.join(words)} says nothing of {missing}: {told}")
        return None

    def behaves(self):
        self.page.size(1280, 860, dark=True)
        self.page.value("location.hash = '#graph'")
        self.page.until("a graph again", "document.querySelectorAll('[data-edge]').length >= 5")
        self.shot("console-dark.png")
        seen = set()
        for _ in range(60):
            for kind in ("rawKeyDown", "keyUp"):
                self.page.ask("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            script = "(() => { const it = document.activeElement; const style = getComputedStyle(it.dataset.node ? it.querySelector('rect') : it);" \
                "return JSON.stringify([it.dataset.node || it.hash || it.tagName, style.outlineStyle !== 'none' || parseFloat(style.strokeWidth) >= 3]); })()"
            what, is_visible = json.loads(self.page.value(script))
            seen.add(what)
            if not is_visible and what != "BODY":
                raise self.failure(f"the focus on {what} cannot be seen")
        if not {"#workloads", "#explain", HOST % "ratings"} <= seen:
            raise self.failure(f"the keyboard reaches only {sorted(seen)}")
        if faults := self.page.faults():
            raise self.failure(f"the page did wrong: {faults[:3]}")
        return f"{len(seen)} places"
