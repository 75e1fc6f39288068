"""Open Policy Agent decides on requests: its engine (a Go module) behind Envoy's protocol of external authorization, a policy in Rego,
and a workload with our library that asks it. It says who is let in, with which headers, and with what others are answered; while it is
away, nobody is.
"""

import json
import pathlib
import urllib.error
import urllib.request

from ports import free_port

POLICY = pathlib.Path(__file__).resolve().parent / "opa" / "policy.rego"

ASKING = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: opa
      envoyExtAuthzGrpc: {service: opa.example.com, port: 9191, timeout: 10s}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: opa}
spec:
  hosts: [opa.example.com]
  ports: [{number: 9191, name: grpc, targetPort: %d}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {selector: {app: orders}, ports: [{name: http, port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: opa}
spec:
  selector: {matchLabels: {app: orders}}
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {notPaths: [/healthz]}}]}]
"""

# Path, user; status, a header of the answer, and what its body has.
DECIDED = [
    ("/orders/1?all", "eve", 200, (None, None), {"x-checked": "eve"}),
    # What a client claims to have been told by the policy is not what the policy says.
    ("/orders/1", "ada", 200, (None, None), {"x-checked": "ada"}),
    ("/orders/1", None, 401, ("www-authenticate", "Bearer"), "who are you?"),
    ("/admin", "eve", 403, ("x-why", "admins-only"), "admins only"),
    ("/admin", "admin", 200, (None, None), {"x-why": "admins-only"}),
    ("/other", "admin", 401, ("www-authenticate", "Bearer"), "who are you?"),
    ("/healthz", None, 200, (None, None), {}),
]


class Opa:
    """See the module."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.port = free_port()

    def start(self):
        """An engine with the policy."""
        command = [self.suite.args.peers / "go" / "opa", POLICY, f"127.0.0.1:{self.port}"]
        process = self.suite.start("opa", command)
        process.wait_for_line("asked at ")
        return process

    def ask(self, path, user):
        """Status, headers and body of an answer."""
        headers = {"host": "orders", "x-checked": "mallory", **({"x-user": user} if user else {})}
        request = urllib.request.Request(f"http://{self.address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def decides(self):
        for path, user, status, (name, value), body in DECIDED:
            found, headers, text = self.ask(path, user)
            if isinstance(body, dict) and found == 200:
                seen = {key.lower(): value for key, value in json.loads(text)["headers"].items()}
                body, text = body.items(), seen.items()
                is_told = body <= text
            else:
                is_told = text == body
            if found != status or not is_told or (name and headers[name] != value):
                raise self.failure(f"{path} of {user}: {found} {dict(headers)} {text}, and not {status} with {body}")
        return f"{len(DECIDED)} requests, as the policy says"

    def away(self, engine):
        """While it is away nobody is let in, but where it is not asked; and when it is back, all is as it was."""
        engine.kill()
        for path, user, *_ in DECIDED:
            found, _, text = self.ask(path, user)
            if found != (200 if path == "/healthz" else 403):
                raise self.failure(f"it is away, and {path} of {user} is answered with {found}: {text}")
        self.start()
        self.suite.until("it is asked again", lambda: self.ask("/orders/1", "ada")[0] == 200)
        return self.decides()

    def run(self):
        config = self.suite.folder / "opa"
        config.mkdir()
        (config / "opa.yaml").write_text(ASKING % self.port)
        engine = self.start()
        control = self.suite.start("mesh-control with a policy of OPA", self.suite.serve(config, "127.0.0.1:0"))
        echo = [self.suite.args.bin / "mesh-echo", "--name", "orders", "--listen", "127.0.0.1:0"]
        orders = self.suite.start("orders", [*echo, "--control", control.wait_for_line("xds listening on ")])
        self.address = orders.wait_for_line(" listening on ")
        orders.wait_for_line(" serving")
        self.suite.check("opa", "decides on requests", self.decides)
        self.suite.check("opa", "while it is away, nobody is let in", lambda: self.away(engine))
