"""The TLS of every port that speaks it, scanned with sslyze: TLS 1.3 and nothing else, and none of TLS's known holes. And keys and
signatures that are too weak, shown to a workload by openssl. A gateway is scanned where there is one (`edge.py`): browsers may speak
TLS 1.2 there.
"""

import re
import ssl
import subprocess

import authority
import envoy
import sslyze
from ports import free_port

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{name: grpc, port: 9080}]}
"""

# Protocols by the names of sslyze's commands.
VERSIONS = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3"]

SUITES = {sslyze.ScanCommand(f"{name}_cipher_suites") for name in VERSIONS}
# A key of its own for each connection, and a cipher that says if somebody has changed what it hides.
GOOD_SUITES = re.compile("TLS_ECDHE_.*_(GCM|CHACHA20_POLY1305)_.*|TLS_(AES|CHACHA20).*")
# Some of these can be seen only by who is let in.
HOLES = ["heartbleed", "openssl_ccs_injection", "tls_compression", "tls_1_3_early_data", "session_renegotiation"]


# A trust domain whose authority is openssl's.
WEAK = "weak.example"
LEAF = f"""\
subjectAltName=URI:spiffe://{WEAK}/ns/default/sa/client
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
basicConstraints=critical,CA:FALSE
"""


class Scan:
    """One control plane that gives identities, and a workload of its mesh."""

    def __init__(self, suite, failure):
        self.suite, self.failure = suite, failure
        self.folder = suite.folder / "scan"
        self.config, self.state = self.folder / "config", self.folder / "state"
        self.config.mkdir(parents=True)
        (self.config / "services.yaml").write_text(SERVICES)
        self.bin = suite.args.bin

    def issue(self, account):
        return authority.issue(self.suite, self.state, self.folder / account, "default", account)

    def run(self):
        suite = self.suite
        control, scanner = self.issue("control"), self.issue("scanner")
        command = [*suite.serve(self.config, "127.0.0.1:0"), "--dev", "--state-dir", self.state]
        self.root()
        command += ["--trust-bundle", f"{WEAK}={self.folder / 'weak.pem'}"]
        files = ["--tls-cert", control / "cert-chain.pem", "--tls-key", control / "key.pem"]
        process = suite.start("mesh-control with TLS", [*command, *files])
        xds = process.wait_for_line("xds listening on ")
        secured = process.wait_for_line("secured xds listening on ")
        listen = f"127.0.0.1:{free_port()}"
        instance = [self.bin / "bookinfo", "service", "ratings", "--version", "v1", "--control", xds, "--listen", listen]
        suite.start("ratings under a scan", instance).wait_for_line(" serving")
        for name, address in [("xDS", xds), ("secured xDS, and the authority", secured), ("a workload", listen)]:
            what = f"{name}: TLS 1.3 alone, and no known hole"
            suite.check("sslyze", what, lambda address=address: self.scan(address, scanner))
        what = "a workload lets nobody in by an RSA key of 1024 bits, or by SHA-1"
        suite.check("openssl", what, lambda: self.weak(listen))

    def openssl(self, *command, text=None):
        run = ["openssl", *command]
        return subprocess.run(run, input=text, cwd=self.folder, check=True, timeout=60, capture_output=True, text=True).stdout

    def root(self):
        made = ["-newkey", "rsa:2048", "-nodes", "-keyout", "weak.key", "-out", "weak.pem", "-subj", "/CN=weak", "-days", "2"]
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        self.openssl("req", "-x509", *made, *extensions)
        (self.folder / "leaf.txt").write_text(LEAF)

    def weak(self, address):
        """Of certificates of the same authority, the one that is as it should be is let in, and the others are not."""
        found = {}
        for name, bits, digest in [("good", 2048, "sha256"), ("RSA of 1024 bits", 1024, "sha256"), ("SHA-1", 2048, "sha1")]:
            key, chain = self.folder / "leaf.key", self.folder / "leaf.pem"
            request = self.openssl("req", "-new", "-newkey", f"rsa:{bits}", "-nodes", "-keyout", key, "-subj", "/")
            signing = ["-CA", "weak.pem", "-CAkey", "weak.key", "-CAcreateserial", "-days", "1", "-extfile", "leaf.txt"]
            chain.write_text(self.openssl("x509", "-req", f"-{digest}", *signing, text=request))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            # As low as openssl goes, so that it shows whatever it is given.
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.load_cert_chain(chain, key)
            found[name] = envoy.speaks_http2(address, context)
        if found != {name: name == "good" for name in found}:
            raise self.failure(f"{found}")
        return "and by the same authority's RSA of 2048 bits with SHA-256, it does"

    def scan(self, address, client):
        location = sslyze.ServerNetworkLocation(hostname="localhost", port=int(address.rsplit(":", 1)[1]), ip_address="127.0.0.1")
        credentials = sslyze.ClientAuthenticationCredentials(
            certificate_chain_path=client / "cert-chain.pem", key_path=client / "key.pem"
        )
        return scan(self.failure, location, ["tls_1_3"], credentials)


def scan(failure, location, versions, credentials=None):
    """What a server speaks, which has to be these versions and none besides, and no cipher or hole that is known to be bad."""
    found = {}
    for shown, commands in [(None, SUITES), (credentials, {sslyze.ScanCommand(name) for name in HOLES})]:
        network = sslyze.ServerNetworkConfiguration(location.hostname, tls_client_auth_credentials=shown)
        request = sslyze.ServerScanRequest(location, network_configuration=network, scan_commands=commands)
        scanner = sslyze.Scanner(per_server_concurrent_connections_limit=2)
        scanner.queue_scans([request])
        (result,) = scanner.get_results()
        if result.scan_result is None:
            raise failure(f"{location} cannot be scanned: {result.connectivity_error_trace}")
        found |= {command.value: getattr(result.scan_result, command.value) for command in commands}

    def of(name):
        attempt = found[name]
        if attempt.result is None:
            raise failure(f"{location}: {name} was not scanned: {attempt.error_reason} {attempt.error_trace}")
        return attempt.result

    accepted = {name: [suite.cipher_suite.name for suite in of(f"{name}_cipher_suites").accepted_cipher_suites] for name in VERSIONS}
    spoken = [name for name, suites in accepted.items() if suites]
    suites = [suite for name in spoken for suite in accepted[name]]
    holes = {
        "heartbleed": of("heartbleed").is_vulnerable_to_heartbleed,
        "CCS injection": of("openssl_ccs_injection").is_vulnerable_to_ccs_injection,
        "compression": of("tls_compression").supports_compression,
        "early data": of("tls_1_3_early_data").supports_early_data,
        "renegotiation by the client": of("session_renegotiation").is_vulnerable_to_client_renegotiation_dos,
    }
    wrong = [name for name, is_there in holes.items() if is_there] + [suite for suite in suites if not GOOD_SUITES.fullmatch(suite)]
    if wrong or spoken != versions:
        raise failure(f"{location}: {', '.join(wrong)}; it speaks {spoken}")
    return ", ".join(suites)
