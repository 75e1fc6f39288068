"""Requests of every kind that a gateway may meet, each with a name. `{plane}` is a name of the gateway that is asked, `{port}` the port."""

import base64
import dataclasses
import ssl

import echo
import raw

# What is asked behind a kind, on the same connection, and at its end: answered by the gateway alone, whatever became of the server.
THEN = b"GET /ok HTTP/1.1\r\nhost: direct.example\r\n\r\n"
LAST = b"GET /ok HTTP/1.1\r\nhost: direct.example\r\nconnection: close\r\n\r\n"


@dataclasses.dataclass
class Kind:
    """Bytes of HTTP/1.1, or the fields of a request of HTTP/2; and where they go."""

    name: str
    said: object
    port: str = "http"
    tls: raw.Tls = None
    answers: int = 1
    body: bytes = b""
    trailers: tuple = ()
    then: bytes = THEN

    def ask(self, port, plane):
        def filled(data):
            return data.replace(b"{plane}", f"key-{plane}".encode()).replace(b"{port}", str(port).encode())

        if isinstance(self.said, bytes):
            is_head = self.said.startswith(b"HEAD ")
            return raw.http1(port, filled(self.said), self.tls, self.answers, is_head, self.then)
        fields = [(name, filled(value)) for name, value in self.said]
        return raw.http2(port, fields, self.body, self.trailers, self.tls)


def get(target="/", host="plain.example", *lines, method="GET", version="HTTP/1.1", body=b""):
    hosts = [] if host is None else [f"host: {host}"]
    return "\r\n".join([f"{method} {target} {version}", *hosts, *lines, "", ""]).encode("latin1") + body


def fields(path="/", host="plain.example", *more, method="GET", scheme="http"):
    """Those of HTTP/2."""
    pseudo = [(":method", method), (":scheme", scheme), (":authority", host), (":path", path)]
    return [(name.encode("latin1"), value.encode("latin1")) for name, value in [*pseudo, *more] if value is not None]


def grpc(host, *more, path="/a.B/C"):
    return fields(path, host, ("content-type", "application/grpc"), ("te", "trailers"), *more, method="POST")


MESSAGE = b"\0\0\0\0\2hi"


def targets():
    forms = ["/", "/a", "/a/", "/a?b=c", "/a?", "/a?b=c?d", "/a?b=/../c", "/a%20b", "/%61", "/a%2Fb", "/a%2fb", "/a%5Cb", "/a\\b", "/a/./b",
        "/a/../b"]
    forms += ["/../a", "/a/..", "/a//b", "//a", "/a/%2e%2e/b", "/a/%2E/b", "/a;x=1", "/a/..;/b", "/a;/../b", "/a%3B", "/a%00b", "/a%0d%0ab",
        "/a%zz", "/a%"]
    forms += ["/a%C3%A9", "/a\xe9", "/a#b", "/a?b#c", "/a{b}", "/a|b", "/a\"b", "/a<b>", "/a^b", "/a`b", "/a'b", "/a*b", "/a,b", "/a@b",
        "/a:b", "/a~b"]
    forms += ["/%25", "/a%252Fb", "/" + "a" * 7000, "/?" + "q" * 7000, "/a?b=%zz", "/a?b=\xe9", "/.", "/..", "/...", "/a/...", "/a..b",
        "/?", "?a=b", "a", "*"]
    yield from (Kind(f"target {form[:24]}", get(form)) for form in forms)
    for name, target in [
        ("here", "http://plain.example/a"),
        ("with a port", "http://plain.example:{port}/a"),
        ("another than Host", "http://match.example/exact"),
        ("https", "https://plain.example/a"),
        ("without a path", "http://plain.example"),
        ("with a query alone", "http://plain.example?a=b"),
        ("of a user", "http://me@plain.example/a"),
        ("of another scheme", "ftp://plain.example/a"),
        ("without a host", "http:///a"),
        ("in capitals", "HTTP://PLAIN.example/a"),
    ]:
        yield Kind(f"absolute {name}", get(target))


def hosts():
    for host in ["PLAIN.example", "plain.example.", "plain.example:80", "plain.example:{port}", "plain.example:", "plain.example:99999",
        "plain.example:a"]:
        yield Kind(f"host {host}", get(host=host))
    for host in ["other.example", "a.wild.example", "a.b.wild.example", "wild.example", "A.WILD.example:80", "127.0.0.1", "127.0.0.1:80",
        "[::1]", "[::1]:80", "::1"]:
        yield Kind(f"host {host}", get(host=host))
    for host in ["", "plain.example/a", "me@plain.example", "plain example", "plain.example,match.example", "plain_example",
        "pl\xe4in.example", "plain.example#a", "[::1", "*"]:
        yield Kind(f"host {host!r}", get(host=host))
    yield Kind("host none", get(host=None))
    yield Kind("host none, HTTP/1.0", get(host=None, version="HTTP/1.0"))
    yield Kind("host twice", get("/", "plain.example", "host: plain.example"))
    yield Kind("host twice, others", get("/", "plain.example", "host: match.example"))
    yield Kind("host in the middle", get("/", None, "x-a: 1", "host: plain.example", "x-b: 2"))
    yield Kind("host, and :authority as a field", get("/", "plain.example", ":authority: match.example"))


def methods():
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "M-SEARCH", "get", "Get", "FOO", "G@T",
        "GET\x01", "A" * 40]:
        body = ["content-length: 0"] if method in ("POST", "PUT", "PATCH") else []
        yield Kind(f"method {method[:10]!r}", get("/m", "plain.example", *body, method=method))
    yield Kind("method HEAD", get(method="HEAD"))
    yield Kind("method HEAD of nobody", get("/", "other.example", method="HEAD"))
    yield Kind("method OPTIONS *", get("*", method="OPTIONS"))
    yield Kind("method CONNECT", get("plain.example:80", "plain.example:80", method="CONNECT"))
    yield Kind("method CONNECT of a path", get("/", method="CONNECT"))
    for version in ["HTTP/1.0", "HTTP/0.9", "HTTP/1.2", "HTTP/2.0", "HTTP/3", "http/1.1", "HTTP/1.1 ", "HTTP/11", "HTTP"]:
        yield Kind(f"version {version}", get(version=version))
    yield Kind("version none", b"GET /\r\n\r\n")
    yield Kind("version 1.0 kept", get("/", "plain.example", "connection: keep-alive", version="HTTP/1.0"))
    yield Kind("line of three spaces", b"GET  /  HTTP/1.1\r\nhost: plain.example\r\n\r\n")
    yield Kind("line begins with a space", b" GET / HTTP/1.1\r\nhost: plain.example\r\n\r\n")
    yield Kind("empty lines before it", b"\r\n\r\n" + get())
    yield Kind("bare LF", get().replace(b"\r\n", b"\n"))
    yield Kind("a target of tabs", b"GET\t/\tHTTP/1.1\r\nhost: plain.example\r\n\r\n")


def lines():
    """Fields, well and badly formed."""
    named = [
        ("plain", "x-a: 1"),
        ("without a space", "x-a:1"),
        ("of spaces", "x-a:   1  \t"),
        ("of a tab inside", "x-a: 1\t2"),
        ("empty", "x-a:"),
        ("in capitals", "X-UPPER: Value"),
        ("of other bytes", "x-a: \xe9\xff"),
        ("of a control", "x-a: a\x01b"),
        ("of DEL", "x-a: a\x7fb"),
        ("of NUL", "x-a: a\0b"),
        ("of CR", "x-a: a\rb"),
        ("of LF", "x-a: a\nb"),
        ("folded", "x-a: a\r\n b"),
        ("folded by a tab", "x-a: a\r\n\tb"),
        ("first one folded", " x-a: b"),
        ("name with a space", "x a: 1"),
        ("name and a space", "x-a : 1"),
        ("name empty", ": 1"),
        ("name of other bytes", "x-\xe9: 1"),
        ("name of signs", "x!#$%&'*+-.^`|~: 1"),
        ("name with a bracket", "x(a): 1"),
        ("name with an underscore", "x_a: 1"),
        ("no colon", "x-a"),
        ("twice", "x-a: 1\r\nx-a: 2"),
        ("cookies", "cookie: a=1\r\ncookie: b=2"),
        ("accept", "accept: text/html, */*;q=0.8"),
        ("user-agent", "user-agent: curl/8"),
        ("authorization", "authorization: Basic YTpi"),
        ("range", "range: bytes=0-1"),
        ("accept-encoding", "accept-encoding: gzip, br"),
        ("if-none-match", 'if-none-match: "a"'),
        ("referer", "referer: http://a.example/b"),
        ("via", "via: 1.1 a"),
        ("forwarded", "forwarded: for=1.2.3.4;proto=https"),
        ("x-forwarded-for", "x-forwarded-for: 1.2.3.4"),
        ("x-forwarded-for twice", "x-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 5.6.7.8"),
        ("x-forwarded-for of nonsense", "x-forwarded-for: a b, ::1"),
        ("x-forwarded-proto", "x-forwarded-proto: https"),
        ("x-forwarded-host", "x-forwarded-host: a.example"),
        ("x-forwarded-port", "x-forwarded-port: 1"),
        ("x-forwarded-client-cert", "x-forwarded-client-cert: By=a;URI=spiffe://cluster.local/ns/a/sa/b"),
        ("x-real-ip", "x-real-ip: 1.2.3.4"),
        ("x-client-ip", "true-client-ip: 1.2.3.4"),
        ("x-request-id", "x-request-id: 11111111-1111-4111-8111-111111111111"),
        ("x-request-id of nonsense", "x-request-id: a b"),
        ("traceparent", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("b3", "b3: 0"),
        ("max-forwards", "max-forwards: 0"),
        ("grpc-timeout", "grpc-timeout: 1S"),
        ("http2-settings", "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__"),
    ]
    for external in [
        "retry-on: 5xx", "max-retries: 3", "upstream-rq-timeout-ms: 1", "upstream-rq-per-try-timeout-ms: 1", "force-trace: 1",
            "internal: true",
        "external-address: 1.2.3.4", "original-path: /admin", "original-host: a", "decorator-operation: a", "peer-metadata: a",
            "peer-metadata-id: a",
        "attempt-count: 9", "expected-rq-timeout-ms: 1", "ip-tags: a", "downstream-service-node: a", "upstream-alt-stat-name: a",
            "retriable-status-codes: 418",
        "hedge-on-per-try-timeout: true", "fault-abort-request: 418", "fault-delay-request: 10000", "is-timeout-retry: 1", "unheard-of: 1",
            "original-dst-host: 1.2.3.4:5",
    ]:
        named.append((f"x-envoy-{external.split(':')[0]}", f"x-envoy-{external}"))
    yield from (Kind(f"field {name}", get("/", "plain.example", line)) for name, line in named)
    for name in ["close", "keep-alive", "x-a", "x-a, x-b", "host", "content-length", "transfer-encoding", "te", "cookie", "authorization",
        "x-forwarded-for", "x-forwarded-proto", ":path", "a b", "", ",", "X-A", "close, x-a", "upgrade"]:
        yield Kind(f"connection: {name}", get("/", "plain.example", f"connection: {name}", "x-a: 1", "x-b: 2", "cookie: a=1",
            "authorization: a"))
    for name in ["keep-alive: timeout=5", "proxy-connection: keep-alive", "proxy-authorization: Basic a", "proxy-authenticate: Basic",
        "te: trailers", "te: gzip", "te: gzip, trailers;q=0.5", "te: deflate\r\nte: trailers", "trailer: x-end", "upgrade: h2c",
        "upgrade: websocket"]:
        yield Kind(f"hop {name}", get("/", "plain.example", name))
    yield Kind("hop te, named", get("/", "plain.example", "connection: te", "te: trailers"))
    for count in (90, 99, 101, 500):
        yield Kind(f"fields {count}", get("/", "plain.example", *(f"x-{number}: 1" for number in range(count))))
    for size in (8000, 30000, 58000, 62000, 70000, 200000):
        yield Kind(f"head of {size}", get("/", "plain.example", f"x-a: {'a' * size}"))
    yield Kind("cookies of 40000", get("/", "plain.example", *(f"cookie: c{number}={'a' * 1000}" for number in range(40))))


def bodies():
    def post(name, *lines, body=b"", **more):
        return Kind(f"body {name}", get("/", "plain.example", *lines, method="POST", body=body), **more)

    chunked = "transfer-encoding: chunked"
    yield post("of a length", "content-length: 3", body=b"abc")
    yield post("of none")
    yield post("of chunks", chunked, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    yield post("of chunks with trailers", chunked, "trailer: x-end", body=b"3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n")
    yield post("trailers that frame", chunked,
        body=b"1\r\na\r\n0\r\ncontent-length: 5\r\nhost: other.example\r\ntransfer-encoding: chunked\r\n\r\n")
    yield post("trailers that route", chunked, body=b"1\r\na\r\n0\r\nx-forwarded-for: 1.2.3.4\r\nauthorization: a\r\nx-envoy-a: 1\r\n\r\n")
    yield post("trailers malformed", chunked, body=b"1\r\na\r\n0\r\nx a: 1\r\n\r\n")
    yield post("chunk extensions", chunked, body=b"3;a=b\r\nabc\r\n0;c\r\n\r\n")
    yield post("chunk extension of quotes", chunked, body=b'3;a="b\\"c"\r\nabc\r\n0\r\n\r\n')
    yield post("chunk extension with LF", chunked, body=b"3;a\nabc\r\n0\r\n\r\n")
    yield post("chunk size in capitals", chunked, body=b"A\r\n0123456789\r\n0\r\n\r\n")
    yield post("chunk size of zeros", chunked, body=b"0003\r\nabc\r\n00\r\n\r\n")
    for name, size in [("huge", b"10000000000000000"), ("signed", b"+3"), ("negative", b"-3"), ("hex", b"0x3"), ("spaced", b" 3"),
        ("followed by a space", b"3 "), ("empty", b""), ("text", b"xyz"), ("underscored", b"0_3")]:
        yield post(f"chunk size {name}", chunked, body=size + b"\r\nabc\r\n0\r\n\r\n")
    yield post("chunk of LF", chunked, body=b"3\nabc\n0\n\n")
    yield post("chunk longer than it says", chunked, body=b"3\r\nabcdef\r\n0\r\n\r\n")
    hidden = b"GET /hidden HTTP/1.1\r\nhost: plain.example\r\n\r\n"
    for length in ["+3", "-3", "3.0", "0x3", "3 ", " 3", "3, 3", "3, 4", "", "abc", "3a", "99999999999999999999", "18446744073709551616",
        "03", "1e1", "3;", "\u00b3"]:
        yield post(f"length {length!r}", f"content-length: {length}", body=b"abc")
    yield post("length twice", "content-length: 3", "content-length: 3", body=b"abc")
    yield post("length twice, others", "content-length: 3", "content-length: 4", body=b"abcd")
    yield post("length folded", "content-length:\r\n 3", body=b"abc")
    for name, line in [
        ("and length", "transfer-encoding: chunked\r\ncontent-length: 6"),
        ("behind length", "content-length: 6\r\ntransfer-encoding: chunked"),
        ("and a length of 0", "content-length: 0\r\ntransfer-encoding: chunked"),
        ("in capitals", "Transfer-Encoding: CHUNKED"),
        ("twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
        ("in a list, twice", "transfer-encoding: chunked, chunked"),
        ("behind identity", "transfer-encoding: identity, chunked"),
        ("before identity", "transfer-encoding: chunked, identity"),
        ("and identity", "transfer-encoding: chunked\r\ntransfer-encoding: identity"),
        ("behind gzip", "transfer-encoding: gzip, chunked"),
        ("never", "transfer-encoding: identity"),
        ("of gzip", "transfer-encoding: gzip"),
        ("empty", "transfer-encoding:"),
        ("by a space", "transfer-encoding : chunked"),
        ("of a tab", "transfer-encoding:\tchunked"),
        ("of VT", "transfer-encoding: \x0bchunked"),
        ("of NUL", "transfer-encoding: chunked\0"),
        ("in quotes", 'transfer-encoding: "chunked"'),
        ("with a parameter", "transfer-encoding: chunked;q=1"),
        ("folded", "transfer-encoding:\r\n chunked"),
        ("of another name", "transfer_encoding: chunked"),
        ("of x-chunked", "transfer-encoding: xchunked"),
        ("of a comma", "transfer-encoding: ,chunked"),
        ("behind LF", "x-a: b\ntransfer-encoding: chunked"),
        ("behind CR", "x-a: b\rtransfer-encoding: chunked"),
    ]:
        yield post(f"chunked {name}", line, body=b"0\r\n\r\n" + hidden + LAST, answers=None)
    yield Kind("body chunked, HTTP/1.0", get("/", "plain.example", chunked, method="POST", version="HTTP/1.0",
        body=b"0\r\n\r\n" + hidden + LAST), answers=None)
    yield Kind("body of GET", get("/", "plain.example", "content-length: 3", body=b"abc"))
    yield Kind("body of GET in chunks", get("/", "plain.example", chunked, body=b"3\r\nabc\r\n0\r\n\r\n"))
    yield Kind("body of HEAD", get("/", "plain.example", "content-length: 3", method="HEAD", body=b"abc"))
    yield Kind("body of DELETE", get("/", "plain.example", "content-length: 3", method="DELETE", body=b"abc"))
    yield Kind("body of OPTIONS", get("/", "plain.example", "content-length: 3", method="OPTIONS", body=b"abc"))
    yield Kind("body that nobody takes", get("/", "other.example", "content-length: 3", method="POST", body=b"abc"))
    yield post("of 200000", "content-length: 200000", body=b"a" * 200000)
    yield post("expected", "expect: 100-continue", "content-length: 3", body=b"abc")
    yield post("expected in capitals", "expect: 100-Continue", "content-length: 3", body=b"abc")
    yield post("expected otherwise", "expect: 200-ok", "content-length: 3", body=b"abc")
    yield Kind("body expected of nobody", get("/", "other.example", "expect: 100-continue", "content-length: 3", method="POST",
        body=b"abc"))
    yield Kind("body expected, HTTP/1.0", get("/", "plain.example", "expect: 100-continue", "content-length: 3", method="POST",
        version="HTTP/1.0", body=b"abc"))
    yield Kind("body of multipart", get("/", "plain.example", "content-type: multipart/form-data; boundary=a", "content-length: 5",
        method="POST", body=b"--a--"))
    yield Kind("pipelined", get("/1") + get("/2") + get("/3"), answers=3)
    yield Kind("pipelined behind a body", get("/1", "plain.example", "content-length: 3", method="POST", body=b"abc") + get("/2"),
        answers=2)
    yield Kind("pipelined behind 404", get("/1", "other.example") + get("/2"), answers=2)
    yield Kind("pipelined behind a close", get("/1", "plain.example", "connection: close") + get("/2"))
    yield Kind("pipelined behind nonsense", get("/1") + b"nonsense\r\n\r\n", answers=2)


def answers():
    for how in echo.ANSWERS:
        yield Kind(f"answer {how}", get("/", "plain.example", f"x-answer: {how}"))
        yield Kind(f"h2 answer {how}", fields("/", "plain.example", ("x-answer", how)))
    for how in ("plain", "chunked", "to-end", "interim", "large", "none"):
        yield Kind(f"answer {how} to HTTP/1.0", get("/", "plain.example", f"x-answer: {how}", version="HTTP/1.0"))
        yield Kind(f"answer {how} to HEAD", get("/", "plain.example", f"x-answer: {how}", method="HEAD"))
    websocket = ["connection: Upgrade", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version: 13"]
    yield Kind("websocket", get("/", "plain.example", "upgrade: websocket", *websocket))
    yield Kind("websocket in capitals", get("/", "plain.example", "upgrade: WebSocket", *websocket))
    yield Kind("websocket of nobody", get("/", "other.example", "upgrade: websocket", *websocket))
    yield Kind("websocket of HTTP/1.0", get("/", "plain.example", "upgrade: websocket", *websocket, version="HTTP/1.0"))
    yield Kind("websocket and more", get("/", "plain.example", "upgrade: websocket, h2c", *websocket))
    yield Kind("upgrade to nothing known", get("/", "plain.example", "upgrade: foo", "connection: upgrade"))
    yield Kind("upgrade to HTTP/2", get("/", "plain.example", "upgrade: h2c", "connection: upgrade"))
    yield Kind("upstream dead", get("/", "dead.example"))
    yield Kind("upstream unknown", get("/", "nobody.example"))
    yield Kind("h2 upstream dead", fields("/", "dead.example"))


def rules():
    for path in ["/exact", "/exact/", "/EXACT", "/any-case", "/ANY-CASE", "/wide/x", "/WIDE/x", "/r1", "/r12?x", "/r", "/r1x", "/prefix",
        "/prefixed", "/prefix/x", "/directory", "/directory/", "/directory/x", "/e1", "/e2", "/p", "/s", "/a", "/none"]:
        yield Kind(f"match {path}", get(path, "match.example"))
    for method in ["PUT", "POST", "PATCH", "GET", "put"]:
        yield Kind(f"match method {method}", get("/m", "match.example", "content-length: 0", method=method))
    for line in ["x-a: one", "x-a: One", "x-a: two", "x-a: three", "x-a: thx", "x-a: one\r\nx-a: two", "x-b: 1", "x-b:", "x-c: 1",
        "x-c: 1\r\nx-d: 2", "X-A: one", "x-a: one "]:
        yield Kind(f"match header {line!r}", get("/h", "match.example", line))
        yield Kind(f"match without {line!r}", get("/n", "match.example", line))
    for query in ["a=1", "a=2&a=1", "a=1&a=2", "a", "a=", "a=xy", "b=12", "b=1x", "A=1", "a=%31", "%61=1", "c&a=1", "a=1;c", "a=1#b"]:
        yield Kind(f"match query {query}", get(f"/q?{query}", "match.example"))
    yield Kind("match authority with a port", get("/a", "match.example:80"))
    yield Kind("match scheme by x-forwarded-proto", get("/s", "match.example", "x-forwarded-proto: https"))
    for path in ["/a/x", "/a/", "/a/x?y", "/a//x", "/a/../a/x", "/b", "/bx", "/b/x", "/b?x", "/exact", "/exact?x=1", "/host", "/both?x",
        "/query", "/query?y", "/r/1/2", "/r/1/2/3", "/r/1", "/r/1/2?z", "/a/%2Fx", "/b%20x"]:
        yield Kind(f"rewrite {path}", get(path, "rewrite.example"))
    for path in ["/uri", "/uri?x=1", "/authority", "/both", "/301", "/302", "/303", "/307", "/308", "/scheme", "/port", "/derived",
        "/request-port", "/query", "/query?y", "/headers"]:
        yield Kind(f"redirect {path}", get(path, "redirect.example"))
    yield Kind("redirect with a port", get("/scheme", "redirect.example:{port}"))
    yield Kind("redirect of POST", get("/307", "redirect.example", "content-length: 3", method="POST", body=b"abc"))
    yield Kind("redirect of HTTP/1.0", get("/uri", "redirect.example", version="HTTP/1.0"))
    yield Kind("redirect of HEAD", get("/uri", "redirect.example", method="HEAD"))
    yield Kind("redirect in HTTP/2", fields("/uri?x", "redirect.example"))
    for host in ["secured.example", "secured.example:80", "SECURED.example", "secured.example:{port}"]:
        yield Kind(f"to https {host}", get("/a?b", host))
    yield Kind("to https POST", get("/a", "secured.example", "content-length: 3", method="POST", body=b"abc"))
    yield Kind("to https by x-forwarded-proto", get("/a", "secured.example", "x-forwarded-proto: https"))
    for path in ["/ok", "/teapot", "/empty", "/none", "/headers", "/nowhere"]:
        yield Kind(f"direct {path}", get(path, "direct.example"))
        yield Kind(f"direct {path} to HEAD", get(path, "direct.example", method="HEAD"))
        yield Kind(f"direct {path} in HTTP/2", fields(path, "direct.example"))
    yield Kind("direct of a body", get("/ok", "direct.example", "content-length: 3", method="POST", body=b"abc"))
    for name, lines in [
        ("origin", ["origin: https://a.example"]),
        ("origin by its prefix", ["origin: https://b.example"]),
        ("origin by a regex", ["origin: https://c1.example"]),
        ("origin of nobody", ["origin: https://evil.example"]),
        ("origin null", ["origin: null"]),
        ("origin empty", ["origin:"]),
        ("origin in capitals", ["origin: HTTPS://A.example"]),
        ("no origin", []),
    ]:
        yield Kind(f"cors {name}", get("/", "cors.example", *lines))
        asked = [*lines, "access-control-request-method: POST"]
        yield Kind(f"cors {name}, preflight", get("/", "cors.example", *asked, method="OPTIONS"))
        yield Kind(f"cors {name}, strict preflight", get("/strict", "cors.example", *asked, method="OPTIONS"))
    yield Kind("cors preflight without a method", get("/", "cors.example", "origin: https://a.example", method="OPTIONS"))
    yield Kind("cors preflight of headers", get("/", "cors.example", "origin: https://a.example", "access-control-request-method: PUT",
        "access-control-request-headers: x-z", method="OPTIONS"))
    yield Kind("headers", get("/a?b", "headers.example", "x-gone: 1", "x-set: 0", "x-add: 0", "user-agent: a", "x-answer: twice"))
    yield Kind("headers, seen", get("/a?b", "headers.example", "x-gone: 1", "x-set: 0", "x-add: 0", "user-agent: a"))
    yield Kind("headers in HTTP/2", fields("/a?b", "headers.example", ("x-gone", "1"), ("x-set", "0")))
    for path in ["/abort", "/grpc", "/never", "/delay", "/both"]:
        yield Kind(f"fault {path}", get(path, "fault.example"))
        yield Kind(f"fault {path} of gRPC", grpc("fault.example", path=path), body=MESSAGE)
    yield Kind("timeout", get("/short", "timeout.example", "x-wait: 0.6"))
    yield Kind("timeout not reached", get("/long", "timeout.example"))
    yield Kind("timeout of each try", get("/tries", "timeout.example", "x-wait: 0.4"))
    yield Kind("timeout of gRPC", grpc("timeout.example", ("x-wait", "0.6"), path="/grpc"), body=MESSAGE)
    for path in ["/retried", "/by-code", "/not", "/long"]:
        for fails in (1, 2, 3):
            yield Kind(f"retry {path} that fails {fails}", get(path, "timeout.example", f"x-fails: {fails}",
                f"x-key: {{plane}}{path}{fails}"))
    yield Kind("retry POST", get("/retried", "timeout.example", "x-fails: 1", "x-key: {plane}-post", "content-length: 3", method="POST",
        body=b"abc"))
    yield Kind("retry of what says when", get("/retried", "timeout.example", "x-answer: later"))
    yield Kind("retry of a reset", get("/reset", "timeout.example", "x-answer: nothing"))
    yield Kind("no retry of a reset", get("/not", "timeout.example", "x-answer: nothing"))


def newer():
    """HTTP/2."""
    yield Kind("h2", fields())
    for method in ["POST", "HEAD", "OPTIONS", "DELETE", "TRACE", "FOO", "get", "CONNECT", "A B", ""]:
        yield Kind(f"h2 method {method!r}", fields(method=method))
    for path in ["/a?b", "/a%2Fb", "/a/../b", "//a", "/a b", "/a\r\nb", "a", "", "*", "http://plain.example/", "/a#b", "/a\xe9", "/a\\b",
        "/" + "a" * 7000]:
        yield Kind(f"h2 path {path[:20]!r}", fields(path))
    for host in ["PLAIN.example", "plain.example:80", "plain.example.", "other.example", "", "me@plain.example", "plain.example/a",
        "plain example", "[::1]", "plain.example\r\nx: y"]:
        yield Kind(f"h2 host {host!r}", fields("/", host))
    for scheme in ["https", "ftp", "", "HTTP", "h t"]:
        yield Kind(f"h2 scheme {scheme!r}", fields(scheme=scheme))
    one = fields()
    yield Kind("h2 without :authority", one[:2] + one[3:])
    yield Kind("h2 host in its place", one[:2] + one[3:] + [(b"host", b"plain.example")])
    yield Kind("h2 host beside it", one + [(b"host", b"plain.example")])
    yield Kind("h2 another host beside it", one + [(b"host", b"match.example")])
    yield Kind("h2 two hosts beside it", one + [(b"host", b"plain.example"), (b"host", b"match.example")])
    yield Kind("h2 without :path", one[:3])
    yield Kind("h2 without :method", one[1:])
    yield Kind("h2 without :scheme", one[:1] + one[2:])
    for name, _ in one:
        yield Kind(f"h2 {name.decode()} twice", one + [(name, dict(one)[name])])
        yield Kind(f"h2 {name.decode()} first twice", [(name, dict(one)[name]), *one])
    yield Kind("h2 pseudo behind a field", [one[0], (b"x-a", b"1"), *one[1:]])
    yield Kind("h2 pseudo unknown", [(b":what", b"1"), *one])
    yield Kind("h2 pseudo of an answer", [(b":status", b"200"), *one])
    yield Kind("h2 protocol", fields(method="CONNECT")[:1] + [(b":protocol", b"websocket")] + one[1:])
    for name, value in [
        ("X-Upper", "1"), ("x a", "1"), ("x:a", "1"), ("", "1"), ("x-\xe9", "1"), ("x_a", "1"), ("x-a", "a\r\nb: c"), ("x-a", "a\nb"),
            ("x-a", "a\0b"), ("x-a", " 1 "), ("x-a", ""), ("x-a", "\xe9"), ("x-a", "a\x01b"),
        ("connection", "close"), ("connection", "x-a"), ("keep-alive", "1"), ("proxy-connection", "1"), ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"), ("te", "trailers"), ("te", "gzip"), ("te", "Trailers"),
        ("content-length", "0"), ("content-length", "5"), ("content-length", "a"), ("content-length", "+0"), ("content-length", "0, 0"),
            ("expect", "100-continue"), ("cookie", "a=1"), ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"), ("x-envoy-retry-on", "5xx"), ("x-forwarded-client-cert", "By=a"), ("http2-settings", "a"),
            ("proxy-authorization", "a"), ("trailer", "x-a"), ("max-forwards", "0"),
    ]:
        yield Kind(f"h2 field {name}: {value!r}", fields("/", "plain.example", (name, value)))
    yield Kind("h2 cookies", fields("/", "plain.example", ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")))
    yield Kind("h2 fields 99", fields("/", "plain.example", *((f"x-{number}", "1") for number in range(99))))
    yield Kind("h2 fields 120", fields("/", "plain.example", *((f"x-{number}", "1") for number in range(120))))
    for size in (15000, 50000, 70000):
        yield Kind(f"h2 head of {size}", fields("/", "plain.example", *((f"x-{number}", "a" * 5000) for number in range(size // 5000))))

    def post(name, *more, body=b"abc", trailers=()):
        return Kind(f"h2 body {name}", fields("/", "plain.example", *more, method="POST"), body=body, trailers=trailers)

    yield post("of no length")
    yield post("of its length", ("content-length", "3"))
    yield post("shorter than it says", ("content-length", "5"))
    yield post("longer than it says", ("content-length", "2"))
    yield post("of 0 that is longer", ("content-length", "0"))
    yield post("of two lengths", ("content-length", "3"), ("content-length", "4"))
    yield post("with trailers", trailers=((b"x-end", b"1"),))
    yield post("trailers that frame", trailers=((b"content-length", b"5"), (b"host", b"other.example"), (b"transfer-encoding", b"chunked")))
    yield post("trailers that route", trailers=((b"x-forwarded-for", b"1.2.3.4"), (b"authorization", b"a"), (b"x-envoy-a", b"1")))
    yield post("trailers of pseudo", trailers=((b":path", b"/b"),))
    yield post("trailers of LF", trailers=((b"x-end", b"a\nb"),))
    yield post("of 60000", body=b"a" * 60000)
    for status in ("0", "1", "5", "13", "14", "16", "99", "x"):
        yield Kind(f"grpc status {status}", grpc("grpc.example", ("x-grpc", status)), body=MESSAGE)
    yield Kind("grpc trailers only", grpc("grpc.example", ("x-grpc", "7"), ("x-answer", "trailers-only")), body=MESSAGE)
    for host in ("dead.example", "other.example", "direct.example", "nobody.example", "redirect.example"):
        yield Kind(f"grpc of {host}", grpc(host, path="/ok" if host == "direct.example" else "/uri"), body=MESSAGE)
    yield Kind("grpc to HTTP", grpc("plain.example"), body=MESSAGE)
    yield Kind("grpc metadata", grpc("grpc.example", ("x-bin", "AAEC"), ("grpc-timeout", "5S"), ("grpc-accept-encoding", "gzip"),
        ("user-agent", "grpc-a")), body=MESSAGE)
    yield Kind("grpc-web", fields("/a.B/C", "grpc.example", ("content-type", "application/grpc-web"), method="POST"), body=MESSAGE)

    def web(name, kind, *more, body=MESSAGE):
        lines = (f"content-type: application/{kind}", f"content-length: {len(body)}", *more)
        return Kind(f"grpc-web {name}", get("/a.B/C", "web.example", *lines, method="POST", body=body))

    text = base64.b64encode(MESSAGE)
    yield web("over http1", "grpc-web+proto")
    yield web("of text", "grpc-web-text", "accept: application/grpc-web-text", body=text)
    yield web("of text, answered by bytes", "grpc-web-text+proto", "accept: */*", body=text)
    yield web("of another status", "grpc-web", "x-grpc: 5")
    yield web("trailers only", "grpc-web", "x-grpc: 7", "x-answer: trailers-only")
    yield Kind("http1 to HTTP/2", get("/", "grpc.example"))
    yield Kind("http1 body to HTTP/2", get("/", "grpc.example", "content-length: 3", method="POST", body=b"abc"))
    yield Kind("http1 chunks that break off, to HTTP/2", get("/", "grpc.example", "transfer-encoding: chunked", method="POST",
        body=b"zz\r\nabc\r\n"))
    yield Kind("http1 GET in chunks to HTTP/2", get("/", "grpc.example", "transfer-encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"))
    yield Kind("http1 hop fields to HTTP/2", get("/", "grpc.example", "connection: x-a", "x-a: 1", "te: trailers", "keep-alive: a",
        "proxy-connection: a"))
    yield Kind("http1 grpc", get("/a.B/C", "grpc.example", "content-type: application/grpc", "te: trailers",
        f"content-length: {len(MESSAGE)}", method="POST", body=MESSAGE))


def secured(own):
    """TLS: `own` is a certificate that is let in, and one that is not."""
    good, bad = own
    h1, h2 = ("http/1.1",), ("h2", "http/1.1")
    for name in ["secure.example", "a.secure.example", "a.b.secure.example", "SECURE.example", "other.example", "broken.example", None,
        "secure.example.", "new.example"]:
        yield Kind(f"tls {name}", get("/", "secure.example" if name is None else name), "https", raw.Tls(name, h1))
    for alpn in [(), ("http/1.1",), ("h2",), ("h2", "http/1.1"), ("http/1.0",), ("foo",), ("istio",), ("h3",)]:
        yield Kind(f"tls alpn {','.join(alpn)}", get("/", "secure.example"), "https", raw.Tls("secure.example", alpn))
    for name, version in [("1.0", ssl.TLSVersion.TLSv1), ("1.1", ssl.TLSVersion.TLSv1_1), ("1.2", ssl.TLSVersion.TLSv1_2),
        ("1.3", ssl.TLSVersion.TLSv1_3)]:
        yield Kind(f"tls {name} alone", get("/", "secure.example"), "https", raw.Tls("secure.example", h1, versions=(version, version)))
        yield Kind(f"tls {name} alone, new", get("/", "new.example"), "https", raw.Tls("new.example", h1, versions=(version, version)))
    for host in ["secure.example", "a.secure.example", "secure.example:443", "mutual.example", "plain.example", "other.example",
        "new.example", "broken.example"]:
        yield Kind(f"tls for another host {host}", get("/", host), "https", raw.Tls("secure.example", h1))
        yield Kind(f"tls h2 for another host {host}", fields("/", host, scheme="https"), "https", raw.Tls("secure.example", h2))
    yield Kind("tls h2 scheme http", fields("/", "secure.example"), "https", raw.Tls("secure.example", h2))
    yield Kind("tls h1 absolute http", get("http://secure.example/a", "secure.example"), "https", raw.Tls("secure.example", h1))
    yield Kind("tls x-forwarded-proto", get("/", "secure.example", "x-forwarded-proto: http", "x-forwarded-client-cert: By=a"), "https",
        raw.Tls("secure.example", h1))
    for host in ["mutual.example", "optional.example"]:
        for name, certificate in [("none", None), ("good", good), ("bad", bad)]:
            yield Kind(f"tls {host} shown {name}", get("/", host), "https", raw.Tls(host, h1, certificate))
            yield Kind(f"tls h2 {host} shown {name}", fields("/", host, scheme="https"), "https", raw.Tls(host, h2, certificate))
        yield Kind(f"tls {host} says who it is", get("/", host, "x-forwarded-client-cert: By=a;URI=b"), "https", raw.Tls(host, h1, good))
    yield Kind("tls passes", get("/", "raw.example"), "https", raw.Tls("raw.example"))
    yield Kind("tls none", get("/", "secure.example"), "https")
    yield Kind("tls at a port without", b"\x16\x03\x01\x00\x05hello")
    yield Kind("tcp", get("/", "whatever"), "tcp")
    yield Kind("tcp, what is no HTTP", b"nonsense\r\n\r\n", "tcp")


def kinds(own):
    for group in (targets(), hosts(), methods(), lines(), bodies(), answers(), rules(), newer(), secured(own)):
        yield from group
