"""A cluster as a source of configuration, with the real Kubernetes API server: mesh-control with the permissions that `install`
prints, requests between processes whose addresses stand in EndpointSlices, and an API server that is killed meanwhile.
"""

import json
import os
import socket
import subprocess
import threading
import time
import urllib.error

from mutual import free_port

PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Service": "/api/v1/namespaces/{}/services",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}
SLICES = "/apis/discovery.k8s.io/v1/namespaces/store/endpointslices"
RULES = "/apis/networking.istio.io/v1/namespaces/store/virtualservices"


class Cluster:
    def __init__(self, kubernetes):
        self.kubernetes, self.suite, self.failure = kubernetes, kubernetes.suite, kubernetes.failure
        self.ask, self.folder = kubernetes.ask, kubernetes.folder

    def run(self):
        check = self.suite.check
        check("cluster", "what `install` prints is taken, and its permissions are enough to follow it", self.prepare)
        check("cluster", "who is not ready gets no request, and who is gets them", self.endpoints)
        check("cluster", "rules come and go, a wrong one is refused, and one that gets in all the same keeps its last good state", self.rules)
        check("cluster", "the API server is killed: no request is lost, and what changed afterwards is known", self.killed)

    def prepare(self):
        # Loopback addresses are none for an EndpointSlice.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            self.ip = probe.getsockname()[0]
        tls = [self.folder / "webhook.crt", self.folder / "webhook.key"]
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        make += ["-subj", "/CN=webhook", "-addext", "subjectAltName=IP:127.0.0.1", "-out", tls[0], "-keyout", tls[1]]
        subprocess.run(make, check=True, capture_output=True, timeout=60)
        webhook = free_port()
        command = [self.suite.args.bin / "mesh-control", "install", "--image", "registry.example/mesh-control:1"]
        done = subprocess.run([*command, "--webhook-ca", tls[0], "-o", "json"], check=True, capture_output=True, timeout=30)
        manifests = json.loads(done.stdout)["items"]
        for manifest in manifests:
            if manifest["kind"] == "ValidatingWebhookConfiguration":
                config = manifest["webhooks"][0]["clientConfig"]
                del config["service"]
                config["url"] = f"https://127.0.0.1:{webhook}/validate"
            path = PATHS[manifest["kind"]].format(manifest["metadata"].get("namespace"))
            self.ask("POST", path, manifest)
        self.crd("networking.istio.io", "virtualservices", "VirtualService")
        self.kubernetes.make("/api/v1/namespaces", "Namespace", "store")
        token = self.folder / "cluster-token"
        token.write_text(self.kubernetes.token("mesh-control", audience=self.kubernetes.api, namespace="mesh-system"))
        cluster = {"server": self.kubernetes.api, "certificate-authority": "certs/apiserver.crt"}
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"tokenFile": token.name}}],
        }
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(json.dumps(config))
        command = [self.suite.args.bin / "mesh-control", "serve", "--kubernetes", "--kubeconfig", kubeconfig]
        command += ["--xds-addr", "127.0.0.1:0", "--secure-addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0"]
        command += ["--admission-addr", f"127.0.0.1:{webhook}", "--tls-cert", tls[0], "--tls-key", tls[1]]
        control = self.suite.start("mesh-control of a cluster", command)
        self.xds = control.wait_for_line("xds listening on ")
        self.status_addr = control.wait_for_line("status listening on ")
        return f"{len(manifests)} objects"

    def crd(self, group, plural, kind):
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        spec = {"group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind}}
        spec["versions"] = [{"name": "v1", "served": True, "storage": True, "schema": schema}]
        path, version = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "apiextensions.k8s.io/v1"
        self.kubernetes.make(path, "CustomResourceDefinition", f"{plural}.{group}", version, spec=spec)

    def env(self, name):
        return self.suite.bootstrap(self.xds, name, "store")

    def slice(self, *ready):
        endpoints = [{"addresses": [self.ip], "conditions": {"ready": one}} for one in ready]
        body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints}
        body["metadata"] = {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}
        return {**body, "ports": [{"name": "http", "port": self.port, "protocol": "TCP"}]}

    def call(self, path="/"):
        curl = [self.suite.args.bin / "mesh-curl", "-o", "json", f"http://web.store{path}"]
        env = {**os.environ, **self.env("caller")}
        done = subprocess.run(curl, capture_output=True, timeout=60, text=True, env=env)
        return json.loads(done.stdout.splitlines()[0]).get("status")

    def until(self, what, is_so):
        end = time.monotonic() + 30
        while not is_so():
            if time.monotonic() > end:
                raise self.failure(f"not in time: {what}")
            time.sleep(0.1)

    def endpoints(self):
        echo = [self.suite.args.bin / "mesh-echo", "--name", "web", "--listen", f"{self.ip}:0", "--label", "app=web"]
        # The Service needs to be there for the server to serve, and the server's port for the slice.
        spec = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}
        self.kubernetes.make("/api/v1/namespaces/store/services", "Service", "web", spec=spec)
        process = self.suite.start("a server of the cluster", echo, self.env("web"))
        address = process.wait_for_line("listening on ").split()[0]
        self.port = int(address.rsplit(":", 1)[1])
        self.ask("POST", SLICES, self.slice(False))
        if (status := self.call()) == 200:
            raise self.failure("one that is not ready is called")
        self.ask("PUT", f"{SLICES}/web-1", self.slice(True))
        self.until("a request that gets there", lambda: self.call() == 200)
        return f"{status}, then 200 from {address}"

    def rule(self, name, **spec):
        kind = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}}
        return {**kind, "spec": {"hosts": ["web"], **spec}}

    def rules(self):
        teapot = self.rule("web", http=[{"match": [{"uri": {"prefix": "/tea"}}], "directResponse": {"status": 418}}, {"route": [{"destination": {"host": "web"}}]}])
        self.ask("POST", RULES, teapot)
        self.until("the rule", lambda: self.call("/tea") == 418)
        wrong = self.rule("web", htpp=[])
        try:
            self.ask("POST", RULES, self.rule("other", htpp=[]))
            raise self.failure("the webhook lets anything in")
        except urllib.error.HTTPError as error:
            said = json.loads(error.read())["message"]
        if "did you mean `http`?" not in said:
            raise self.failure(f"refused for another reason: {said}")
        # Whoever gets in without being asked about.
        self.ask("DELETE", f"{PATHS['ValidatingWebhookConfiguration']}/mesh-control-mesh-system")
        held = lambda: [one["standing"] for one in self.suite.status(self.status_addr)["wrong"]] == ["held"]

        def wrong_is_held():
            wrong["metadata"]["resourceVersion"] = self.ask("GET", f"{RULES}/web")["metadata"]["resourceVersion"]
            try:
                self.ask("PUT", f"{RULES}/web", wrong)
            except urllib.error.HTTPError:
                return False
            return True

        self.until("the webhook is gone", wrong_is_held)
        self.until("it is held", held)
        if (status := self.call("/tea")) != 418:
            raise self.failure(f"its last good state is not in force: {status}")
        self.ask("DELETE", f"{RULES}/web")
        self.until("it is gone", lambda: self.call("/tea") == 200)
        return said

    def killed(self):
        lost, stop = [], threading.Event()

        def calling():
            while not stop.is_set():
                if (status := self.call()) != 200:
                    lost.append(status)

        caller = threading.Thread(target=calling)
        caller.start()
        try:
            self.kubernetes.process.kill()
            self.until("it is said", lambda: "Kubernetes" in (self.suite.status(self.status_addr).get("config_stale_reason") or ""))
            self.kubernetes.launch()
            self.until("it is followed", lambda: not self.suite.status(self.status_addr).get("config_stale_reason"))
        finally:
            stop.set()
            caller.join()
        if lost:
            raise self.failure(f"requests were lost: {lost}")
        self.ask("PUT", f"{SLICES}/web-1", self.slice(False))
        self.until("the change is known", lambda: self.call() != 200)
        return "0 lost"
