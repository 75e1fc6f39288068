"""The objects that run mesh-control in a cluster: what the chart renders is what `install` prints, and the API server's own validation
takes it, two revisions beside each other. Helm is built by Go (`helm/`).
"""

import json
import pathlib
import subprocess
import urllib.error

import authority
import yaml

CHART = pathlib.Path(__file__).parent.parent / "mesh-control" / "helm"
NAMESPACE = "mesh-canary"
IMAGE = "registry.example/mesh-control:1"


class Refused(Exception):
    pass


class Manifests:
    def __init__(self, kubernetes):
        self.kubernetes, self.suite, self.failure = kubernetes, kubernetes.suite, kubernetes.failure
        self.ask, self.folder = kubernetes.ask, kubernetes.folder
        self.helm = self.suite.args.peers / "go" / "helm"

    def run(self):
        check = self.suite.check
        check("manifests", "the chart renders what `install` prints, whatever is set", self.same)
        check("manifests", "the API server takes two revisions beside each other, strictly validated and restricted", self.taken)
        check("manifests", "the chart refuses values that `install` refuses", self.refused)

    def install(self, *options):
        command = [self.suite.args.bin / "mesh-control", "install", "--image", IMAGE, "--namespace", NAMESPACE, "-o", "json"]
        done = subprocess.run([*command, *options], check=True, capture_output=True, timeout=30)
        return json.loads(done.stdout)["items"]

    def render(self, values):
        command = [self.helm, "template", "mesh-control", CHART, "--namespace", NAMESPACE, "--include-crds", "--kube-version", "1.36", "--values", "-"]
        text = json.dumps({"image": IMAGE, **values})
        done = subprocess.run(command, input=text, capture_output=True, timeout=60, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip())
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def same(self):
        ca, _ = authority.self_signed(self.folder, "manifests-ca")
        pem = ca.read_text()
        resources = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
        cases = [
            ({}, []),
            ({"revision": "blue", "replicas": 3}, ["--revision", "blue", "--replicas", "3"]),
            ({"resources": resources}, ["--cpu", "2", "--memory", "1Gi", "--memory-limit", "2Gi"]),
            ({"redisSecret": "redis", "statusNamespaces": ["monitoring", "ops"]}, ["--redis-secret", "redis", "--status-namespaces", "monitoring,ops"]),
            ({"gatewayController": "istio.io/gateway-controller"}, ["--gateway-controller", "istio.io/gateway-controller"]),
            ({"kubernetesNamespaces": ["shop", "pay"]}, ["--kubernetes-namespaces", "shop,pay"]),
            ({"kubernetesNamespaces": ["istio-system", "shop"], "webhook": {"ca": pem}}, ["--kubernetes-namespaces", "istio-system,shop", "--webhook-ca", ca]),
            ({"webhook": {"ca": pem, "clientCa": pem}}, ["--webhook-ca", ca, "--webhook-client-ca", ca]),
        ]
        for values, options in cases:
            printed, rendered = (by_name(objects) for objects in (self.install(*options), self.render(values)))
            if printed != rendered:
                differing = [key for key in printed.keys() | rendered.keys() if printed.get(key) != rendered.get(key)]
                raise self.failure(f"{values}: {differing}: {[(printed.get(key), rendered.get(key)) for key in differing]}")
        return f"{len(cases)} sets of values"

    def taken(self):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.ask("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
        ca = self.folder / "manifests-ca.crt"
        count = 0
        for revision in ("blue", "green"):
            for one in self.install("--revision", revision, "--webhook-ca", ca, "--webhook-client-ca", ca, "--redis-secret", "redis"):
                self.dry_run(one)
                count += 1
                if one["kind"] == "Deployment":
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": revision, "namespace": NAMESPACE}}
                    self.dry_run({**pod, "spec": one["spec"]["template"]["spec"]})
        # That the namespace is restricted at all.
        loose = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose", "namespace": NAMESPACE}}
        try:
            self.dry_run({**loose, "spec": {"containers": [{"name": "a", "image": "a"}]}})
        except Refused:
            return f"{count} objects"
        raise self.failure("a Pod that is not restricted is taken")

    def dry_run(self, one):
        """As `kubectl apply --server-side --dry-run=server --validate=strict`."""
        version, namespace = one["apiVersion"], one["metadata"].get("namespace")
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        plural = next(kind["name"] for kind in self.ask("GET", root)["resources"] if kind["kind"] == one["kind"] and "/" not in kind["name"])
        place = f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
        # Of roles where what they are for is not.
        if namespace and namespace != NAMESPACE and one["kind"] in ("Role", "RoleBinding"):
            place = f"{root}/namespaces/default/{plural}"
            one = {**one, "metadata": {**one["metadata"], "namespace": "default"}}
        query = "dryRun=All&fieldValidation=Strict&fieldManager=suite&force=true"
        try:
            self.ask("PATCH", f"{place}/{one['metadata']['name']}?{query}", one, content="application/apply-patch+yaml")
        except urllib.error.HTTPError as error:
            raise Refused(f"{one['kind']} {one['metadata']['name']}: {error.read().decode()}") from error

    def refused(self):
        wrong = [
            {"image": "a b"},
            {"revision": "Blue"},
            {"replicas": -1},
            {"resources": {"limits": {"memory": "much"}}},
            {"webhook": {"clientCa": "-----BEGIN CERTIFICATE-----"}},
            {"webhook": {"ca": "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----"}},
            {"kubernetesNamespaces": ["a, b"]},
            {"replica": 3},
        ]
        for values in wrong:
            try:
                self.render(values)
            except ValueError:
                continue
            raise self.failure(f"{values} are rendered")
        return f"{len(wrong)} of {len(wrong)}"


def by_name(objects):
    """By kind, namespace and name; the namespace itself is made by `helm --create-namespace`."""
    key = lambda one: (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
    return {key(one): one for one in objects if one["kind"] != "Namespace"}
