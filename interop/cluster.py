"""A cluster as a source of configuration, with the real Kubernetes API server: two replicas of mesh-control with the permissions that
`install` prints, bookinfo's services as processes with the tokens that a kubelet would project, whose addresses stand in EndpointSlices,
and a caller that looks at every single page while objects are applied, broken and fixed, a replica and the API server are killed.
"""

import collections
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error

from authority import plugged_in, signed
from ports import free_port

RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Service": "/api/v1/namespaces/{}/services",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "Role": RBAC + "/namespaces/{}/roles",
    "RoleBinding": RBAC + "/namespaces/{}/rolebindings",
    "ClusterRole": RBAC + "/clusterroles",
    "ClusterRoleBinding": RBAC + "/clusterrolebindings",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}
SYSTEM = "mesh-system"
LEASE = PATHS["Lease"].format(SYSTEM) + "/mesh-control"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
RULES = "/apis/networking.istio.io/v1/namespaces/default/virtualservices"
GROUPS = "/apis/networking.istio.io/v1/namespaces/default/workloadgroups"
ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes"
PORT = 9080
# Who serves bookinfo: services and their versions.
WORKLOADS = [("productpage", "v1"), ("details", "v1"), ("ratings", "v1"), ("reviews", "v1"), ("reviews", "v2")]
CONTROLLER = "policy.mesh-control/mesh"
TEXT, NUMBER = {"type": "string"}, {"x-kubernetes-int-or-string": True}


def structure(**properties):
    return {"type": "object", "properties": properties}


def listed(**properties):
    return {"type": "array", "items": structure(**properties)}


# What Istio's definitions let be in a status, so that whatever else is written there is lost.
ISTIO_STATUS = structure(
    conditions=listed(type=TEXT, status=TEXT, reason=TEXT, message=TEXT, lastTransitionTime=TEXT, lastProbeTime=TEXT),
    validationMessages=listed(type=structure(name=TEXT, code=TEXT), level=TEXT, documentationUrl=TEXT),
    observedGeneration=NUMBER,
)
REFERENCE = structure(group=TEXT, kind=TEXT, namespace=TEXT, name=TEXT, sectionName=TEXT, port={"type": "integer"})
CONDITIONS = listed(type=TEXT, status=TEXT, reason=TEXT, message=TEXT, lastTransitionTime=TEXT, observedGeneration={"type": "integer"})
ROUTE_STATUS = structure(parents=listed(parentRef=REFERENCE, controllerName=TEXT, conditions=CONDITIONS))


class Caller:
    """Gets the product page without pause, and looks at whether anything is missing from it."""

    def __init__(self, process):
        self.process, self.pages, self.requests, self.lost = process, 0, 0, []
        # Who wrote the reviews of the last pages.
        self.last = collections.deque(maxlen=40)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while True:
            answer = json.loads(self.process.lines.get())
            if "summary" in answer:
                return
            page = json.loads(answer["body"]) if answer["status"] == 200 else {}
            parts = [page.get(part) or {} for part in ("details", "reviews")]
            calls = [part.get("call") or {} for part in parts]
            if stars := (parts[1].get("content") or {}).get("ratings"):
                calls.append(stars)
            states = [call.get("status") for call in calls]
            self.pages += 1
            self.requests += 1 + len(calls)
            if set(states) <= {"200", "OK"}:
                self.last.append(calls[1]["backend"].split("-")[1])
            else:
                self.lost.append(f"{answer['status']} {states} {answer['error'] or page}"[:300])

    def versions(self):
        return set(self.last) if len(self.last) == self.last.maxlen else set()


class Cluster:
    def __init__(self, kubernetes):
        self.kubernetes, self.suite, self.failure = kubernetes, kubernetes.suite, kubernetes.failure
        self.ask, self.folder = kubernetes.ask, kubernetes.folder

    def run(self):
        check = self.suite.check
        check("cluster", "what `install` prints is taken, and its permissions are enough for two replicas", self.prepare)
        check("cluster", "bookinfo's services call each other by mutual TLS, by the tokens of their pods", self.bookinfo)
        check("cluster", "who is not ready gets no request, and who is gets them", self.endpoints)
        check("cluster", "a member of a WorkloadGroup gets requests beside Pods, and none once the group is gone", self.group)
        check("cluster", "a rule that comes into force says so in its status", self.rules)
        check("cluster", "a wrong one is refused, and one that gets in all the same keeps its last good state and says so", self.wrong)
        check("cluster", "a route of Gateway API says what became of it at its service", self.route)
        check("cluster", "objects are applied, compared, refused and taken back by commands, with the rights that are documented", self.commands)
        check("cluster", "the replica that writes is killed: the other one does", self.leader)
        check("cluster", "the API server is killed: what changed afterwards is known, and written", self.killed)
        check("cluster", "all of that while pages were looked at: nothing was missing from any", self.unfailing)

    def prepare(self):
        # Loopback addresses are none for an EndpointSlice.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            self.ip = probe.getsockname()[0]
        tls, self.tls_ca = signed(self.folder, "served", "-addext", "subjectAltName=IP:127.0.0.1")
        command = [self.suite.args.bin / "mesh-control", "install", "--image", "registry.example/mesh-control:1"]
        done = subprocess.run([*command, "--webhook-ca", self.tls_ca, "-o", "json"], check=True, capture_output=True, timeout=30)
        manifests = json.loads(done.stdout)["items"]
        self.kubernetes.make("/api/v1/namespaces", "Namespace", "istio-system")
        webhooks = [free_port(), free_port()]
        for manifest in manifests:
            if manifest["kind"] == "ValidatingWebhookConfiguration":
                config = manifest["webhooks"][0]["clientConfig"]
                del config["service"]
                config["url"] = f"https://127.0.0.1:{webhooks[0]}/validate"
            self.ask("POST", PATHS[manifest["kind"]].format(manifest["metadata"].get("namespace")), manifest)
        self.crd("networking.istio.io", "virtualservices", "VirtualService", ISTIO_STATUS)
        self.crd("networking.istio.io", "workloadgroups", "WorkloadGroup", ISTIO_STATUS)
        self.crd("gateway.networking.k8s.io", "httproutes", "HTTPRoute", ROUTE_STATUS)
        token = self.folder / "cluster-token"
        token.write_text(self.kubernetes.token("mesh-control", audience=self.kubernetes.api, namespace=SYSTEM))
        kubeconfig = self.kubernetes.kubeconfig("kubeconfig", {"tokenFile": token.name})
        command = [self.suite.args.bin / "mesh-control", "serve", "--kubernetes", "--kubeconfig", kubeconfig]
        command += ["--kubernetes-lease", f"{SYSTEM}/mesh-control", "--ca-dir", plugged_in(self.folder)]
        command += ["--kubernetes-tokens", self.kubernetes.api, "--kubernetes-token-file", token, "--kubernetes-ca", self.kubernetes.ca]
        command += ["--tls-cert", tls[0], "--tls-key", tls[1]]
        self.replicas = []
        for webhook in webhooks:
            # It comes back where it was.
            addresses = ["--xds-addr", "none", "--secure-addr", f"127.0.0.1:{free_port()}", "--status-addr", f"127.0.0.1:{free_port()}"]
            self.replicas.append(self.replica([*command, *addresses, "--admission-addr", f"127.0.0.1:{webhook}"]))
        self.suite.until("one of them holds the Lease", self.holder)
        return f"{len(manifests)} objects"

    def replica(self, command):
        # Who leads says so.
        log = {"RUST_LOG": "warn,mesh_control::kubernetes::elected=info"}
        process = self.suite.start("mesh-control of a cluster", command, log)
        xds = process.wait_for_line("secured xds listening on ")
        return {"process": process, "command": command, "xds": xds, "status": process.wait_for_line("status listening on ")}

    def crd(self, group, plural, kind, status):
        free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"openAPIV3Schema": structure(spec=free, status=status)}
        spec = {"group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind}}
        version = {"name": "v1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
        spec["versions"] = [version]
        path, api = PATHS["CustomResourceDefinition"], "apiextensions.k8s.io/v1"
        if group.endswith(".k8s.io"):
            # Groups of Kubernetes' own need to say who has approved them.
            approved = {"api-approved.kubernetes.io": "unapproved, for a test"}
            metadata = {"name": f"{plural}.{group}", "annotations": approved}
            self.ask("POST", path, {"apiVersion": api, "kind": "CustomResourceDefinition", "metadata": metadata, "spec": spec})
        else:
            self.kubernetes.make(path, "CustomResourceDefinition", f"{plural}.{group}", api, spec=spec)

    def holder(self):
        return self.ask("GET", LEASE).get("spec", {}).get("holderIdentity")

    def apply(self, path, body):
        """As `kubectl apply --server-side` does."""
        to = f"{path}/{body['metadata']['name']}?fieldManager=kubectl"
        return self.ask("PATCH", to, body, content="application/apply-patch+yaml")

    def bootstrap(self, app, version, account, group=None):
        """What a workload has: who it is, and the token of its pod. A member of a group has its labels of that."""
        name = f"{app}-{version}"
        spec = {"serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]}
        labels = {"app": app, "version": version, "security.istio.io/tlsMode": "istio"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        uid = self.ask("POST", "/api/v1/namespaces/default/pods", pod)["metadata"]["uid"]
        token = self.folder / f"token-{name}"
        token.write_text(self.kubernetes.token(account, pod=(name, uid), namespace="default"))
        tls = [{"type": "tls", "config": {"ca_certificate_file": str(self.tls_ca)}}]
        served = {"channel_creds": tls, "server_features": ["xds_v3"]}
        metadata = {"NAMESPACE": "default", "SERVICE_ACCOUNT": account, "NAME": name}
        metadata |= {"AUTO_REGISTER_GROUP": group} if group else {"LABELS": labels}
        bootstrap = {
            "xds_servers": [{"server_uri": replica["xds"], **served} for replica in self.replicas],
            "node": {"id": f"mesh~{self.ip}~{name}.default~default.svc.cluster.local", "metadata": metadata},
            "certificate_providers": {"default": {"plugin_name": "mesh_ca", "config": {"token_file": str(token)}}},
            "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
        }
        return {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)}

    def slice(self, app, *ready):
        """The EndpointSlice of a service: its versions, and whether they are ready."""
        ours = [(name, version) for name, version in WORKLOADS if name == app]
        at = lambda version: {"kind": "Pod", "name": f"{app}-{version}", "namespace": "default"}
        metadata = {"labels": {"kubernetes.io/service-name": app}}
        for (_, version), one in zip(ours, ready):
            body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4"}
            endpoint = {"addresses": [self.ip], "conditions": {"ready": one}, "targetRef": at(version)}
            name = f"{app}-{version}"
            body |= {"metadata": {"name": name, **metadata}, "endpoints": [endpoint]}
            body["ports"] = [{"name": "http", "port": self.ports[name], "protocol": "TCP"}]
            try:
                self.ask("PUT", f"{SLICES}/{name}", body)
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
                self.ask("POST", SLICES, body)

    def bookinfo(self):
        self.ports = {}
        for app in dict.fromkeys(app for app, _ in WORKLOADS):
            spec = {"selector": {"app": app}, "ports": [{"name": "http", "port": PORT}]}
            self.kubernetes.make(PATHS["Service"].format("default"), "Service", app, spec=spec)
            self.kubernetes.make(PATHS["ServiceAccount"].format("default"), "ServiceAccount", f"bookinfo-{app}")
        for app, version in WORKLOADS:
            program = [self.suite.args.bin / "bookinfo", "service", app, "--version", version, "--listen", f"{self.ip}:0"]
            process = self.suite.start(f"{app} {version}", program, self.bootstrap(app, version, f"bookinfo-{app}"))
            self.ports[f"{app}-{version}"] = int(process.wait_for_line(" serving on ").rsplit(":", 1)[1])
        self.slice("reviews", True, False)
        for app in ("productpage", "details", "ratings"):
            self.slice(app, True)
        curl = [self.suite.args.bin / "mesh-curl", "-o", "json", "--timeout", "10s"]
        target = f"http://productpage:{PORT}/api/v1/products/0"
        self.kubernetes.make(PATHS["ServiceAccount"].format("default"), "ServiceAccount", "caller")
        env = self.bootstrap("caller", "v1", "caller")

        def is_whole():
            done = subprocess.run([*curl, target], capture_output=True, timeout=60, text=True, env={**os.environ, **env})
            answer = json.loads(done.stdout.splitlines()[0])
            page = json.loads(answer["body"]) if answer["status"] == 200 else {}
            return all((page.get(part) or {}).get("content") for part in ("details", "reviews"))

        self.suite.until("a whole page", is_whole)
        self.caller = Caller(self.suite.start("the caller", [*curl, "--rate", "40", "--duration", "3600s", target], env))
        self.shown("v1")
        return f"{len(WORKLOADS)} processes"

    def shown(self, *versions):
        """Waits until reviews come from these versions alone, for a while."""
        self.suite.until(f"reviews of {versions}", lambda: self.caller.versions() == set(versions))

    def endpoints(self):
        self.slice("reviews", True, True)
        self.shown("v1", "v2")
        self.slice("reviews", False, True)
        self.shown("v2")
        self.slice("reviews", True, True)
        self.shown("v1", "v2")

    def rule(self, name, **spec):
        kind = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": name}}
        return {**kind, "spec": {"hosts": ["reviews"], **spec}}

    def says(self, name, status, reason, path=RULES):
        """Waits until an object, a rule unless told otherwise, says this of the generation that it is in."""

        def is_said():
            found = self.ask("GET", f"{path}/{name}")
            state = found.get("status", {})
            of = {one["type"]: one for one in state.get("conditions", [])}.get("Reconciled", {})
            is_it = (of.get("status"), of.get("reason")) == (status, reason)
            return found if is_it and state.get("observedGeneration") == found["metadata"]["generation"] else None

        return self.suite.until(f"{name}: {status} {reason}", is_said)

    def group(self):
        name, account = "reviews-vms", "bookinfo-reviews"
        spec = {"metadata": {"labels": {"app": "reviews", "version": "v3"}}, "template": {"serviceAccount": account}}
        group = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": name}, "spec": spec}
        self.apply(GROUPS, group)
        self.says(name, "True", "InForce", GROUPS)
        program = [self.suite.args.bin / "bookinfo", "service", "reviews", "--version", "v3", "--listen", f"{self.ip}:0"]
        member = self.suite.start("reviews v3 of a group", program, self.bootstrap("reviews", "v3", account, group=name))
        member.wait_for_line(" serving on ")
        self.shown("v1", "v2", "v3")
        self.ask("DELETE", f"{GROUPS}/{name}")
        self.shown("v1", "v2")
        member.end()

    def rules(self):
        to = lambda seconds: [{"timeout": f"{seconds}s", "route": [{"destination": {"host": "reviews"}}]}]
        self.good = self.rule("reviews", http=to(9))
        self.apply(RULES, self.good)
        said = self.says("reviews", "True", "InForce")
        before = said["metadata"]["resourceVersion"]
        # What is there is not written again.
        time.sleep(2)
        if (after := self.ask("GET", f"{RULES}/reviews")["metadata"]["resourceVersion"]) != before:
            raise self.failure(f"it is written again and again: {before} {after}")
        return f"generation {said['status']['observedGeneration']}"

    def wrong(self):
        try:
            self.apply(RULES, self.rule("other", htpp=[]))
            raise self.failure("the webhook lets anything in")
        except urllib.error.HTTPError as error:
            said = json.loads(error.read())["message"]
        if "did you mean `http`?" not in said:
            raise self.failure(f"refused for another reason: {said}")
        # Whoever gets in without being asked about.
        self.ask("DELETE", f"{PATHS['ValidatingWebhookConfiguration']}/mesh-control-{SYSTEM}")

        def put(rule):
            rule["metadata"]["resourceVersion"] = self.ask("GET", f"{RULES}/reviews")["metadata"]["resourceVersion"]
            try:
                self.ask("PUT", f"{RULES}/reviews", rule)
            except urllib.error.HTTPError:
                return False
            return True

        self.suite.until("the webhook is gone", lambda: put(self.rule("reviews", htpp=[])))
        found = self.says("reviews", "False", "LastGoodState")
        codes = [message["type"].get("code") for message in found["status"]["validationMessages"]]
        if "IST0106" not in codes:
            raise self.failure(f"no code of it: {found['status']}")
        for replica in self.replicas:
            held = [one["standing"] for one in self.suite.status(replica["status"])["wrong"]]
            if held != ["held"]:
                raise self.failure(f"a replica does not know: {held}")
        self.suite.until("it is put", lambda: put(self.good))
        found = self.says("reviews", "True", "InForce")
        if found["status"].get("validationMessages"):
            raise self.failure(f"what is mended has codes: {found['status']}")
        return said

    def route(self):
        reference = {"group": "", "kind": "Service", "name": "details", "port": PORT}
        backends = lambda *names: [{"backendRefs": [{"name": name, "port": PORT, "weight": weight} for name, weight in names]}]
        metadata = {"name": "details"}
        route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata}
        route["spec"] = {"parentRefs": [reference], "rules": backends(("details", 1), ("nobody", 0))}
        self.ask("POST", ROUTES, route)

        def says(**expected):
            found = self.ask("GET", f"{ROUTES}/details")
            for parent in found.get("status", {}).get("parents", []):
                of = {one["type"]: (one["status"], one["reason"]) for one in parent["conditions"]}
                is_of = all(one["observedGeneration"] == found["metadata"]["generation"] for one in parent["conditions"])
                if is_of and parent["controllerName"] == CONTROLLER and parent["parentRef"] == reference and of == expected:
                    return found
            return None

        accepted = ("True", "Accepted")
        found = self.suite.until("what is missing", lambda: says(Accepted=accepted, ResolvedRefs=("False", "BackendNotFound")))
        # Somebody else's words stay.
        foreign = {"parentRef": {**reference, "name": "other"}, "controllerName": "example.com/other", "conditions": []}
        parents = [foreign, *found["status"]["parents"]]
        self.ask("PUT", f"{ROUTES}/details/status", {**found, "status": {"parents": parents}})
        fixed = self.ask("GET", f"{ROUTES}/details")
        fixed["spec"]["rules"] = backends(("details", 1))
        self.ask("PUT", f"{ROUTES}/details", fixed)
        found = self.suite.until("it is fixed", lambda: says(Accepted=accepted, ResolvedRefs=("True", "ResolvedRefs")))
        if foreign not in found["status"]["parents"]:
            raise self.failure(f"what somebody else said is gone: {found['status']}")
        self.ask("DELETE", f"{ROUTES}/details")

    def editor(self):
        """A kubeconfig of an account that has the rights that docs/kubernetes.md names for changes, and no other ones."""
        name, version = "editor", "rbac.authorization.k8s.io/v1"
        make = self.kubernetes.make
        make(PATHS["ServiceAccount"].format(SYSTEM), "ServiceAccount", name)
        changes = ["list", "create", "patch", "delete"]
        groups = ["networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"]
        groups += ["gateway.networking.k8s.io", "gateway.networking.x-k8s.io", "policy.mesh-control"]
        rules = [
            {"apiGroups": groups, "resources": ["*"], "verbs": changes},
            {"apiGroups": [""], "resources": ["services"], "verbs": changes},
        ]
        settings = [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["istio"], "verbs": ["list"]}]
        history = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": changes}]
        subjects = [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}]
        role = lambda kind: {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        make(PATHS["ClusterRole"], "ClusterRole", name, version, rules=rules)
        make(PATHS["ClusterRoleBinding"], "ClusterRoleBinding", name, version, roleRef=role("ClusterRole"), subjects=subjects)
        for namespace, rules in (("istio-system", settings), (SYSTEM, history)):
            make(PATHS["Role"].format(namespace), "Role", name, version, rules=rules)
            make(PATHS["RoleBinding"].format(namespace), "RoleBinding", name, version, roleRef=role("Role"), subjects=subjects)
        token = self.folder / "editor-token"
        token.write_text(self.kubernetes.token(name, audience=self.kubernetes.api, namespace=SYSTEM))
        return self.kubernetes.kubeconfig("editor-kubeconfig", {"tokenFile": token.name})

    def commands(self):
        kubeconfig = self.editor()
        place = ["--kubernetes", "--kubeconfig", kubeconfig]

        def command(code, *args, text=None):
            program = [self.suite.args.bin / "mesh-control", *args, *place]
            done = subprocess.run(program, input=text, capture_output=True, text=True, timeout=120)
            if done.returncode != code:
                raise self.failure(f"{args}: exit code {done.returncode}: {done.stdout} {done.stderr}")
            return done.stdout + done.stderr

        def expect(text, *parts):
            if missing := [part for part in parts if part not in text]:
                raise self.failure(f"{missing} is not said: {text}")

        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "applied"}}
        service["spec"] = {"selector": {"app": "applied"}, "ports": [{"name": "http", "port": PORT}]}

        def files(seconds, key="http"):
            rule = self.rule("applied", **{key: [{"timeout": f"{seconds}s", "route": [{"destination": {"host": "applied"}}]}]})
            rule["spec"]["hosts"] = ["applied"]
            return f"{json.dumps(service)}\n---\n{json.dumps(rule)}\n"

        # Rights are known a moment after they are given.
        def look():
            done = subprocess.run([self.suite.args.bin / "mesh-control", "get", *place], capture_output=True, text=True, timeout=120)
            if done.returncode != 0:
                raise ValueError(done.stderr)
            return True

        self.suite.until("it may look", look)
        path = f"{RULES}/applied"
        timeout = lambda: self.ask("GET", path)["spec"]["http"][0]["timeout"]
        said = command(0, "apply", "-f", "-", "--dry-run", text=files(3))
        expect(said, "Service default/applied created (dry run)", "VirtualService default/applied created (dry run)")
        expect(command(0, "apply", "-f", "-", "-m", "to begin with", text=files(3)), "change 1")
        managers = [(one["manager"], one["operation"]) for one in self.ask("GET", path)["metadata"]["managedFields"]]
        if ("mesh-control", "Apply") not in managers:
            raise self.failure(f"another manager: {managers}")
        # What the API server, and whoever writes statuses, has added is no difference.
        self.says("applied", "True", "InForce")
        expect(command(0, "apply", "-f", "-", text=files(3)), "nothing had to change")
        command(0, "diff", "-f", "-", text=files(3))
        expect(command(1, "diff", "-f", "-", text=files(4)), 'timeout: "3s"\n', 'timeout: "4s"\n')
        expect(command(3, "apply", "-f", "-", text=files(4, "htpp")), "nothing was changed", "did you mean `http`?")
        # Somebody else changes a field, and so has it.
        other = self.ask("GET", path)
        other["spec"]["http"][0]["timeout"] = "5s"
        self.ask("PUT", path, other)
        expect(command(3, "apply", "-f", "-", text=files(6)), "--force-conflicts")
        expect(command(0, "apply", "-f", "-", "--force-conflicts", text=files(6)), "change 2")
        if timeout() != "6s":
            raise self.failure(f"it was not applied: {timeout()}")
        expect(command(0, "rollback", "-m", "it was theirs"), "change 3")
        if timeout() != "5s":
            raise self.failure(f"it was not taken back: {timeout()}")
        expect(command(0, "delete", "virtualservice", "applied"), "change 4")
        expect(command(0, "rollback"), "VirtualService default/applied created", "change 5")
        expect(command(0, "get", "virtualservice", "applied"), 'timeout: "5s"\n')
        expect(command(0, "delete", "-f", "-", text=files(5)), "change 6")
        entries = [json.loads(line) for line in command(0, "history", "-o", "json").splitlines()]
        author = f"system:serviceaccount:{SYSTEM}:editor"
        if [(entry["number"], entry["author"]) for entry in entries] != [(number, author) for number in range(6, 0, -1)]:
            raise self.failure(f"another history: {entries}")
        return f"{len(entries)} changes by {author}"

    def leads(self):
        """The replica that has said last that it holds the Lease."""
        for replica in self.replicas:
            said = [line for line in list(replica["process"].errors) if "the Lease" in line]
            if replica["process"].child.poll() is None and said and "writes status" in said[-1]:
                return replica
        return None

    def leader(self):
        before, leader = self.holder(), self.suite.until("one says so", self.leads)
        leader["process"].kill()
        began = time.monotonic()
        self.suite.until("another one holds the Lease", lambda: self.holder() not in ("", before))
        took = time.monotonic() - began
        self.change(8)
        # It comes back, and is one that serves.
        self.replicas[self.replicas.index(leader)] = self.replica(leader["command"])
        return f"after {took:.0f} s"

    def change(self, seconds):
        self.good["spec"]["http"][0]["timeout"] = f"{seconds}s"
        self.good["metadata"]["resourceVersion"] = self.ask("GET", f"{RULES}/reviews")["metadata"]["resourceVersion"]
        self.ask("PUT", f"{RULES}/reviews", self.good)
        self.says("reviews", "True", "InForce")

    def killed(self):
        reasons = lambda: [self.suite.status(replica["status"]).get("config_stale_reason") or "" for replica in self.replicas]
        self.kubernetes.process.kill()
        self.suite.until("it is said", lambda: all("Kubernetes" in reason for reason in reasons()))
        self.kubernetes.launch()
        self.suite.until("it is followed", lambda: not any(reasons()))
        self.slice("reviews", False, True)
        self.shown("v2")
        self.change(7)

    def unfailing(self):
        if self.caller.lost:
            raise self.failure(f"{len(self.caller.lost)} of {self.caller.pages}: {self.caller.lost[:5]}")
        return f"{self.caller.pages} pages, {self.caller.requests} requests, 0 lost"
