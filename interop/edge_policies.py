"""Requests where policies decide, with tokens of every kind."""

import base64
import json
import time

import edge_objects
import raw
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from edge_kinds import MESSAGE, Kind, fields, get, grpc


class Issuer:
    """Who signs tokens."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        numbers = self.key.public_key().public_numbers()
        x, y = (text(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        self.jwks = json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "alg": "ES256", "x": x, "y": y}]})

    def token(self, head=None, **claims):
        now = int(time.time())
        head = {"alg": "ES256", "kid": "a", "typ": "JWT"} | (head or {})
        claims = {"iss": edge_objects.ISSUER, "aud": "edge", "sub": "ada", "iat": now, "exp": now + 3600} | claims
        claims = {name: value for name, value in claims.items() if value is not None}
        said = ".".join(text(json.dumps(part).encode()) for part in (head, claims))
        r, s = utils.decode_dss_signature(self.key.sign(said.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{said}.{text(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def guarded(issuer):
    """Where policies decide."""
    for path in ["/", "/admin", "/admin/", "/admin/x", "/administer", "/ADMIN", "/%61dmin", "/admin%2Fx", "//admin", "/a/../admin",
        "/a/%2e%2e/admin", "/admin;x", "/a/..;/admin", "/admin?x", "/admin#x", "/admin%00", "\\admin", "/a\\..\\admin", "/%2561dmin",
        "/a;x"]:
        yield Kind(f"guarded {path}", get(path, "guarded.example"))
        yield Kind(f"guarded h2 {path}", fields(path, "guarded.example"))
    for host in ["guarded.example:80", "GUARDED.example", "guarded.example.", "guarded.example:1"]:
        yield Kind(f"guarded host {host}", get("/admin", host))
    yield Kind("guarded absolute", get("http://guarded.example/admin", "plain.example"))
    yield Kind("guarded absolute, of another", get("http://plain.example/admin", "guarded.example"))
    for method in ["DELETE", "delete", "HEAD", "POST"]:
        yield Kind(f"guarded {method}", get("/", "guarded.example", "content-length: 0", method=method))
    for line in ["x-role: evil", "x-role: Evil", "x-role: good", "x-role: good\r\nx-role: evil", "x-role: evil\r\nx-role: good",
        "x-role: evil, good", "x-role:", "x_role: evil"]:
        yield Kind(f"guarded by {line!r}", get("/", "guarded.example", line))
    yield Kind("guarded from 1.2.3.4", get("/", "guarded.example", "x-forwarded-for: 1.2.3.4"))
    yield Kind("guarded websocket", get("/admin", "guarded.example", "connection: upgrade", "upgrade: websocket"))
    yield Kind("guarded expected", get("/admin", "guarded.example", "expect: 100-continue", "content-length: 3", method="POST",
        body=b"abc"))
    good = issuer.token()
    tokens = {
        "good": good,
        "ended": issuer.token(exp=int(time.time()) - 3600),
        "not yet": issuer.token(nbf=int(time.time()) + 3600),
        "of nobody": issuer.token(iss="https://evil.example"),
        "for others": issuer.token(aud="others"),
        "for several": issuer.token(aud=["a", "edge"]),
        "for nobody": issuer.token(aud=None),
        "without an end": issuer.token(exp=None),
        "without a subject": issuer.token(sub=None),
        "of another key": issuer.token({"kid": "b"}),
        "of no algorithm": issuer.token({"alg": "none"}),
        "of HS256": issuer.token({"alg": "HS256"}),
        "of another signer": Issuer().token(),
        "changed": good[:-8] + "AAAAAAAA",
        "cut": good[: good.rindex(".")],
        "nonsense": "a.b.c",
        "no token": "nonsense",
        "none": "",
        "of a group": issuer.token(group="staff"),
        "of groups": issuer.token(group=["a", "staff"]),
        "of another group": issuer.token(group="guests"),
    }
    for name, token in tokens.items():
        yield Kind(f"token {name}", get("/", "token.example", f"authorization: Bearer {token}"))
        yield Kind(f"token {name}, for a group", get("/group", "token.example", f"authorization: Bearer {token}"))
        yield Kind(f"token {name}, where none is asked for", get("/", "plain.example", f"authorization: Bearer {token}"))
    yield Kind("token in lower case", get("/", "token.example", f"authorization: bearer {good}"))
    yield Kind("token twice", get("/", "token.example", f"authorization: Bearer {good}", f"authorization: Bearer {good}"))
    yield Kind("token of another scheme", get("/", "token.example", "authorization: Basic YTpi"))
    yield Kind("token none at all", get("/", "token.example"))
    yield Kind("token in the query", get(f"/?access_token={good}", "token.example"))
    yield Kind("token in HTTP/2", fields("/", "token.example", ("authorization", f"Bearer {good}")))
    yield Kind("token of gRPC, ended", grpc("token.example", ("authorization", f"Bearer {tokens['ended']}")), body=MESSAGE)
    yield Kind("token, with its header", get("/", "token.example", f"authorization: Bearer {good}", "x-subject: eve"))
    yield Kind("token header of nobody", get("/", "plain.example", "x-subject: eve"))
    three = b"".join(get("/", "limited.example", "x-limited: yes", "x-user: a") for _ in range(3))
    yield Kind("limited", three, answers=3)
    yield Kind("limited, without", get("/", "limited.example", "x-user: a"))


# What a policy asks of connections, and by which ways one is let in then: by TCP, and by TLS that passes. No two in a row let in the
# same, so that each is seen to be in force.
CONNECTIONS = {
    "of the client's address": ("rules: [{from: [{source: {ipBlocks: [127.0.0.2/32]}}]}]", True, True),
    "of another address": ("rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]", False, False),
    "of a name": ("rules: [{when: [{key: connection.sni, values: [raw.example]}]}]", False, True),
    "that refuses the client's address": ("action: DENY, rules: [{from: [{source: {remoteIpBlocks: [127.0.0.2]}}]}]", False, False),
    "that refuses a name": ("action: DENY, rules: [{when: [{key: connection.sni, values: [raw.example]}]}]", True, False),
    "of workloads": ("rules: [{from: [{source: {namespaces: [shop]}}]}]", False, False),
    "that only tells": ("action: AUDIT, rules: [{}]", True, True),
    "of requests": ("rules: [{to: [{operation: {methods: [GET]}}]}]", False, False),
    "of nothing": ("rules: [{}]", True, True),
    "that refuses requests": ("action: DENY, rules: [{to: [{operation: {paths: [/nowhere]}}]}]", False, False),
}


def connections(asked):
    """Where a policy decides on connections."""
    yield Kind(f"tcp by a policy {asked}", get("/", "whatever"), "tcp")
    yield Kind(f"tls that passes by a policy {asked}", get("/", "plain.example"), "https", raw.Tls("raw.example"))
    yield Kind(f"http by a policy {asked}", get("/", "plain.example"))
