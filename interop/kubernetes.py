"""Service account tokens with the real Kubernetes API server (hazard C9): whose certificate a token gives, and which tokens give
none. The server is built by Go from `kubernetes/`, with its etcd in the same process, and is this suite's alone.
"""

import base64
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import cluster
import manifests
import grpc
from ports import free_port
from protobuf import field

AUDIENCE = "istio-ca"
OURS = "spiffe://cluster.local/ns/shop/sa/web"
ADMIN = "admin-of-the-suite"


def encoded(*parts):
    """Parts of a JWT."""
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def decoded(part):
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


class Kubernetes:
    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "kubernetes"
        self.config = self.folder / "config"
        self.config.mkdir(parents=True)
        self.program = suite.args.peers / "kubernetes" / "kube-apiserver"
        # The server's own certificate, once it has started.
        self.ca = self.folder / "certs" / "apiserver.crt"

    def run(self, with_chart=False):
        check = self.suite.check
        check("kubernetes", "a pod's token gives the certificate of its account, again and again", self.prepare)
        check("kubernetes", "a token for somebody else, forged, too old or bound to no pod gives none", self.refused)
        check("kubernetes", "a pod that is deleted: its token gives none any more", self.deleted)
        check("kubernetes", "where mesh-control may not ask, nobody is given one", self.forbidden)
        cluster.Cluster(self).run()
        if with_chart:
            manifests.Manifests(self).run()

    def start(self):
        """The API server, and how to ask it."""
        port, etcd = free_port(), free_port()
        key = self.folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)
        (self.folder / "tokens.csv").write_text(f'{ADMIN},admin,admin,"system:masters"\n')
        self.api = f"https://127.0.0.1:{port}"
        command = [self.program, f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={port}"]
        command += ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--cert-dir={self.folder / 'certs'}"]
        command += [f"--service-account-issuer={self.api}", f"--service-account-key-file={key}"]
        command += [f"--service-account-signing-key-file={key}", f"--token-auth-file={self.folder / 'tokens.csv'}"]
        command += ["--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16"]
        command += ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]
        env = {"ETCD_DIR": str(self.folder / "etcd"), "ETCD_URL": f"http://127.0.0.1:{etcd}"}
        self.launch = lambda: self.begin(command, env)
        self.launch()

    def begin(self, command, env):
        process = self.process = self.suite.start("kube-apiserver", command, env)
        end = time.monotonic() + 120
        while True:
            try:
                if self.ask("GET", "/readyz", raw=True) == b"ok":
                    return
            except OSError:
                pass
            if process.child.poll() is not None or time.monotonic() > end:
                raise self.failure(f"the API server does not get ready: {list(process.errors)}")
            time.sleep(0.1)

    def ask(self, method, path, body=None, raw=False, content="application/json"):
        request = urllib.request.Request(self.api + path, method=method)
        request.add_header("authorization", f"Bearer {ADMIN}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("content-type", content)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            text = answer.read()
        return text if raw else json.loads(text)

    def kubeconfig(self, name, user):
        """A file of this name, by which programs reach the API server as this user."""
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.api, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "u", "user": user}],
        }
        file = self.folder / name
        file.write_text(json.dumps(config))
        return file

    def make(self, path, kind, name, version="v1", **more):
        return self.ask("POST", path, {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more})

    def pod(self, name):
        spec = {"serviceAccountName": "web", "containers": [{"name": "web", "image": "web"}]}
        return self.make("/api/v1/namespaces/shop/pods", "Pod", name, spec=spec)["metadata"]["uid"]

    def token(self, account, audience=AUDIENCE, pod=None, namespace="shop"):
        """What a kubelet asks for, for a pod of that name and uid."""
        spec = {"audiences": [audience], "expirationSeconds": 600}
        if pod:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod[0], "uid": pod[1]}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return self.ask("POST", path, body)["status"]["token"]

    def forged(self, token, key=None, **claims):
        """The same token with other claims, signed by the API server's key or another one."""
        head, body, _ = token.split(".")
        body = {**decoded(body), **claims}
        text = encoded(json.dumps(decoded(head)).encode(), json.dumps(body).encode())
        sign = ["openssl", "dgst", "-sha256", "-sign", key or self.folder / "sa.key"]
        signature = subprocess.run(sign, input=text.encode(), check=True, capture_output=True, timeout=30).stdout
        return f"{text}.{encoded(signature)}"

    def prepare(self):
        self.start()
        self.make("/api/v1/namespaces", "Namespace", "shop")
        for account in ("web", "other"):
            self.make("/api/v1/namespaces/shop/serviceaccounts", "ServiceAccount", account)
        self.make("/api/v1/namespaces/default/serviceaccounts", "ServiceAccount", "mesh-control")
        subject = {"kind": "ServiceAccount", "name": "mesh-control", "namespace": "default"}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"}
        bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        version = "rbac.authorization.k8s.io/v1"
        self.make(bindings, "ClusterRoleBinding", "mesh-control", version, roleRef=role, subjects=[subject])
        own = self.folder / "token"
        own.write_text(self.token("mesh-control", audience=self.api, namespace="default"))
        command = [*self.suite.serve(self.config, "127.0.0.1:0"), "--state-dir", self.folder / "state"]
        command += ["--kubernetes-tokens", self.api, "--kubernetes-token-file", own]
        command += ["--kubernetes-ca", self.ca]
        self.xds = self.suite.start("mesh-control of pods", command).wait_for_line("xds listening on ")
        csr = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/"]
        csr += ["-keyout", os.devnull]
        self.csr = subprocess.run(csr, check=True, capture_output=True, timeout=30, text=True).stdout
        self.good = self.token("web", pod=("web-1", self.pod("web-1")))
        for _ in range(2):
            if (found := self.identity(self.sign(self.good))) != OURS:
                raise self.failure(f"the certificate is that of {found}")
        return self.library()

    def sign(self, token):
        """Asks the authority, as Istio's agents do; the chain that it signs, in PEM."""
        with grpc.insecure_channel(self.xds) as channel:
            call = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
            answer = call(field(1, self.csr), timeout=30, metadata=[("authorization", f"Bearer {token}")])
        return answer[answer.index(b"-----BEGIN") :].decode(errors="replace")

    @staticmethod
    def identity(chain):
        show = ["openssl", "x509", "-noout", "-ext", "subjectAltName"]
        text = subprocess.run(show, input=chain, check=True, capture_output=True, timeout=30, text=True).stdout
        return text.rsplit("URI:", 1)[-1].strip()

    def library(self):
        """A workload of the library that has nothing but such a token."""
        token = self.folder / "projected"
        token.write_text(f"{self.good}\n")
        plugin = {"plugin_name": "mesh_ca", "config": {"token_file": str(token)}}
        bootstrap = {
            "xds_servers": [{"server_uri": self.xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
            "node": {"id": "mesh~127.0.0.1~web-1.shop~shop.svc.cluster.local", "metadata": {"NAMESPACE": "shop", "SERVICE_ACCOUNT": "web"}},
            "certificate_providers": {"default": plugin},
            "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
        }
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}}
        service["spec"] = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}
        strict = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "web", "namespace": "shop"}}
        strict["spec"] = {"mtls": {"mode": "STRICT"}}
        (self.config / "all.yaml").write_text(f"{json.dumps(service)}\n---\n{json.dumps(strict)}\n")
        env = {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)}
        echo = [self.suite.args.bin / "mesh-echo", "--name", "web", "--listen", "127.0.0.1:0", "--label", "app=web"]
        self.suite.start("a pod's server", echo, env).wait_for_line(" serving")
        curl = [self.suite.args.bin / "mesh-curl", "-o", "json", "http://web.shop/"]
        end = time.monotonic() + 30
        while True:
            done = subprocess.run(curl, capture_output=True, timeout=60, text=True, env={**os.environ, **env})
            answer = json.loads(done.stdout.splitlines()[0])
            if answer.get("status") == 200 and (body := json.loads(answer["body"]))["peer"] == OURS:
                return f"and mutual TLS between two pods, called by {body['peer']}"
            if time.monotonic() > end:
                raise self.failure(f"no call by mutual TLS: {done.stdout[-400:]} {done.stderr[-400:]}")
            time.sleep(0.2)

    def refusal(self, name, token):
        """Why a token gives no certificate."""
        try:
            chain = self.sign(token)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                raise self.failure(f"{name}: {error.code()}: {error.details()}") from None
            return error.details()
        raise self.failure(f"{name}: it gives a certificate of {self.identity(chain)}")

    def refused(self):
        bound = ("web-2", self.pod("web-2"))
        good = self.token("web", pod=bound)
        key = self.folder / "other.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)
        # A forgery that changes nothing is no forgery: what is refused below is refused for what was changed.
        if self.identity(self.sign(self.forged(good, jti="another"))) != OURS:
            raise self.failure("a token that was signed again is refused")
        now = int(time.time())
        legacy = {"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:shop:web"}
        legacy |= {"kubernetes.io/serviceaccount/namespace": "shop", "kubernetes.io/serviceaccount/service-account.name": "web"}
        # The name of another account, and the uid of this one.
        body = decoded(good.split(".")[1])["kubernetes.io"]
        other = {**body, "serviceaccount": {**body["serviceaccount"], "name": "other"}}
        wrong = {
            "another audience": (self.token("web", audience="other", pod=bound), "audience"),
            "another issuer": (self.forged(good, iss="https://elsewhere.example"), "refuses the token"),
            "another key": (self.forged(good, key), "refuses the token"),
            "too old": (self.forged(good, iat=now - 900, nbf=now - 900, exp=now - 300), "expired"),
            "another account": (self.forged(good, **{"kubernetes.io": other}), "refuses the token"),
            "bound to no pod": (self.token("web"), "bound to no pod"),
            "a legacy one": (self.forged(good, **legacy), "refuses the token"),
            "the API server's own administrator": (f"{encoded(b'{}', b'{}')}.{ADMIN}", "refuses the token"),
        }
        for name, (token, why) in wrong.items():
            if why not in (said := self.refusal(name, token)):
                raise self.failure(f"{name}: {said}")
        return ", ".join(wrong)

    def deleted(self):
        token = self.token("web", pod=("web-3", self.pod("web-3")))
        if self.identity(self.sign(token)) != OURS:
            raise self.failure("it is not good before")
        self.ask("DELETE", "/api/v1/namespaces/shop/pods/web-3?gracePeriodSeconds=0")
        began = time.monotonic()
        # The API server itself remembers for ten seconds what it found good.
        while time.monotonic() < began + 60:
            try:
                self.sign(token)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAUTHENTICATED:
                    raise self.failure(f"{error.code()}: {error.details()}") from None
                return f"after {time.monotonic() - began:.0f} s: {error.details()[:120]}"
            time.sleep(0.5)
        raise self.failure("it goes on being good")

    def forbidden(self):
        self.ask("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/mesh-control")
        fresh = self.token("web", pod=("web-4", self.pod("web-4")))
        began = time.monotonic()
        while time.monotonic() < began + 30:
            try:
                self.sign(fresh)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAUTHENTICATED and "nobody can say now" in error.details():
                    return error.details()
                raise self.failure(f"{error.code()}: {error.details()}") from None
            time.sleep(0.2)
        raise self.failure("it goes on giving certificates")
